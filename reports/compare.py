"""Compares runs on the same queries: the paper's tables, aligners, paired differences from the first run, and costs.

A report of several runs: `render` takes one or more results, whereas most reports take one. Tests and intervals are
described in docs/compare.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from bench.align.evaluate import ORACLE, summarise_sets
from bench.degrade.cells import describe_distortion
from bench.errors import ConfigError, PluginError
from bench.registry import load
from bench.reports import alignment
from bench.reports._published import PublishedShare, select_published
from bench.reports.grid import size_tables
from bench.reports.paper import (
    ALPHA,
    HITS,
    LEVELS,
    MEANS,
    MIX,
    SEGMENT,
    Bools,
    Entry,
    HitsByCondition,
    Key,
    Line,
    PaperTable,
    average_degraded,
    check_distinct,
    check_same_queries,
    cost_table,
    group_hits,
    intersect_hits,
    label,
    paper_tables,
    render_tables,
)
from bench.results import DISTORTED, Result, format_database
from bench.score.statistics import (
    bootstrap_difference,
    bootstrap_mean,
    detectable_difference,
    holm,
    mcnemar,
    rank_with_ties,
    wilson,
)
from bench.values import OWN

MEAN = "mean"
CONDITIONS = {"identity": "on the grid", "measured_reverb": "measured room", "noise_reverb": "both"}
COLUMNS = (
    "run", "system", "metric", "cell", "length_s", "n", "value", "low", "high", "difference", "difference_low",
    "difference_high", "detectable", "p", "p_holm", "rank", "sequence", "source", "confidence", "data", "conditions",
    "tolerance_ms",
)  # fmt: skip
Shares = npt.NDArray[np.float64]


def compare(results: Sequence[Result]) -> pd.DataFrame:
    """Return top-1 with its interval and its difference from the first run, one row per run, metric, cell and length.

    Columns: run, system, metric, cell, length_s, n, value, low, high (Wilson), then difference, difference_low and
    difference_high (paired bootstrap), the smallest difference that would have been detected, p (McNemar) and p_holm,
    corrected over all cells and lengths of the run and metric; these are NaN for the first run. Shares lie between 0
    and 1; all intervals are 95 % intervals.
    The cells of a metric are followed by one row per run for the mean, with length NaN: the share of degraded cells and
    lengths in which a query is found, averaged over queries. Both of its intervals are bootstraps over queries; it has
    no p, and its difference is over the cells that both runs have. Only these rows have a rank, which runs share that
    cannot be told apart, over the degraded cells that all runs have.
    Published results come last: without run, n and intervals, but with source, confidence, data, conditions and
    tolerance_ms. `sequence` is the sequence search.
    If all runs only aligned recorders, the rows are those of `bench.align.evaluate.summarise_sets` instead.
    Raises: ConfigError if a run is named twice, has different queries, or has none although others have some.
    """
    if not any(len(result.rows) for result in results):
        return summarise_sets(merge_alignments(results))
    for result in results:
        if result.rows.empty:
            key = result.summary["run"]
            raise ConfigError(f"the run {key} has no queries, as it only aligned recorders; leave it out")
    check_same_queries(results)
    rows = [row for metric in HITS for row in _rows(results, metric)]
    rows += [_build_published_row(number) for number in select_published(results)]
    whole = {"n": "Int64", "rank": "Int64"}  # missing in some rows
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(whole)


def render(*results: Result) -> RenderableType:
    """Return the paper's tables, those of aligners and sizes, differences from the first run, means and costs."""
    check_distinct(results)
    tables = paper_tables(results)
    means = [table for table in tables if table.key == MEANS]
    aligned = merge_alignments(results)
    return Group(
        *_heading(results),
        render_tables([table for table in tables if table.key != MEANS]),
        *([Text(), alignment.render(aligned)] if len(aligned) else []),
        *(table for result in results if len(result.rows) for table in size_tables(result)),
        render_tables([*difference_tables(results), *means, cost_table(results)]),
    )


def difference_tables(results: Sequence[Result]) -> list[PaperTable]:
    """Return one table for each later run: its segment-level top-1 minus that of the first run.

    Rows are conditions, columns query lengths. An entry is `alike` if McNemar's test, corrected over the table, finds
    no significant difference.
    """
    with_queries = [result for result in results if len(result.rows)]
    return [_differences(with_queries[0], result) for result in with_queries[1:]]


def merge_alignments(results: Sequence[Result]) -> pd.DataFrame:
    """Return the scores of all files by all aligners of all runs, in one frame; empty if no run aligned anything.

    With several runs, an aligner that needs an encoder is listed once per run, under a name that includes the run.
    Other aligners are listed once, unless their errors differ between runs because of their settings.
    Raises: ConfigError if two runs aligned different recordings under the same name.
    """
    aligned = [result for result in results if len(result.alignment)]
    for result in aligned[1:]:
        _check_same_recordings(aligned[0], result)
    if len(aligned) < 2:
        return aligned[0].alignment if aligned else pd.DataFrame()
    together = pd.concat([result.alignment.assign(run=label(result)) for result in aligned], ignore_index=True)
    parts = []
    for (_, _, aligner), files in together.groupby(["set", "split", "aligner"], sort=False):
        by_run = [of_run for _, of_run in files.groupby("run", sort=False)]
        if aligner == ORACLE or (
            not _needs_encoder(str(aligner)) and all(_has_same_errors(by_run[0], other) for other in by_run)
        ):
            parts.append(by_run[0])
        else:
            parts.append(files.assign(aligner=files["aligner"] + ", " + files["run"]))
    return pd.concat(parts, ignore_index=True).drop(columns="run")


def _heading(results: Sequence[Result]) -> list[Text]:
    """Return the line on what the runs were tested on; nothing if no run has queries."""
    tested = [result.summary for result in results if len(result.rows)]
    return [
        Text(
            f"{summary['benchmark']}: {summary['queries_per_cell']} queries per condition, "
            f"{format_database(summary)}; index: {summary['index']}, sequence search: {summary['sequence']}"
        )
        for summary in sorted(tested, key=lambda summary: summary["index"] == OWN)[:1]
    ]


def _rows(results: Sequence[Result], metric: str) -> list[dict[str, object]]:
    """Return the rows of one metric: the cells of each run, then the means."""
    hits = [group_hits(result, metric) for result in results]
    rows = [_build_row(results[0], metric, key, hit_Q) for key, hit_Q in hits[0].items()]
    for result, of_run in zip(results[1:], hits[1:], strict=True):
        differences = _compare_cells(hits[0], of_run)
        rows += [_build_row(result, metric, key, hit_Q) | differences.get(key, {}) for key, hit_Q in of_run.items()]
    shared = [average_degraded(each) for each in intersect_hits(hits)]
    ranks = rank_with_ties(shared) if len(shared[0]) else [pd.NA] * len(results)
    for result, of_run, rank in zip(results, hits, ranks, strict=True):
        share_Q = average_degraded(of_run)
        if len(share_Q):
            difference = {} if of_run is hits[0] else _mean_difference(hits[0], of_run)
            rows.append(_build_mean_row(result, metric, share_Q) | difference | {"rank": rank})
    return rows


def _build_row(result: Result, metric: str, key: Key, hit_Q: Bools) -> dict[str, object]:
    low, high = wilson(int(hit_Q.sum()), len(hit_Q))
    names = _names(result, metric) | {"cell": key[0], "length_s": key[1]}
    return names | {"n": len(hit_Q), "value": float(hit_Q.mean()), "low": low, "high": high}


def _names(result: Result, metric: str) -> dict[str, object]:
    summary = result.summary
    return {"run": summary["run"], "system": summary["system"], "metric": metric, "sequence": summary["sequence"]}


def _compare_cells(first: HitsByCondition, other: HitsByCondition) -> dict[Key, dict[str, float]]:
    """Return the columns of the difference for each cell and length that both runs have."""
    shared = [key for key in other if key in first]
    p_values = [mcnemar(first[key], other[key]) for key in shared]
    columns: dict[Key, dict[str, float]] = {}
    for key, p, p_holm in zip(shared, p_values, holm(p_values), strict=True):
        low, high = bootstrap_difference(first[key], other[key])
        difference = float(other[key].mean() - first[key].mean())
        each_Q = other[key].astype(np.float64) - first[key]
        tests = {"detectable": detectable_difference(each_Q, len(shared)), "p": p, "p_holm": p_holm}
        columns[key] = _columns(difference, low, high) | tests
    return columns


def _columns(difference: float, low: float, high: float) -> dict[str, float]:
    return {"difference": difference, "difference_low": low, "difference_high": high}


def _build_mean_row(result: Result, metric: str, share_Q: Shares) -> dict[str, object]:
    low, high = bootstrap_mean(share_Q)
    names = _names(result, metric) | {"cell": MEAN, "length_s": np.nan}
    return names | {"n": len(share_Q), "value": float(share_Q.mean()), "low": low, "high": high}


def _mean_difference(first: HitsByCondition, other: HitsByCondition) -> dict[str, float]:
    """Return the columns of the difference of means over the shared degraded cells; none if there are no such cells."""
    first_Q, other_Q = (average_degraded(hits) for hits in intersect_hits([first, other]))
    if not len(first_Q):
        return {}
    columns = _columns(float((other_Q - first_Q).mean()), *bootstrap_mean(other_Q - first_Q))
    return columns | {"detectable": detectable_difference(other_Q - first_Q)}


def _build_published_row(number: PublishedShare) -> dict[str, object]:
    return {
        "system": number.system, "metric": number.metric, "cell": number.cell.name if number.cell else MIX,
        "length_s": number.length_s, "value": number.value, "source": number.source, "confidence": number.confidence,
        "data": number.data, "tolerance_ms": number.tolerance_ms, "sequence": number.search,
        "conditions": number.conditions if number.states_t60 else f"{number.conditions}, t60 not stated",
    }  # fmt: skip


def _differences(first: Result, result: Result) -> PaperTable:
    first_hits, hits = group_hits(first), group_hits(result)
    paired, lengths_s = _compare_cells(first_hits, hits), sorted({length_s for _, length_s in first_hits})
    lines = [
        Line(_format_condition(cell), "run", "", tuple(_entry(paired.get((cell, length_s))) for length_s in lengths_s))
        for cell in dict.fromkeys(cell for cell, _ in first_hits)
    ]
    mean = _mean_difference(first_hits, hits)
    caption = (
        "percentage points, with 95 % intervals (paired bootstrap over queries); =: not significant (McNemar's exact "
        f"test, Holm's correction over the {len(paired)} entries of the table); on the grid: clean excerpts aligned "
        "with database segments; both: noise and reverb; mean: over all degraded conditions and lengths"
    )
    title = f"{label(result)} minus {label(first)}: {LEVELS[SEGMENT]}"
    if mean:
        low, high = 100 * mean["difference_low"], 100 * mean["difference_high"]
        title += f", mean {100 * mean['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
    caption += _describe_power(mean, paired)
    columns = tuple(f"{length_s:g} s" for length_s in lengths_s)
    return PaperTable(f"difference_{result.summary['run'][:6]}", title, columns, "points", tuple(lines), caption)


def _describe_power(mean: Mapping[str, float], paired: Mapping[Key, Mapping[str, float]]) -> str:
    """Return the smallest differences that the tests see in 80 % of cases, as the end of a caption."""
    seen = [each["detectable"] for each in paired.values() if np.isfinite(each["detectable"])]
    parts = [f"of the mean {100 * mean['detectable']:.1f}"] if mean and np.isfinite(mean["detectable"]) else []
    parts += [f"of an entry {100 * float(np.median(seen)):.1f} (median)"] if seen else []
    return f"; seen in 80 % of cases: differences {' and '.join(parts)} points or more" if parts else ""


def _entry(paired: Mapping[str, float] | None) -> Entry | None:
    if paired is None:
        return None
    low, high = paired["difference_low"], paired["difference_high"]
    return Entry(paired["difference"], low, high, alike=paired["p_holm"] >= ALPHA)


def _format_condition(cell: str) -> str:
    """Return a cell's name for a reader, such as `both 0 dB` for `noise_reverb/snr_0/t60_0.5`."""
    kind, *parts = cell.split("/")
    title = CONDITIONS.get(kind, kind)
    if kind in DISTORTED:  # the last part of the name
        title = describe_distortion(parts.pop())
    values = dict(part.split("_") for part in parts)
    if "snr" in values:
        return f"{title} {values['snr']} dB"
    return f"{title} {values['t60']} s" if values else title


def _needs_encoder(aligner: str) -> bool:
    """Return whether an aligner needs an encoder; True if the aligner is no longer installed."""
    try:
        return bool(load("aligner", aligner.partition(":")[0]).NEEDS_ENCODER)
    except PluginError:
        return True


def _has_same_errors(first: pd.DataFrame, other: pd.DataFrame) -> bool:
    columns = ["name", "mse_s2", "mae_ms"]
    return bool((first[columns].to_numpy() == other[columns].to_numpy()).all()) if len(first) == len(other) else False


def _check_same_recordings(first: Result, other: Result) -> None:
    """Raise ConfigError if two runs aligned sets of the same name with different annotations."""
    sets = set(first.alignment["set"]) & set(other.alignment["set"])
    for name in sorted(sets):
        if not _truth(first, name).equals(_truth(other, name)):
            raise ConfigError(
                f"runs {first.summary['run']} and {other.summary['run']} cannot be compared: their recordings of "
                f"{name} differ; run both with the same --set pairs.*, or compare them separately"
            )


def _truth(result: Result, set_name: str) -> pd.DataFrame:
    columns = ["split", "file", "time0_s", "time1_s"]
    times = result.keypoints.loc[result.keypoints["set"] == set_name, columns].drop_duplicates()
    return times.sort_values(columns, ignore_index=True)
