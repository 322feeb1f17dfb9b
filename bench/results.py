"""The result of a run: its tables, its headline numbers, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.align.evaluate import Alignments, alignment_headline, submission
from bench.align.pairs import Keypoints, write_keypoints
from bench.config import flatten_run, format_plugin_name
from bench.costs import COSTS
from bench.data import BenchmarkData
from bench.degrade.cells import list_cells
from bench.degrade.queries import GRID_DISTANCE
from bench.evaluate import SHUFFLED, UNSHUFFLED, Evaluation
from bench.fingerprint import RANDOM_PROJECTION
from bench.score.metrics import TOP1
from bench.score.rows import Row, score, to_frame
from bench.score.threshold import cross_fit_thresholds
from bench.settings import COUNTING_SEQUENCES, RunConfig
from bench.store import Store, digest, read_frame, read_json, write_frame, write_json
from bench.values import OWN, RATE_HZ, Cell

ROWS, HITS, CONDITIONS, SUMMARY, CONFIG = (
    "rows.parquet",
    "hits.parquet",
    "conditions.parquet",
    "result.json",
    "config.json",
)
ALIGNMENT, KEYPOINTS = "alignment.parquet", "keypoints.parquet"
SUBMISSIONS = "submissions"
TABLES = (ROWS, HITS, CONDITIONS, ALIGNMENT, KEYPOINTS, COSTS)
HEADLINE_SEQUENCE, HEADLINE_ALIGNER = "rescore", "fingerprint-path"
DISTORTED = ("speed", "tempo", "pitch", "codec", "dynamics", "device")  # kinds of cells that `v2` adds
DEGRADED = ("noise", "reverb", "noise_reverb", *DISTORTED)  # kinds of cells in the means
SHUFFLED_LABELS, MATCHED_FILTER = "shuffled-labels", "matched-filter"
ALIGNMENT_NUMBERS = ("align_mse/", "align_mae_ms/")


@dataclass(frozen=True)
class Result:
    """All that a run measured. The tables of a test that was not run are empty."""

    rows: pd.DataFrame
    """Identification: the metrics by system, cell, query length, index and sequence search."""

    hits: pd.DataFrame
    """Identification: one row per query, cell, query length, index and sequence search."""

    conditions: pd.DataFrame
    """Identification: the achieved SNR, t60 and distortion of each cell and query length."""

    summary: dict[str, Any]
    """The run's key and names, the headline numbers, and the seconds of each stage."""

    alignment: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Alignment: the errors of each aligner on each pair of recordings."""

    keypoints: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Alignment: the predicted and true times of each keypoint."""

    costs: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Identification: what an answer costs by index and query length (`bench.costs`)."""


def start_result(key: str, benchmark: str, config: RunConfig, facts: dict[str, Any]) -> Result:
    """Return the result of a run whose encoder is trained, or whose matcher is ready, but not yet tested."""
    names = {"run": key, "benchmark": benchmark, "preset": config.preset}
    names |= {"system": config.system, config.kind: config.system}
    return Result(to_frame([]), pd.DataFrame(), pd.DataFrame(), names | {"headline": {}} | facts)


def with_alignment(result: Result, alignments: Alignments) -> Result:
    """Return the result with the errors of all aligners."""
    summary = result.summary | {
        "headline": result.summary["headline"] | alignment_headline(alignments.files),
        "seconds": result.summary["seconds"] | {"alignment": alignments.seconds},
        "left_out_pairs": [f"{problem.name}: {problem.reason}" for problem in alignments.left_out],
    }
    return replace(result, alignment=alignments.files, keypoints=alignments.keypoints, summary=summary)


def with_segments(
    result: Result,
    store: Store,
    config: RunConfig,
    data: BenchmarkData,
    evaluation: Evaluation,
    floor: Evaluation,
    ceiling: Mapping[Cell, pd.DataFrame],
    crowds: Mapping[Cell, pd.DataFrame],
    costs: pd.DataFrame,
) -> Result:
    """Return the result with a system's hits, and those of two controls on the same queries.

    These are the random projection (`floor`) and the matched filter (`ceiling`, empty if it was left out). `crowds` are
    the scores of distractors (`bench.evaluate.score_crowds`), empty if there are none.
    """
    rows: list[Row] = []
    names = {name: result.summary[name] for name in ("run", "benchmark")} | {"queries": data.queries.key}
    of_run = names | {"recall_at": config.eval.recall_at}
    hits_of = add_thresholds(evaluation)
    for cell, hits in evaluation.hits.items():
        rows += score(hits_of[cell], cell, system=config.system, **of_run)
        if config.system != RANDOM_PROJECTION:
            rows += score(
                _select_truth(UNSHUFFLED, floor.hits[cell]),
                cell,
                system=RANDOM_PROJECTION,
                **of_run,
            )
        if cell in ceiling:
            rows += score(ceiling[cell], cell, system=MATCHED_FILTER, **of_run)
        if cell in crowds:
            rows += score_among(crowds[cell], hits_of[cell], cell, system=config.system, **of_run)
        rows += score(_select_truth(SHUFFLED, hits), cell, system=SHUFFLED_LABELS, **of_run)
    table = to_frame(rows)
    conditions = _conditions(store, config, data)
    controls = {f"control_{name}": seconds for name, seconds in floor.seconds.items()}
    index, sequence = headline_search(config)
    facts = evaluation.searcher.facts
    whole_s = result.summary.get("segment_s") or facts["shortest_query_s"]
    summary = result.summary | {
        "index": index,
        "sequence": sequence,
        "queries_per_cell": len(data.queries.table),
        "headline": result.summary["headline"] | headline(table, conditions, config, whole_s),
        "seconds": result.summary["seconds"] | data.seconds(store) | evaluation.seconds | controls,
    }
    summary |= facts
    return replace(
        result, rows=table, hits=_add_names(hits_of, data), conditions=conditions, costs=costs, summary=summary
    )


def score_among(crowd: pd.DataFrame, hits: pd.DataFrame, cell: Cell, **names: Any) -> list[Row]:
    """Return the rows of one cell's shortest queries by `diagonal`, for each origin and number of distractors.

    An answer holds as long as no distractor scores higher; among equal scores the database's own comes first.
    """
    own = hits[(hits["sequence"] == "diagonal") & (hits["length_s"] == hits["length_s"].min())].set_index("query")
    rows = []
    for origin, size in sorted(set(zip(crowd["origin"], crowd["distractors"], strict=True))):
        best = crowd[(crowd["origin"] == origin) & (crowd["distractors"] == size)]
        holds = own["score"] >= best.set_index("query")["score"].reindex(own.index)
        among = own.assign(**{column: own[column] & holds for column in ("hit", "near", "track_hit")})
        rows += score(among, cell, distractors=size, origin=origin, **names)
    return rows


def add_thresholds(evaluation: Evaluation) -> dict[Cell, pd.DataFrame]:
    """Return the hits of each cell, each with the threshold at which its answer is accepted.

    The threshold is NaN in the control `identity`, and for COUNTING_SEQUENCES, whose scores are no similarities.
    """
    table = pd.concat({cell.name: _select_truth(UNSHUFFLED, hits) for cell, hits in evaluation.hits.items()})
    table = table.assign(threshold=np.nan).rename_axis(["cell", None])
    has_threshold = (~table["sequence"].isin(COUNTING_SEQUENCES)) & (table.index.get_level_values("cell") != "identity")
    table.loc[has_threshold, "threshold"] = cross_fit_thresholds(table[has_threshold])
    return {cell: table.loc[[cell.name]].droplevel("cell") for cell in evaluation.hits}


def headline_search(config: RunConfig) -> tuple[str, str]:
    """Return the index and the sequence search that a run is compared by."""
    return (OWN, OWN) if config.matcher else (format_plugin_name(config.eval.indexes[0]), HEADLINE_SEQUENCE)


def headline(rows: pd.DataFrame, conditions: pd.DataFrame, config: RunConfig, segment_s: float) -> dict[str, float]:
    """Return the numbers to compare runs by: means over all degraded cells and query lengths, and the controls.

    `control/identity` is measured at the shortest query length that holds a whole segment of the encoder, or that the
    matcher can hear.
    """
    # 1. The system under test, and the controls.
    search = headline_search(config)
    system_rows = select_rows(rows, config.system, *search)
    shortest = min(config.eval.lengths_s)
    degraded = system_rows[system_rows["kind"].isin(DEGRADED)]
    floor = select_floor(rows)
    floor = floor[floor["length_s"] == shortest]
    whole = min((length_s for length_s in config.eval.lengths_s if length_s >= segment_s), default=shortest)
    identity = system_rows[(system_rows["kind"] == "identity") & (system_rows["metric"] == "segment_top1")]
    identity = identity[identity["length_s"] == whole]
    numbers = {
        "segment_top1/mean": mean_of(degraded, "segment_top1"),
        f"segment_top1/mean_{shortest:g}s": mean_of(degraded[degraded["length_s"] == shortest], "segment_top1"),
        "audio_top1/mean": mean_of(degraded, "audio_top1"),
        "false_accept/mean": mean_of(degraded, "false_accept"),
        "false_reject/mean": mean_of(degraded, "false_reject"),
        "control/identity": float(identity["value"].iloc[0]),
        "control/random_projection": mean_of(floor[floor["kind"].isin(DEGRADED)], "segment_top1"),
        "control/shuffled_labels": mean_of(select_rows(rows, SHUFFLED_LABELS, *search), "segment_top1"),
    }
    ceiling = select_rows(rows, MATCHED_FILTER, "exact", "verify")
    if len(ceiling):
        numbers["control/matched_filter"] = mean_of(ceiling[ceiling["kind"].isin(DEGRADED)], "segment_top1")
    # 2. The other indexes and sequence searches, as differences from the first index and HEADLINE_SEQUENCE.
    for name in () if config.matcher else config.eval.indexes[1:]:
        index = format_plugin_name(name)
        other = select_rows(rows, config.system, index)
        lost = mean_of(system_rows, "segment_top1") - mean_of(other, "segment_top1")
        numbers[f"index/{index}_loses_points"] = 100 * lost
    for sequence in () if config.matcher else config.eval.sequences:
        other = select_rows(rows[rows["kind"].isin(DEGRADED)], config.system, search[0], sequence)
        if sequence != HEADLINE_SEQUENCE and len(other):  # `diagonal` has rows under the index `exact` only
            gained = mean_of(other, "segment_top1") - numbers["segment_top1/mean"]
            numbers[f"sequence/{sequence}_gains_points"] = 100 * gained
    # 3. The largest difference between achieved and nominal SNR.
    if "snr_db_mean" in conditions:
        nominal = rows.drop_duplicates("cell").set_index("cell")["snr_db"].reindex(conditions["cell"]).to_numpy()
        off = pd.concat([conditions["snr_db_min"] - nominal, conditions["snr_db_max"] - nominal]).abs()
        numbers["conditions/largest_snr_error_db"] = float(off.max())
    return numbers


def select_rows(rows: pd.DataFrame, system: str, index: str, sequence: str = HEADLINE_SEQUENCE) -> pd.DataFrame:
    """Return the rows of one system, one index and one sequence search, without those among distractors."""
    is_wanted = (rows["system"] == system) & (rows["index"] == index) & (rows["sequence"] == sequence)
    return rows[is_wanted & (rows.get("distractors", 0) == 0)]  # rows of before 0.10.0 have no such column


def select_among_distractors(rows: pd.DataFrame, system: str) -> pd.DataFrame:
    """Return the rows of `diagonal` that tell top-1 by the size of the database, from no distractors on.

    Empty if the run has none. The rows without distractors have an `origin` of None.
    """
    if "origin" not in rows:
        return rows.iloc[:0]
    length_s = rows.loc[rows["origin"].notna(), "length_s"].unique()
    is_wanted = (rows["system"] == system) & (rows["sequence"] == "diagonal") & rows["metric"].isin(TOP1)
    return rows[is_wanted & rows["length_s"].isin(length_s)]


def format_database(summary: Mapping[str, Any]) -> str:
    """Return the size of the database that a run searched, in words."""
    tracks = f"{summary['database_tracks']:,} tracks"
    return f"{summary['database_vectors']:,} fingerprints of {tracks}" if "database_vectors" in summary else tracks


def write_result(folder: Path, result: Result, config: RunConfig) -> None:
    """Write a result into its run's folder; `result.json` comes last, as the sign that the rest is complete."""
    for name, table in named_tables(result):
        write_frame(folder / name, table)
    for path, rows in submissions(folder, result).items():
        path.parent.mkdir(exist_ok=True)
        write_keypoints(path, rows)
    write_json(folder / CONFIG, flatten_run(config))
    write_json(folder / SUMMARY, result.summary)


def submissions(folder: Path, result: Result) -> dict[Path, Mapping[str, Keypoints]]:
    """Return each aligner's answers to the pairs without annotation, by the file to submit to the challenge."""
    if result.keypoints.empty:
        return {}
    unknown_truth = result.keypoints[result.keypoints["time1_s"].isna()]
    return {
        folder / SUBMISSIONS / f"{set_name}-{split}-{str(aligner).replace(':', '-')}.csv": submission(
            rows, str(aligner)
        )
        for (set_name, split, aligner), rows in unknown_truth.groupby(["set", "split", "aligner"])
    }


def read_result(folder: Path) -> Result:
    """Return the result in a run's folder. Raises: StoreError if a file is damaged."""
    rows, hits, conditions, alignment, keypoints, costs = (
        read_frame(folder / name) if (folder / name).exists() else pd.DataFrame() for name in TABLES
    )
    if len(rows) and "distortion" not in rows:  # runs before 0.10.0 had none
        rows = rows.assign(distortion=None)
    if len(rows) and "distractors" not in rows:  # nor distractors
        rows = rows.assign(distractors=0, origin=None)
    return Result(rows, hits, conditions, read_summary(folder), alignment, keypoints, costs)


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of the run in a folder. Raises: StoreError if its file is damaged."""
    summary: dict[str, Any] = read_json(folder / SUMMARY)
    return {"system": summary.get("encoder"), **summary}  # runs before 0.9.0 had encoders only, and named no system


def named_tables(result: Result) -> list[tuple[str, pd.DataFrame]]:
    """Return file name and table of each table of a result that is not empty, and always ROWS."""
    tables = (result.rows, result.hits, result.conditions, result.alignment, result.keypoints, result.costs)
    return [(name, table) for name, table in zip(TABLES, tables, strict=True) if len(table) or name == ROWS]


def _conditions(store: Store, config: RunConfig, data: BenchmarkData) -> pd.DataFrame:
    """Return the achieved SNR and t60 of each cell and query length, measured once per query set."""
    cells, lengths_s = list_cells(config.eval), config.eval.lengths_s

    def build(folder: Path) -> None:
        measured = [
            {"cell": cell.name, "length_s": length_s} | data.queries.conditions(cell, length_s)
            for cell in cells
            for length_s in lengths_s
        ]
        write_frame(folder / CONDITIONS, pd.DataFrame(measured))

    key = digest(data.queries.key, [cell.name for cell in cells], lengths_s)
    return read_frame(store.fetch("conditions", key, build) / CONDITIONS)


def _select_truth(truth: str, hits: pd.DataFrame) -> pd.DataFrame:
    return hits[hits["truth"] == truth]


def headline_costs(result: Result) -> pd.DataFrame:
    """Return the costs of the headline search, one row per query length; empty if none were measured."""
    costs = result.costs
    if not len(costs):
        return costs
    is_headline = (costs["index"] == result.summary["index"]) & (costs["sequence"] == result.summary["sequence"])
    of_headline: pd.DataFrame = costs[is_headline]
    return of_headline


def select_floor(rows: pd.DataFrame, sequence: str = HEADLINE_SEQUENCE) -> pd.DataFrame:
    """Return the rows of the random projection by exact search; by HEADLINE_SEQUENCE beside a matcher or `verify`."""
    of_floor = HEADLINE_SEQUENCE if sequence in (OWN, "verify") else sequence
    return select_rows(rows, RANDOM_PROJECTION, "exact", of_floor)


def mean_of(rows: pd.DataFrame, metric: str) -> float:
    """Return the mean of one metric over rows; NaN if no row has it."""
    return float(rows.loc[rows["metric"] == metric, "value"].mean())


def _add_names(hits_of: dict[Cell, pd.DataFrame], data: BenchmarkData) -> pd.DataFrame:
    """Return the hits of all cells in one table, with the names of cells and the ids of tracks.

    In `v2` also the distance of each query's start to the nearest grid position, in ms.
    """
    hits = pd.concat([table.assign(cell=cell.name) for cell, table in hits_of.items()], ignore_index=True)
    if GRID_DISTANCE in data.queries.table:
        distance_ms_Q = data.queries.table[GRID_DISTANCE].to_numpy() * 1000 / RATE_HZ
        hits["grid_distance_ms"] = np.where(hits["cell"] == "identity", 0.0, distance_ms_Q[hits["query"]])
    ids = data.music.tracks["id"].to_numpy()
    return hits.drop(columns="truth").assign(
        track_id=ids[hits["track"]], found_track_id=[ids[t] if t >= 0 else "" for t in hits["found_track"]]
    )
