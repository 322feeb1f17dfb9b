"""Indexes, one file each."""
