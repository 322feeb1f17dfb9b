"""The old address of `model_registry`: models that 0.4 and earlier registered name this module as their loader."""

from bench.logbook.model_registry import _load_pyfunc

__all__ = ["_load_pyfunc"]
