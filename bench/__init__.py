"""afp-bench: train, evaluate and track audio-fingerprint models."""

__version__ = "0.5.0"
