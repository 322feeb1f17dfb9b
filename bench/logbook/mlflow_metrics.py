"""Logs a result to MLflow: chooses which numbers become metrics, and adds the tables and files.

Metrics are what runs are compared by. A run has fewer than METRIC_KEYS of them, including those of training and of the
machine, so that MLflow's list of runs and its charts stay usable; the tables and `result.json` hold all the others.
"""

from __future__ import annotations

from pathlib import Path

from bench.align.evaluate import aligner_specs, summarise_sets
from bench.logbook.book import Logbook
from bench.logbook.note import format_note
from bench.results import (
    ALIGNMENT_NUMBERS,
    CONFIG,
    DEGRADED,
    DISTORTED,
    HEADLINE_ALIGNER,
    SUMMARY,
    Result,
    headline_costs,
    headline_search,
    mean_of,
    named_tables,
    select_among_distractors,
    select_rows,
)  # fmt: skip
from bench.settings import RunConfig

METRIC_KEYS = 60  # an MLflow run has fewer
OTHER_KEYS = 4 + 8 + 5  # keys of training and validation, of the machine, and of one GPU
CURVES = ("noise", "reverb", "noise_reverb", "measured_reverb")  # have a level or a t60 as the step of their metric
# Headline numbers that explain one run and compare none; result.json has them.
NOT_COMPARED = ("conditions/largest_snr_error_db", "sequence/vote-50_gains_points")
STAGES_LOGGED = ("training", "database", "queries", "alignment")


def log_result(book: Logbook, folder: Path, result: Result, config: RunConfig) -> None:
    """Log a result: curves over SNR (step in dB), t60 (step in ms) and size (step in fingerprints), scalars, tables."""
    curves = _curves(result, config) + _curves_over_size(result)
    for name, step, value in curves:
        book.metrics({name: value}, step)
    numbers = _scalars(result)
    num_free = METRIC_KEYS - 1 - OTHER_KEYS - len({name for name, _, _ in curves}) - len(numbers)
    book.metrics(numbers | _select_alignment_errors(result, config, num_free))
    if len(result.rows):
        book.table("grid", result.rows)
    if len(result.alignment):
        book.table("alignment", summarise_sets(result.alignment))
    for name in (*(name for name, _ in named_tables(result)), SUMMARY, CONFIG):
        book.artifact(folder / name)
    book.note(format_note(result))


def _curves(result: Result, config: RunConfig) -> list[tuple[str, int, float]]:
    """Return (metric, step, value) of the headline search; track-level top-1 of the longest queries only."""
    system_rows = select_rows(result.rows, config.system, *headline_search(config))
    longest = system_rows["metric"].eq("audio_top1") & system_rows["length_s"].eq(max(config.eval.lengths_s))
    shown = system_rows[system_rows["kind"].isin(CURVES) & (system_rows["metric"].eq("segment_top1") | longest)]
    return [
        (
            f"{row['metric']}_{row['length_s']:g}s/{row['kind']}",
            round(1000 * row["t60_s"] if row["kind"] in ("reverb", "measured_reverb") else row["snr_db"]),
            row["value"],
        )
        for row in shown.to_dict("records")
    ]


def _curves_over_size(result: Result) -> list[tuple[str, int, float]]:
    """Return (metric, step, value): mean segment-level top-1 over the degraded cells by the size of the database."""
    rows = select_among_distractors(result.rows, result.summary["system"])
    if rows.empty:
        return []
    rows = rows[rows["metric"].eq("segment_top1") & rows["kind"].isin(DEGRADED) & rows["origin"].notna()]
    mean = rows.groupby(["length_s", "origin", "distractors"], as_index=False)["value"].mean()
    num_real = result.summary["database_vectors"]
    return [
        (f"segment_top1_{length_s:g}s/{origin}_distractors", num_real + size, value)
        for length_s, origin, size, value in mean.itertuples(index=False, name=None)
    ]


def _scalars(result: Result) -> dict[str, float]:
    """Return the headline numbers without alignment, and the costs that depend on the encoder."""
    summary = result.summary
    numbers = {
        name: value
        for name, value in summary["headline"].items()
        if not name.startswith(ALIGNMENT_NUMBERS) and name not in NOT_COMPARED
    }
    clean = select_rows(result.rows, summary["system"], summary.get("index", ""), summary.get("sequence", ""))
    if len(clean := clean[clean["kind"] == "clean"]):
        numbers["segment_top1/clean"] = mean_of(clean, "segment_top1")
    spent = {f"cost/{stage}_s": summary["seconds"][stage] for stage in STAGES_LOGGED if stage in summary["seconds"]}
    size = {"cost/parameters": summary["parameters"]} if "parameters" in summary else {}
    return numbers | _summarise_distortions(result) | spent | size | _costs(result)


def _summarise_distortions(result: Result) -> dict[str, float]:
    """Return the mean top-1 of the shortest queries over the cells of each kind that is no curve, as of v2."""
    summary = result.summary
    if not len(result.rows):
        return {}
    rows = select_rows(result.rows, summary["system"], summary.get("index", ""), summary.get("sequence", ""))
    rows = rows[rows["kind"].isin(DISTORTED) & (rows["length_s"] == rows["length_s"].min())]
    length_s = rows["length_s"].min()
    return {
        f"segment_top1_{length_s:g}s/{kind}": mean_of(of_kind, "segment_top1") for kind, of_kind in rows.groupby("kind")
    }


def _costs(result: Result) -> dict[str, float]:
    """Return what an answer of the headline search costs: memory, and time for the longest queries, on one thread."""
    costs = headline_costs(result)
    if costs.empty:
        return {}
    longest = costs.sort_values("length_s").iloc[-1]
    names = ("bytes_per_hour", "audio_s_per_s", *(("ms_per_query",) if longest["n"] else ()))
    return {f"cost/{name}": float(longest[name]) for name in names}


def _select_alignment_errors(result: Result, config: RunConfig, num_free: int) -> dict[str, float]:
    """Return the errors of aligners that use the encoder, HEADLINE_ALIGNER first, as at most `num_free` numbers.

    The other aligners have the same errors in every run. The table `alignment` has all of them.
    """
    if result.alignment.empty:
        return {}
    with_encoder = [each.name for each in aligner_specs(config) if each.plugin.NEEDS_ENCODER]
    logged: dict[str, float] = {}
    for name in sorted(with_encoder, key=lambda name: name != HEADLINE_ALIGNER):
        headline, suffix = result.summary["headline"].items(), "/" + name.replace(":", "-")
        errors = {k: v for k, v in headline if k.startswith(ALIGNMENT_NUMBERS) and k.endswith(suffix)}
        if len(logged) + len(errors) <= num_free:
            logged |= errors
    return logged
