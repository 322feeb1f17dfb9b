"""Aligner plug-ins, one file each."""
