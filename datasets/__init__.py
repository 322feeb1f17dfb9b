"""Data sets of music, noise, impulse responses and recorder pairs: each module is one plug-in."""
