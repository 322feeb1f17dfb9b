"""afp-bench: trains, evaluates and tracks audio-fingerprint models."""

__version__ = "0.10.0"
