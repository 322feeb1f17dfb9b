"""The former name of `model_registry`, which models registered by version 0.4 and earlier name as their loader."""

from bench.logbook.model_registry import _load_pyfunc

__all__ = ["_load_pyfunc"]
