"""Loads what the HTML report shows from the store: runs grouped by comparability, measurements of indexes, sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from bench.degrade.queries import QuerySet
from bench.errors import ConfigError, StoreError
from bench.logbook.journal import Provenance, read_provenance
from bench.reports.paper import with_settings
from bench.results import Result
from bench.runs import CURVES, STUDY, TRIALS, FinishedRun, find_run, list_runs
from bench.store import Store, read_frame, read_json
from bench.values import OWN

ANSWER = ("query", "hit", "near", "track_hit", "rank", "found_s", "start_s", "track_id", "found_track_id")
HIT_COLUMNS = (*ANSWER, "cell", "length_s", "index", "sequence")
SEARCH = "search.json"


@dataclass(frozen=True)
class Run:
    """A finished run. Its hits are only those with its first index and headline sequence search."""

    result: Result
    settings: Mapping[str, Any]
    provenance: Provenance

    @property
    def key(self) -> str:
        """Return the run's key."""
        return str(self.result.summary["run"])

    @property
    def system(self) -> str:
        """Return the name of the encoder, or of the matcher with its preset."""
        return str(self.result.summary["system"])


@dataclass(frozen=True)
class ComparisonKey:
    """What runs must share to be compared: benchmark, query set, first index and sequence search."""

    benchmark: str
    queries: str
    index: str
    sequence: str


@dataclass(frozen=True)
class Study:
    """A sweep: its facts, one row per trial, and the intermediate values of each trial."""

    name: str
    about: Mapping[str, Any]
    trials: pd.DataFrame
    curves: pd.DataFrame


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows.

    `comparable_runs` holds the runs that answered queries, grouped by their comparison key, the largest group first.
    """

    store: Store
    comparable_runs: Mapping[ComparisonKey, Sequence[Run]]
    aligned: Sequence[Run]
    searches: Sequence[Mapping[str, Any]]
    studies: Sequence[Study]
    left_out: Sequence[str]

    @property
    def runs(self) -> list[Run]:
        """Return every run once."""
        answered = [run for runs in self.comparable_runs.values() for run in runs]
        return answered + [run for run in self.aligned if run.result.rows.empty]


def load_report_data(store: Store, names: Sequence[str]) -> ReportData:
    """Return the named runs with their sweeps and measurements, or everything in the store if none is named.

    The trials of a sweep are shown with their sweep, not among the runs, unless they are named.
    Raises: ConfigError if no run is finished or a name does not identify exactly one run; StoreError if a named run is
    damaged.
    """
    studies = _load_studies(store)
    keys = [find_run(store, name).key for name in names] or _keys_outside_sweeps(store, studies)
    runs, left_out = [], []
    for key in dict.fromkeys(keys):
        try:
            runs.append(_load_run(find_run(store, key)))
        except StoreError as error:
            if names:
                raise
            left_out.append(f"run {key[:6]}: {error}")
    searches = [read_json(path) for path in sorted((store.root / "speed").glob(f"*/{SEARCH}"))]
    if names:
        searches = [search for search in searches if search["run"] in keys]
        studies = [study for study in studies if {*study.trials["run"], _find_promoted_run(study)} & set(keys)]
    aligned = [run for run in runs if len(run.result.alignment)]
    return ReportData(store, _group_comparable(runs), aligned, searches, studies, left_out)


def _keys_outside_sweeps(store: Store, studies: Sequence[Study]) -> list[str]:
    """Return the keys of all finished runs except trials of sweeps. Raises: ConfigError if there are none."""
    finished = list_runs(store) or [find_run(store).key]  # find_run raises the error for a store without runs
    trials = {str(key) for study in studies for key in study.trials["run"]}
    keys = sorted(set(finished) - trials)
    if not keys:
        raise ConfigError(f"every run in {store.root} is the trial of a sweep; name the trials to report on")
    return keys


def load_query_set(store: Store, key: str) -> QuerySet | None:
    """Return the query set of this key, None if it is no longer in the store."""
    folder = store.folder("queries", key)
    stem = folder / "music.i16"
    try:
        table = read_frame(folder / "queries.parquet")
    except StoreError:
        return None
    if not stem.is_file():
        return None
    return QuerySet(folder, table, stem.stat().st_size // (2 * len(table)), key)


def _load_run(finished: FinishedRun) -> Run:
    result = finished.load_result()
    if len(result.hits):
        summary, hits = result.summary, result.hits
        headline = (hits["index"] == summary["index"]) & (hits["sequence"] == summary["sequence"])
        result = replace(result, hits=hits.loc[headline, [name for name in HIT_COLUMNS if name in hits]])
    return Run(with_settings(result, finished.settings), finished.settings, read_provenance(finished.folder))


def _group_comparable(runs: Sequence[Run]) -> dict[ComparisonKey, list[Run]]:
    groups: dict[ComparisonKey, list[Run]] = {}
    for run in runs:
        if run.result.rows.empty:
            continue
        summary = run.result.summary
        queries = ", ".join(sorted(run.result.rows["queries"].unique()))
        key = ComparisonKey(str(summary["benchmark"]), queries, str(summary["index"]), str(summary["sequence"]))
        groups.setdefault(key, []).append(run)
    _add_matchers(groups)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _add_matchers(groups: dict[ComparisonKey, list[Run]]) -> None:
    """Move the runs of matchers, whose search is their own, to the largest group of encoders on the same queries."""
    for own in [key for key in groups if key.index == OWN]:
        task = (own.benchmark, own.queries)
        beside = [key for key in groups if key.index != OWN and (key.benchmark, key.queries) == task]
        if beside:
            groups[max(beside, key=lambda key: len(groups[key]))] += groups.pop(own)


def _load_studies(store: Store) -> list[Study]:
    studies = []
    for path in sorted((store.root / "sweeps").glob(f"*/{STUDY}")):
        trials, curves = path.with_name(TRIALS), path.with_name(CURVES)
        if not trials.is_file():
            continue  # a sweep that has just started
        curve = read_frame(curves) if curves.is_file() else pd.DataFrame(columns=["number", "step", "value"])
        table = read_frame(trials)
        studies.append(Study(path.parent.name, read_json(path), table.assign(run=table["run"].fillna("")), curve))
    return studies


def _find_promoted_run(study: Study) -> str:
    return str((study.about.get("promoted") or {}).get("run", ""))
