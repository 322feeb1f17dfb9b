"""Experiment tracking: logs runs to a journal on disk, and from there to MLflow. No other package imports mlflow."""

from bench.logbook.book import Logbook, is_open, open_book
from bench.logbook.model_registry import SCHEME, Package, RegisteredModel, alias_tags, fetch_model, register
from bench.logbook.provenance import labels, provenance
from bench.logbook.redact import redact, without_password
from bench.logbook.sync import sync
from bench.logbook.ui import serve
from bench.logbook.uploader import check_storage, check_tracking, first_line

__all__ = [
    "SCHEME",
    "Logbook",
    "Package",
    "RegisteredModel",
    "alias_tags",
    "check_storage",
    "check_tracking",
    "fetch_model",
    "first_line",
    "is_open",
    "labels",
    "open_book",
    "provenance",
    "redact",
    "register",
    "serve",
    "sync",
    "without_password",
]
