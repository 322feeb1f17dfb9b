"""Compiled loops for the CPU, where torch would read and write the same maps several times, or computes slowly."""
