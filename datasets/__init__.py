"""Corpora of music, noise and impulse responses, one file each. The module is the plug-in."""
