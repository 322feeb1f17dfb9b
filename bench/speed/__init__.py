"""Measurements: how fast an encoder and an index are on this machine, and how far from its floor."""
