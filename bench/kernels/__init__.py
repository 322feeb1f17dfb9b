"""Compiled loops for the CPU, where torch or NumPy would pass over the same arrays several times, or compute slowly."""
