"""Tunes an index: finds the fastest settings that reach a given recall of the true nearest neighbours.

An index plug-in that can be tuned has `trials(config, vectors_ND)`. It yields groups; a group yields settings with
their index in the order of rising effort, and its indexes share what was built.

Shape legend: N database vectors, Q queries, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench import registry
from bench.catalogue.folder import Catalogue
from bench.errors import ConfigError, DataError
from bench.search.contract import Index
from bench.values import Floats, Ints, Progress


@dataclass(frozen=True)
class Trial:
    """The recall and cost of an index with one set of settings."""

    config: Any

    recall: float
    """The share of queries whose true nearest vector it found first."""

    batch_ms: float
    """The time per query when all are searched at once, on all cores."""

    num_bytes: int


def run_trials(
    plugin: ModuleType, config: Any, vectors_ND: Floats, queries_QD: Floats, truth_Q: Ints, recall: float
) -> Iterator[Trial]:
    """Yield each trial. `truth_Q` are the numbers of the true nearest vectors.

    Once a trial reaches the recall, the rest of its group is skipped: more effort only takes longer.
    Raises: ConfigError if the index has nothing to tune.
    """
    if not hasattr(plugin, "trials"):
        raise ConfigError(f"the index {Path(str(plugin.__file__)).stem!r} has nothing to tune; try falconn")
    for group in plugin.trials(config, vectors_ND):
        for settings, index in group:
            trial = _measure(settings, index, queries_QD, truth_Q)
            yield trial
            if trial.recall >= recall:
                break


def best_trial(trials: Sequence[Trial], recall: float) -> Trial | None:
    """Return the fastest trial that reached the recall, None if none did."""
    reached = [trial for trial in trials if trial.recall >= recall]
    return min(reached, key=lambda trial: trial.batch_ms, default=None)


def tune_index(catalogue: Catalogue, index: str, recall: float, progress: Progress) -> list[Trial]:
    """Return trials of an index over the catalogue's fingerprints, with its calibration fingerprints as queries.

    Raises: ConfigError if the index has nothing to tune; DataError if the catalogue was not calibrated.
    """
    plugin = registry.load("index", index)
    queries_QD, vectors_ND = np.array(catalogue.calibration_QD), catalogue.database.vectors
    if not len(queries_QD):
        raise DataError(f"{catalogue.folder} has no degraded fingerprints to search with; it needs at least two tracks")
    exact = registry.load("index", "exact")
    truth_Q = exact.build(exact.Config(), vectors_ND).neighbours(queries_QD, 1)[:, 0]
    trials = []
    for trial in run_trials(plugin, plugin.Config(), vectors_ND, queries_QD, truth_Q, recall):
        trials.append(trial)
        progress("trials", len(trials), len(trials) + 1)
    progress("trials", len(trials), len(trials))
    return trials


def _measure(config: Any, index: Index, queries_QD: Floats, truth_Q: Ints) -> Trial:
    began_s = time.perf_counter()
    nearest_Q = index.neighbours(queries_QD, 1)[:, 0]
    batch_ms = 1000 * (time.perf_counter() - began_s) / len(queries_QD)
    return Trial(config, float(np.mean(nearest_Q == truth_Q)), batch_ms, index.num_bytes)
