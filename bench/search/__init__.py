"""Searching the database: nearest-neighbour indexes behind one contract, and sequence search on top of them."""
