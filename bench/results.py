"""The result of a run: kept in its folder as data, and logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.align.evaluate import Alignments, aligner_specs, alignment_headline, submission, summarise_sets
from bench.align.pairs import Keypoints, write_keypoints
from bench.config import flatten
from bench.data import BenchmarkData
from bench.degrade.cells import list_cells
from bench.errors import ConfigError
from bench.evaluate import SHUFFLED, UNSHUFFLED, Evaluation
from bench.logbook import Logbook
from bench.registry import format_unknown
from bench.score.rows import Row, score, to_frame
from bench.score.threshold import cross_fit_thresholds
from bench.settings import RunConfig
from bench.store import Store, digest, read_frame, read_json, write_frame, write_json
from bench.train.loop import WEIGHTS
from bench.values import Cell

ROWS, HITS, CONDITIONS, SUMMARY, CONFIG = (
    "rows.parquet",
    "hits.parquet",
    "conditions.parquet",
    "result.json",
    "config.json",
)
ALIGNMENT, KEYPOINTS = "alignment.parquet", "keypoints.parquet"
SUBMISSIONS = "submissions"
STUDY, TRIALS, CURVES = "study.json", "trials.parquet", "curves.parquet"  # of a sweep, in its own folder
TABLES = (ROWS, HITS, CONDITIONS, ALIGNMENT, KEYPOINTS)
HEADLINE_SEQUENCE, HEADLINE_ALIGNER = "rescore", "fingerprint-path"
DEGRADED = ("noise", "reverb", "noise_reverb")
RANDOM_PROJECTION, SHUFFLED_LABELS = "random-projection", "shuffled-labels"
METRIC_KEYS = 60  # a run of MLflow has fewer
OTHER_KEYS = 4 + 8 + 5  # of them: training and validation, the machine, one GPU
STAGES_LOGGED = ("training", "database", "queries", "alignment")
ALIGNMENT_NUMBERS = ("align_mse/", "align_mae_ms/")


@dataclass(frozen=True)
class Weights:
    """Trained weights: the file, and the key under which the store keeps fingerprints made with them."""

    path: Path
    key: str


@dataclass(frozen=True)
class Result:
    """All that a run found out. `summary` has its key, names, headline numbers and seconds by stage.

    A part that was not tested has no rows: `rows`, `hits` and `conditions` are of segments, `alignment` (of files) and
    `keypoints` of recorders.
    """

    rows: pd.DataFrame
    hits: pd.DataFrame
    conditions: pd.DataFrame
    summary: dict[str, Any]
    alignment: pd.DataFrame = field(default_factory=pd.DataFrame)
    keypoints: pd.DataFrame = field(default_factory=pd.DataFrame)


def start_result(key: str, benchmark: str, config: RunConfig, facts: dict[str, Any]) -> Result:
    """Return the result of a run whose encoder is trained, and not yet tested."""
    names = {"run": key, "benchmark": benchmark, "encoder": config.encoder, "preset": config.preset}
    return Result(to_frame([]), pd.DataFrame(), pd.DataFrame(), names | {"headline": {}} | facts)


def with_alignment(result: Result, aligned: Alignments) -> Result:
    """Return the result with the errors of all aligners."""
    summary = result.summary | {
        "headline": result.summary["headline"] | alignment_headline(aligned.files),
        "seconds": result.summary["seconds"] | {"alignment": aligned.seconds},
        "left_out_pairs": [f"{problem.name}: {problem.reason}" for problem in aligned.left_out],
    }
    return replace(result, alignment=aligned.files, keypoints=aligned.keypoints, summary=summary)


def with_segments(
    result: Result, store: Store, config: RunConfig, data: BenchmarkData, found: Evaluation, floor: Evaluation
) -> Result:
    """Return the result with an encoder's hits, and those of the random projection on the same queries."""
    rows: list[Row] = []
    names = {name: result.summary[name] for name in ("run", "benchmark")} | {"queries": data.queries.key}
    own = add_thresholds(found)
    for cell, hits in found.hits.items():
        rows += score(own[cell], cell, system=config.encoder, **names)
        if config.encoder != RANDOM_PROJECTION:
            rows += score(_select_truth(UNSHUFFLED, floor.hits[cell]), cell, system=RANDOM_PROJECTION, **names)
        rows += score(_select_truth(SHUFFLED, hits), cell, system=SHUFFLED_LABELS, **names)
    table = to_frame(rows)
    conditions = _conditions(store, config, data)
    controls = {f"control_{name}": seconds for name, seconds in floor.seconds.items()}
    summary = result.summary | {
        "index": config.eval.indexes[0],
        "sequence": HEADLINE_SEQUENCE,
        "queries_per_cell": len(data.queries.table),
        "database_tracks": len(found.database.tracks),
        "database_vectors": len(found.database.vectors),
        "headline": result.summary["headline"] | headline(table, conditions, config, result.summary["segment_s"]),
        "seconds": result.summary["seconds"] | data.seconds(store) | found.seconds | controls,
    }
    return replace(result, rows=table, hits=_add_names(own, data), conditions=conditions, summary=summary)


def add_thresholds(found: Evaluation) -> dict[Cell, pd.DataFrame]:
    """Return the hits of each cell with the threshold that each is judged by, NaN where there is no such thing.

    That is in the control on the grid, and where the score is a share of votes.
    """
    own = pd.concat({cell.name: _select_truth(UNSHUFFLED, hits) for cell, hits in found.hits.items()})
    own = own.assign(threshold=np.nan).rename_axis(["cell", None])
    similar = (own["sequence"] != "vote") & (own.index.get_level_values("cell") != "identity")
    own.loc[similar, "threshold"] = cross_fit_thresholds(own[similar])
    return {cell: own.loc[[cell.name]].droplevel("cell") for cell in found.hits}


def headline(rows: pd.DataFrame, conditions: pd.DataFrame, config: RunConfig, segment_s: float) -> dict[str, float]:
    """Return the scalars to compare runs by: means over all degraded cells and lengths, and the controls.

    The control on the grid is that of the shortest query that holds a whole segment of the encoder.
    """
    own = select_rows(rows, config.encoder, config.eval.indexes[0])
    shortest = min(config.eval.lengths_s)
    degraded = own[own["kind"].isin(DEGRADED)]
    floor = select_rows(rows, RANDOM_PROJECTION, "exact")
    floor = floor[floor["length_s"] == shortest]
    whole = min((length_s for length_s in config.eval.lengths_s if length_s >= segment_s), default=shortest)
    identity = own[(own["kind"] == "identity") & (own["metric"] == "segment_top1") & (own["length_s"] == whole)]
    numbers = {
        "segment_top1/mean": _mean(degraded, "segment_top1"),
        f"segment_top1/mean_{shortest:g}s": _mean(degraded[degraded["length_s"] == shortest], "segment_top1"),
        "audio_top1/mean": _mean(degraded, "audio_top1"),
        "false_accept/mean": _mean(degraded, "false_accept"),
        "false_reject/mean": _mean(degraded, "false_reject"),
        "control/identity": float(identity["value"].iloc[0]),
        "control/random_projection": _mean(floor[floor["kind"].isin(DEGRADED)], "segment_top1"),
        "control/shuffled_labels": _mean(select_rows(rows, SHUFFLED_LABELS, config.eval.indexes[0]), "segment_top1"),
    }
    for index in config.eval.indexes[1:]:
        other = select_rows(rows, config.encoder, index)
        lost = _mean(own, "segment_top1") - _mean(other, "segment_top1")
        numbers[f"index/{index}_loses_points"] = 100 * lost
    for sequence in config.eval.sequences:
        other = select_rows(rows[rows["kind"].isin(DEGRADED)], config.encoder, config.eval.indexes[0], sequence)
        if sequence != HEADLINE_SEQUENCE and len(other):  # the search of all places stands under the exact index alone
            gained = _mean(other, "segment_top1") - numbers["segment_top1/mean"]
            numbers[f"sequence/{sequence}_gains_points"] = 100 * gained
    if "snr_db_mean" in conditions:
        nominal = rows.drop_duplicates("cell").set_index("cell")["snr_db"].reindex(conditions["cell"]).to_numpy()
        off = pd.concat([conditions["snr_db_min"] - nominal, conditions["snr_db_max"] - nominal]).abs()
        numbers["conditions/largest_snr_error_db"] = float(off.max())
    return numbers


def select_rows(rows: pd.DataFrame, system: str, index: str, sequence: str = HEADLINE_SEQUENCE) -> pd.DataFrame:
    """Return the rows of one system found with one index and sequence search."""
    return rows[(rows["system"] == system) & (rows["index"] == index) & (rows["sequence"] == sequence)]


def write_result(folder: Path, result: Result, config: RunConfig) -> None:
    """Write a result into its run's folder; `result.json` last, as the sign that all of it is there."""
    for name, table in _tables(result):
        write_frame(folder / name, table)
    for path, rows in submissions(folder, result).items():
        path.parent.mkdir(exist_ok=True)
        write_keypoints(path, rows)
    write_json(folder / CONFIG, flatten(config))
    write_json(folder / SUMMARY, result.summary)


def submissions(folder: Path, result: Result) -> dict[Path, Mapping[str, Keypoints]]:
    """Return the answers to pairs that nobody annotated, by the file in which the challenge wants an aligner's."""
    if result.keypoints.empty:
        return {}
    unknown_truth = result.keypoints[result.keypoints["time1_s"].isna()]
    return {
        folder / SUBMISSIONS / f"{set_name}-{split}-{str(aligner).replace(':', '-')}.csv": submission(own, str(aligner))
        for (set_name, split, aligner), own in unknown_truth.groupby(["set", "split", "aligner"])
    }


def log(book: Logbook, folder: Path, result: Result, config: RunConfig) -> None:
    """Log a result: curves over SNR (step in dB) and t60 (step in ms), scalars, the whole grid as a table, files.

    Metrics are what runs are compared by, fewer than METRIC_KEYS with those of training and of the machine, so that
    MLflow's list of runs and charts stay usable; the tables and `result.json` hold the rest.
    """
    curves = _curves(result, config)
    for name, step, value in curves:
        book.metrics({name: value}, step)
    numbers = _scalars(result)
    room = METRIC_KEYS - 1 - OTHER_KEYS - len({name for name, _, _ in curves}) - len(numbers)
    book.metrics(numbers | _select_alignment_errors(result, config, room))
    if len(result.rows):
        book.table("grid", result.rows)
    if len(result.alignment):
        book.table("alignment", summarise_sets(result.alignment))
    for name in (*(name for name, _ in _tables(result)), SUMMARY, CONFIG):
        book.artifact(folder / name)
    book.note(_note(result))


def _curves(result: Result, config: RunConfig) -> list[tuple[str, int, float]]:
    """Return (metric, step, value) of the headline search: tracks by the longest query alone, which knows them best."""
    own = select_rows(result.rows, config.encoder, config.eval.indexes[0])
    longest = own["metric"].eq("audio_top1") & own["length_s"].eq(max(config.eval.lengths_s))
    shown = own[own["kind"].isin(DEGRADED) & (own["metric"].eq("segment_top1") | longest)]
    return [
        (
            f"{row['metric']}_{row['length_s']:g}s/{row['kind']}",
            round(1000 * row["t60_s"] if row["kind"] == "reverb" else row["snr_db"]),
            row["value"],
        )
        for row in shown.to_dict("records")
    ]


def _scalars(result: Result) -> dict[str, float]:
    """Return the headline without alignment, and costs that depend on the encoder."""
    summary = result.summary
    numbers = {name: value for name, value in summary["headline"].items() if not name.startswith(ALIGNMENT_NUMBERS)}
    clean = select_rows(result.rows, summary["encoder"], summary.get("index", ""))
    if len(clean := clean[clean["kind"] == "clean"]):
        numbers["segment_top1/clean"] = _mean(clean, "segment_top1")
    spent = {f"cost/{stage}_s": summary["seconds"][stage] for stage in STAGES_LOGGED if stage in summary["seconds"]}
    return numbers | spent | {"cost/parameters": summary["parameters"]}


def _select_alignment_errors(result: Result, config: RunConfig, room: int) -> dict[str, float]:
    """Return the errors of as many aligners that use the encoder as there is room for, the best known one first.

    The others answer alike in every run; all are in the table `alignment`.
    """
    if result.alignment.empty:
        return {}
    hearing = [each.name for each in aligner_specs(config) if each.plugin.NEEDS_ENCODER]
    logged: dict[str, float] = {}
    for name in sorted(hearing, key=lambda name: name != HEADLINE_ALIGNER):
        headline, suffix = result.summary["headline"].items(), "/" + name.replace(":", "-")
        own = {k: v for k, v in headline if k.startswith(ALIGNMENT_NUMBERS) and k.endswith(suffix)}
        if len(logged) + len(own) <= room:
            logged |= own
    return logged


def load_result(store: Store, run: str | None) -> Result:
    """Return a kept result: of the run whose key begins so, or of the latest one.

    Raises: ConfigError if there is none, or more than one begins so.
    """
    folder = find_run(store, run)
    rows, hits, conditions, alignment, keypoints = (
        read_frame(folder / name) if (folder / name).exists() else pd.DataFrame() for name in TABLES
    )
    return Result(rows, hits, conditions, read_json(folder / SUMMARY), alignment, keypoints)


def _tables(result: Result) -> list[tuple[str, pd.DataFrame]]:
    """Return the file name of each table of a result that has any rows; the rows of segments are always there."""
    tables = (result.rows, result.hits, result.conditions, result.alignment, result.keypoints)
    return [(name, table) for name, table in zip(TABLES, tables, strict=True) if len(table) or name == ROWS]


def load_settings(store: Store, run: str | None) -> dict[str, Any]:
    """Return the settings of a kept run by their dotted names. Raises: ConfigError as `load_result`."""
    settings: dict[str, Any] = read_json(find_run(store, run) / CONFIG)
    return settings


def find_weights(store: Store, run: str | None) -> Weights:
    """Return the weights that a kept run trained. Raises: ConfigError as `load_result`, or if they are gone."""
    folder = find_run(store, run)
    key = read_json(folder / SUMMARY)["checkpoint"]["key"]
    path = store.folder("weights", key) / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"the weights of the run {folder.name} are not in the store; name a run that trained here")
    return Weights(path, key)


def find_run(store: Store, run: str | None) -> Path:
    """Return the folder of the finished run whose key begins so, or of the latest. Raises: ConfigError."""
    found = sorted((store.root / "runs").glob(f"*/{SUMMARY}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"no finished run in the store {store.root}; start one with `bench run --model NAME`")
    folders = {path.parent.name: path.parent for path in found}
    matches = [name for name in folders if name.startswith(run)] if run else [found[-1].parent.name]
    if len(matches) != 1:
        problem = (
            f"{len(matches)} runs begin with {run!r}" if matches else format_unknown("run", str(run), list(folders))
        )
        raise ConfigError(problem)
    return folders[matches[0]]


def find_study(store: Store, study: str | None) -> Path:
    """Return the folder of a sweep by the beginning of its study's name, or of the latest one. Raises: ConfigError."""
    found = sorted((store.root / "sweeps").glob(f"*/{STUDY}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"no sweep in the store {store.root}; begin one with `bench sweep --model NAME`")
    folders = {path.parent.name: path.parent for path in found}
    # By the digest at its end too, as nobody wants to type the rest.
    matches = [n for n in folders if study is None or n.startswith(study) or n.rpartition(".")[2].startswith(study)]
    if not matches or (study is not None and len(matches) > 1):
        raise ConfigError(
            f"{len(matches)} studies begin with {study!r}"
            if matches
            else format_unknown("study", str(study), list(folders))
        )
    return folders[matches[-1]]


def _conditions(store: Store, config: RunConfig, data: BenchmarkData) -> pd.DataFrame:
    """Return the achieved SNR and t60 of each cell and length; measured once for a query set."""
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


def _mean(rows: pd.DataFrame, metric: str) -> float:
    return float(rows.loc[rows["metric"] == metric, "value"].mean())


def _add_names(own: dict[Cell, pd.DataFrame], data: BenchmarkData) -> pd.DataFrame:
    """Return all hits in one frame, with cells and track ids by name."""
    hits = pd.concat([found.assign(cell=cell.name) for cell, found in own.items()], ignore_index=True)
    ids = data.music.tracks["id"].to_numpy()
    return hits.drop(columns="truth").assign(
        track_id=ids[hits["track"]], found_track_id=[ids[t] if t >= 0 else "" for t in hits["found_track"]]
    )


def _note(result: Result) -> str:
    """Return the description of a run in Markdown: what was tested, the headline, the grid, the aligners."""
    summary = result.summary
    tested, tables = [], []
    headline = summary["headline"].items()
    numbers = [[name, f"{value:.4f}"] for name, value in headline if not name.startswith(ALIGNMENT_NUMBERS)]
    if len(result.rows):
        tested.append(
            f"{summary['queries_per_cell']} queries a cell, {summary['database_vectors']} fingerprints of "
            f"{summary['database_tracks']} tracks"
        )
        tables += [_markdown(["number", "value"], numbers), _grid_note(result)]
    if len(result.alignment):
        tested.append(f"{result.alignment['name'].nunique()} pairs of recordings aligned")
        tables.append(_alignment_note(result))
    title = f"**{summary['encoder']}** ({summary['preset']}) on **{summary['benchmark']}**: {'; '.join(tested)}."
    if (mean := summary["headline"].get("segment_top1/mean")) is not None:  # MLflow folds all but the first lines
        title += f" Segment-level top-1, mean of the degraded cells: **{mean:.1%}**."
    return "\n\n".join([title, *tables]) + "\n"


def _grid_note(result: Result) -> str:
    own = select_rows(result.rows, result.summary["encoder"], result.summary["index"], result.summary["sequence"])
    own = own[own["metric"] == "segment_top1"]
    lengths = sorted(own["length_s"].unique())
    lines = []
    for _, rows in own.groupby("cell", sort=False):
        by_length = {row["length_s"]: row for row in rows.to_dict("records")}
        lines.append([_format_condition(rows.iloc[0]), *(_percent(by_length.get(length_s)) for length_s in lengths)])
    heading = f"#### Segment-level top-1 in per cent, with 95 % intervals ({result.summary['index']})"
    return heading + "\n\n" + _markdown(["condition", *(f"{length_s:g} s" for length_s in lengths)], lines)


def _format_condition(row: pd.Series) -> str:
    parts = [row["kind"].replace("_", " + ")]
    parts += [f"{row['snr_db']:g} dB"] if pd.notna(row["snr_db"]) else []
    parts += [f"{row['t60_s']:g} s"] if pd.notna(row["t60_s"]) else []
    return ", ".join(parts)


def _percent(row: dict[Any, Any] | None) -> str:
    return "-" if row is None else f"{100 * row['value']:.1f} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def _alignment_note(result: Result) -> str:
    table = summarise_sets(result.alignment)
    sets = list(dict.fromkeys(table["set"]))
    lines = []
    for aligner, rows in table.groupby("aligner", sort=False):
        by_set = {row["set"]: f"{_short(row['mae_ms'])} ms, {row['mse_s2']:.2g} s2" for row in rows.to_dict("records")}
        lines.append([str(aligner), *(by_set.get(set_name, "-") for set_name in sets)])
    return "#### Alignment: mean absolute and mean squared error\n\n" + _markdown(["aligner", *map(str, sets)], lines)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _markdown(heads: list[str], lines: list[list[str]]) -> str:
    """Return a table in Markdown. MLflow draws columns without a gap, so that each cell brings its own."""
    padded = [[f"{cell}&nbsp;&nbsp;" for cell in line] for line in [heads, *lines]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], ["---"] * len(heads), *padded[1:]])
