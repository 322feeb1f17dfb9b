"""What a report is about, read from the store: runs grouped by what they answered, speeds of indexes, sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench.degrade.queries import QuerySet
from bench.errors import ConfigError, StoreError
from bench.logbook.journal import EVENTS, Journal
from bench.reports.paper import with_settings
from bench.results import CONFIG, CURVES, STUDY, SUMMARY, TRIALS, Result, find_run, load_result
from bench.store import Store, read_frame, read_json

ANSWER = ("query", "hit", "near", "track_hit", "rank", "found_s", "start_s", "track_id", "found_track_id")
HIT_COLUMNS = (*ANSWER, "cell", "length_s", "index", "sequence")
SEARCH = "search.json"


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from: tags, digests of data by what they were used for, when it began, what it took in all."""

    tags: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    began_ms: int | None = None
    took_ms: int = 0


@dataclass(frozen=True)
class Run:
    """A finished run. Of its hits only those of its first index and sequence search are held."""

    result: Result
    settings: Mapping[str, Any]
    provenance: Provenance

    @property
    def key(self) -> str:
        """Return the run's key."""
        return str(self.result.summary["run"])

    @property
    def encoder(self) -> str:
        """Return the encoder's name."""
        return str(self.result.summary["encoder"])


@dataclass(frozen=True)
class ComparisonKey:
    """What runs must share to be compared: benchmark, query set, first index and sequence search."""

    benchmark: str
    queries: str
    index: str
    sequence: str


@dataclass(frozen=True)
class Study:
    """A sweep: its facts, a row a trial, and the intermediate values of each."""

    name: str
    about: Mapping[str, Any]
    trials: pd.DataFrame
    curves: pd.DataFrame


@dataclass(frozen=True)
class ReportData:
    """All that a report shows. `comparable_runs` holds the runs that answered queries, by what they share, most runs first."""

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


def load_report_data(store: Store, wanted: Sequence[str]) -> ReportData:
    """Return the named runs and what belongs to them; of all of the store if none is named.

    The trials of a sweep are shown with their sweep, not among the runs, unless they are named.
    Raises: ConfigError if no run is finished or a name is not one run's; StoreError if a named run is damaged.
    """
    studies = _load_studies(store)
    keys, left_out = [find_run(store, name).name for name in wanted], []
    if not wanted:
        find_run(store, None)
        trials = {str(key) for study in studies for key in study.trials["run"]}
        keys = sorted({path.parent.name for path in (store.root / "runs").glob(f"*/{SUMMARY}")} - trials)
        if not keys:
            raise ConfigError(f"every run in {store.root} is the trial of a sweep; name those that the report is about")
    runs = []
    for key in dict.fromkeys(keys):
        try:
            runs.append(_load_run(store, key))
        except StoreError as error:
            if wanted:
                raise
            left_out.append(f"run {key[:6]}: {error}")
    searches = [read_json(path) for path in sorted((store.root / "speed").glob(f"*/{SEARCH}"))]
    if wanted:
        searches = [search for search in searches if search["run"] in keys]
        studies = [study for study in studies if {*study.trials["run"], _find_promoted_run(study)} & set(keys)]
    aligned = [run for run in runs if len(run.result.alignment)]
    return ReportData(store, _group_comparable(runs), aligned, searches, studies, left_out)


def load_query_set(store: Store, key: str) -> QuerySet | None:
    """Return the query set of this key, None if it is not in the store any more."""
    folder = store.folder("queries", key)
    stem = folder / "music.i16"
    try:
        table = read_frame(folder / "queries.parquet")
    except StoreError:
        return None
    if not stem.is_file():
        return None
    return QuerySet(folder, table, stem.stat().st_size // (2 * len(table)), key)


def _load_run(store: Store, key: str) -> Run:
    result = load_result(store, key)
    folder = store.root / "runs" / key
    if len(result.hits):
        summary, hits = result.summary, result.hits
        own = (hits["index"] == summary["index"]) & (hits["sequence"] == summary["sequence"])
        result = replace(result, hits=hits.loc[own, [name for name in HIT_COLUMNS if name in hits]])
    settings = read_json(folder / CONFIG)
    return Run(with_settings(result, settings), settings, _load_provenance(folder))


def _load_provenance(folder: Path) -> Provenance:
    """Return what the run's journal says of its origin; nothing if it has none."""
    tags: dict[str, str] = {}
    digests: dict[str, str] = {}
    began_ms: list[int] = []  # of its sessions: a run that was resumed has several
    took_ms = 0
    for events, _ in Journal(folder).read() if (folder / EVENTS).is_file() else ():
        for event in events:
            if event["kind"] == "tags":
                tags |= event["values"]
            elif event["kind"] == "dataset":
                digests[f"{event['name']}, {event['context']}"] = event["digest"]
            elif event["kind"] == "status":
                if event["value"] == "RUNNING":
                    began_ms.append(event["ms"])
                elif began_ms:
                    took_ms += event["ms"] - began_ms[-1]
    return Provenance(tags, digests, min(began_ms, default=None), took_ms)


def _group_comparable(runs: Sequence[Run]) -> dict[ComparisonKey, list[Run]]:
    asked: dict[ComparisonKey, list[Run]] = {}
    for run in runs:
        if run.result.rows.empty:
            continue
        summary = run.result.summary
        queries = ", ".join(sorted(run.result.rows["queries"].unique()))
        key = ComparisonKey(str(summary["benchmark"]), queries, str(summary["index"]), str(summary["sequence"]))
        asked.setdefault(key, []).append(run)
    return dict(sorted(asked.items(), key=lambda item: -len(item[1])))


def _load_studies(store: Store) -> list[Study]:
    found = []
    for path in sorted((store.root / "sweeps").glob(f"*/{STUDY}")):
        trials, curves = path.with_name(TRIALS), path.with_name(CURVES)
        if not trials.is_file():
            continue  # a sweep that has just begun
        curve = read_frame(curves) if curves.is_file() else pd.DataFrame(columns=["number", "step", "value"])
        table = read_frame(trials)
        found.append(Study(path.parent.name, read_json(path), table.assign(run=table["run"].fillna("")), curve))
    return found


def _find_promoted_run(study: Study) -> str:
    return str((study.about.get("promoted") or {}).get("run", ""))
