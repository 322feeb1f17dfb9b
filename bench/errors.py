"""The errors a user can meet. Each says what happened, the offending value, and what to do."""


class BenchError(Exception):
    """Is the root of every error meant for the user; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(BenchError):
    """Says that a setting is wrong; raised before any work starts."""

    exit_code = 2


class DataError(BenchError):
    """Says that an input file or folder cannot be used."""

    exit_code = 2


class PluginError(BenchError):
    """Says that an encoder, data set or index is missing, broken or does not meet its contract."""

    exit_code = 2


class Pruned(Exception):  # noqa: N818 - it is none
    """Says that a trial of a sweep was ended early because others do better: no error, and no result."""


class StoreError(BenchError):
    """Says that something in the store is corrupt, does not fit, or cannot be written."""
