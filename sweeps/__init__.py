"""Hyper-parameter sweeps: search spaces and workers."""
