"""Audio: decoding files, preparing them as a corpus, and checking that corpus."""
