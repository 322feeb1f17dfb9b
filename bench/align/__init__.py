"""Aligning two recordings: finding the time in one recording of each time in the other."""
