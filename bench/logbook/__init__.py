"""The logbook: what a run did, on disk first, and from there in MLflow. The only importer of mlflow."""

from bench.logbook.book import Logbook, is_open, open_book
from bench.logbook.courier import first_line
from bench.logbook.provenance import labels, provenance
from bench.logbook.registered import SCHEME, Package, Registered, alias_tags, fetched, register
from bench.logbook.sync import sync
from bench.logbook.ui import serve

__all__ = [
    "SCHEME",
    "Logbook",
    "Package",
    "Registered",
    "alias_tags",
    "fetched",
    "first_line",
    "is_open",
    "labels",
    "open_book",
    "provenance",
    "register",
    "serve",
    "sync",
]
