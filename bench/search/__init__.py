"""Search: indexes behind one contract, and from neighbours to places in tracks."""
