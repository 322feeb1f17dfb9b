"""From files to samples: decoding, the prepared corpus, and its verification."""
