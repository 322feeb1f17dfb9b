"""Builds the index of a database, or loads it from the store if it was built before."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import registry
from bench.search.contract import Index
from bench.store import Store, digest
from bench.values import Floats

FORMAT = 1  # version of the saved indexes; part of their keys
NO_VERSION = ""  # for plug-ins without a library, and for libraries that are not installed


def build_or_load(store: Store, plugin: ModuleType, config: Any, vectors_ND: Floats, key: str) -> Index:
    """Return a plug-in's index of vectors; `key` identifies the content of the vectors.

    If the plug-in can save its index, the index is stored under a key of the vectors, the settings, the plug-in's
    source and the version of its library, and loaded from there the next time.
    Raises: PluginError if the library is missing; StoreError if the stored files are damaged.
    """
    if not keeps(plugin, config):
        index: Index = plugin.build(config, vectors_ND)
        return index

    def build(folder: Path) -> None:
        index_folder = folder / "index"
        index_folder.mkdir(exist_ok=True)
        plugin.save(plugin.build(config, vectors_ND), index_folder)

    folder = store.fetch("indexes", build_key(plugin, config, key), build)
    loaded: Index = plugin.load(config, folder / "index", vectors_ND)
    return loaded


def keeps(plugin: ModuleType, config: Any) -> bool:
    """Return whether an index with these settings can be saved and loaded."""
    return hasattr(plugin, "load") and (not hasattr(plugin, "keeps") or bool(plugin.keeps(config)))


def build_key(plugin: ModuleType, config: Any, key: str) -> str:
    """Return the content key of what a plug-in builds of content `key`, without settings that affect queries alone."""
    library = getattr(plugin, "LIBRARY", NO_VERSION)
    query_settings = getattr(plugin, "QUERY_SETTINGS", ())
    build_settings = {name: value for name, value in asdict(config).items() if name not in query_settings}
    return digest(FORMAT, key, registry.source_digest(plugin), build_settings, library, version_of(library))


def version_of(distribution: str) -> str:
    """Return the installed version of a library, NO_VERSION if it is not installed."""
    try:
        return importlib.metadata.version(distribution) if distribution else NO_VERSION
    except importlib.metadata.PackageNotFoundError:
        return NO_VERSION
