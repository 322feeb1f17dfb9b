"""Aligning recorders: which time in one recording is which time in the other."""
