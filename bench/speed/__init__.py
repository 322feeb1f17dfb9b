"""Measures how fast encoders and indexes are on this machine, and how far encoders are from its limits."""
