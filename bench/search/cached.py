"""An index over a database: built, or read back from the store."""

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

FORMAT = 1
NO_VERSION = ""  # of a library that is not installed, or of none


def build_or_load(store: Store, plugin: ModuleType, config: Any, vectors_ND: Floats, key: str) -> Index:
    """Return the index of a plug-in over vectors whose content `key` names.

    Where the plug-in can save its index it is kept in the store, under a key of the vectors, the settings, the
    plug-in's source and the version of its library, and read back from there.
    Raises: PluginError if its library is missing; StoreError if the kept files are damaged.
    """
    if not keeps(plugin, config):
        index: Index = plugin.build(config, vectors_ND)
        return index

    def build(folder: Path) -> None:
        kept = folder / "index"
        kept.mkdir(exist_ok=True)
        plugin.save(plugin.build(config, vectors_ND), kept)

    folder = store.fetch("indexes", index_key(plugin, config, key), build)
    loaded: Index = plugin.load(config, folder / "index", vectors_ND)
    return loaded


def keeps(plugin: ModuleType, config: Any) -> bool:
    """Say whether an index with these settings can be saved and loaded."""
    return hasattr(plugin, "load") and (not hasattr(plugin, "keeps") or bool(plugin.keeps(config)))


def index_key(plugin: ModuleType, config: Any, key: str) -> str:
    """Return the content key of an index: settings that only matter when it is asked are not in it."""
    library = getattr(plugin, "LIBRARY", NO_VERSION)
    asked = getattr(plugin, "QUERY_SETTINGS", ())
    of_build = {name: value for name, value in asdict(config).items() if name not in asked}
    return digest(FORMAT, key, registry.source_digest(plugin), of_build, library, version_of(library))


def version_of(distribution: str) -> str:
    """Return the installed version of a library, empty where there is none."""
    try:
        return importlib.metadata.version(distribution) if distribution else NO_VERSION
    except importlib.metadata.PackageNotFoundError:
        return NO_VERSION
