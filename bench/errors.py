"""The errors that users see. Each message says what happened, the offending value, and what to do."""


class BenchError(Exception):
    """The base of all errors meant for users; the command line prints them without a traceback."""

    exit_code = 1


class ConfigError(BenchError):
    """A setting is wrong; raised before any work starts."""

    exit_code = 2


class DataError(BenchError):
    """An input file or folder cannot be used."""

    exit_code = 2


class PluginError(BenchError):
    """A plug-in is missing or broken, or does not meet its contract."""

    exit_code = 2


class Pruned(Exception):  # noqa: N818 - a signal, not an error
    """Signals that a sweep stopped this trial early, as others do better; the trial has no result."""


class StoreError(BenchError):
    """Something in the store is damaged, does not fit, or cannot be written."""
