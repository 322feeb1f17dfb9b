"""Finds finished runs and sweeps in the store, by the beginning of their names, and opens them.

A run is found once. Its settings, summary, weights and result then all come from the same run, even if another run
finishes in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench import registry
from bench.config import format_plugin_name, restore_config
from bench.device import usable_device, use_full_fp32
from bench.errors import ConfigError, PluginError
from bench.fingerprint import Embedder
from bench.plugin_check import build_encoder
from bench.registry import format_unknown
from bench.results import CONFIG, SUMMARY, Result, read_result, read_summary
from bench.settings import RunConfig
from bench.store import Store, read_json
from bench.train import checkpoint
from bench.train.checkpoint import WEIGHTS

RUNS, SWEEPS = "runs", "sweeps"
STUDY, TRIALS, CURVES = "study.json", "trials.parquet", "curves.parquet"  # the files of a sweep's folder


@dataclass(frozen=True)
class Weights:
    """Trained weights in the store."""

    path: Path

    key: str
    """Their content key, which is part of the key of every fingerprint computed with them."""


@dataclass(frozen=True)
class FinishedRun:
    """A run whose result is in the store."""

    store: Store
    folder: Path

    settings: Mapping[str, Any]
    """Its settings by dotted name."""

    summary: Mapping[str, Any]
    """The content of its `result.json`."""

    @property
    def key(self) -> str:
        """Return the run's key, the name of its folder."""
        return self.folder.name

    @property
    def encoder(self) -> str:
        """Return the encoder's name; empty if the run is of a matcher."""
        return str(self.settings.get("encoder", ""))

    @property
    def matcher(self) -> str:
        """Return the matcher's name with its preset; empty if the run is of an encoder."""
        return str(self.settings.get("matcher", ""))

    @property
    def system(self) -> str:
        """Return the name of what was tested."""
        return self.encoder or self.matcher

    def load_result(self) -> Result:
        """Return the result with all its tables. Raises: StoreError if a file is damaged."""
        return read_result(self.folder)

    def weights(self) -> Weights:
        """Return the weights that the run tested. Raises: ConfigError if they are no longer in the store."""
        if self.matcher:
            raise ConfigError(
                f"the run {self.key} is of the matcher {self.matcher}, which has no weights; name another run"
            )
        key = self.summary["checkpoint"]["key"]
        path = self.store.folder("weights", key) / WEIGHTS
        if not path.is_file():
            raise ConfigError(f"the weights of the run {self.key} are not in the store; name a run that trained here")
        return Weights(path, key)

    def load_plugin(self, model: str | None = None) -> ModuleType:
        """Return the plug-in of the encoder or matcher; `model` is its file, for one of the user's.

        Raises: PluginError if it is not installed and no file is given.
        """
        kind = "matcher" if self.matcher else "encoder"
        name = self.system.partition(":")[0]
        if model is None and name not in registry.names(kind):
            raise PluginError(
                f"the run {self.key[:6]} is of the {kind} {name!r}, which is not installed; give its file as --model, "
                "or another run as --run"
            )
        return registry.load(kind, model or name)

    def is_loadable(self, model: str | None = None) -> bool:
        """Return whether the run's encoder is installed here, or its file is given; a matcher is no encoder."""
        return not self.matcher and (model is not None or self.encoder in registry.names("encoder"))

    def restore_config(
        self,
        plugin: ModuleType,
        *,
        without: Iterable[str] = (),
        changes: Mapping[str, Any] | None = None,
        overrides: Iterable[str] = (),
    ) -> RunConfig:
        """Return the run's configuration, checked again.

        `without` names sections (`index`) or settings to reset to their defaults; `changes` maps dotted names to new
        values, and `overrides` are strings as `--set` takes them.
        Raises: ConfigError if this version has other settings than the version that wrote the run.
        """
        dropped = tuple(without)
        settings = {
            name: value
            for name, value in self.settings.items()
            if not any(name == path or name.startswith(f"{path}.") for path in dropped)
        }
        return restore_config(self.system, plugin, settings | dict(changes or {}), overrides)

    def embedder(
        self, device: torch.device | None = None, precision: str | None = None, model: str | None = None
    ) -> Embedder:
        """Return the run's encoder with its weights, ready to embed.

        The defaults of `device` and `precision` are the run's settings (`device`, `eval.precision`); a run on a GPU
        is opened on the CPU if this machine has no GPU. `model` is as in `load_plugin`.
        Raises: ConfigError if the weights are gone, PluginError if the encoder is not installed.
        """
        weights, plugin = self.weights(), self.load_plugin(model)
        # The encoder needs no index, aligner or data set; those of the run may not be installed here.
        without = ("index", "eval.indexes", "aligner", "align", "pairs", "data", "music")
        config = self.restore_config(plugin, without=without)
        encoder = build_encoder(plugin, self.encoder, config.model)
        checkpoint.load_weights(encoder, weights.path)
        device = device or usable_device(config.device)
        use_full_fp32()
        return Embedder(encoder.to(device).eval(), device, precision or config.eval.precision, weights.key)


def list_runs(store: Store) -> list[str]:
    """Return the keys of all finished runs, oldest first."""
    return [path.parent.name for path in _by_time(store.root / RUNS, SUMMARY)]


def find_run(store: Store, run: str | None = None) -> FinishedRun:
    """Return the finished run whose key begins with `run`; by default the latest run.

    Raises: ConfigError if there is none, or if several keys begin with `run`.
    """
    keys = list_runs(store)
    if not keys:
        raise ConfigError(f"no finished run in the store {store.root}; start one with `bench run --model NAME`")
    matches = [key for key in keys if key.startswith(run)] if run else keys[-1:]
    if len(matches) != 1:
        raise ConfigError(_describe_ambiguity("run", "runs", str(run), matches, keys))
    folder = store.root / RUNS / matches[0]
    return FinishedRun(store, folder, read_json(folder / CONFIG), read_summary(folder))


def find_latest_loadable(store: Store, model: str | None = None) -> FinishedRun | None:
    """Return the latest run whose encoder is installed here, None if there is none.

    If `model` is given, the path of an encoder's file, return the latest run of that encoder.
    Raises: ConfigError if no run is of the encoder `model`.
    """
    keys = list_runs(store)
    for key in reversed(keys):
        finished = find_run(store, key)
        if finished.is_loadable() if model is None else finished.encoder == format_plugin_name(model):
            return finished
    if keys and model is not None:
        raise ConfigError(f"no run is of the encoder {format_plugin_name(model)!r} ({model}); name a run as --run")
    return None


def find_study(store: Store, study: str | None = None) -> Path:
    """Return the folder of the sweep whose study's name begins with `study`; by default of the latest sweep.

    `study` may also be the beginning of the digest at the end of the name. Raises: ConfigError as `find_run`.
    """
    studies = _by_time(store.root / SWEEPS, STUDY)
    if not studies:
        raise ConfigError(f"no sweep in the store {store.root}; start one with `bench sweep --model NAME`")
    names = [path.parent.name for path in studies]
    matches = [n for n in names if study is None or n.startswith(study) or n.rpartition(".")[2].startswith(study)]
    if not matches or (study is not None and len(matches) > 1):
        raise ConfigError(_describe_ambiguity("study", "studies", str(study), matches, names))
    return store.root / SWEEPS / matches[-1]


def _by_time(folder: Path, name: str) -> list[Path]:
    """Return the files of this name in the subfolders, oldest first."""
    return sorted(folder.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime)


def _describe_ambiguity(singular: str, plural: str, name: str, matches: list[str], known: list[str]) -> str:
    return f"{len(matches)} {plural} begin with {name!r}" if matches else format_unknown(singular, name, known)
