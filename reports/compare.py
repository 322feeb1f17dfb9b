"""Runs side by side on the same queries: the paper's tables, recorders, paired differences from the first run, costs.

A report of several runs: `render` takes one or more results, where most reports take one. Tests and intervals are
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
from bench.errors import ConfigError, PluginError
from bench.registry import load
from bench.reports import alignment
from bench.reports._published import PublishedShare, select_published
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
from bench.results import Result
from bench.score.statistics import bootstrap_difference, bootstrap_mean, holm, mcnemar, wilson

MEAN = "mean"
CONDITIONS = {"identity": "on the grid", "noise_reverb": "both"}
COLUMNS = (
    "run", "encoder", "metric", "cell", "length_s", "n", "value", "low", "high", "difference", "difference_low",
    "difference_high", "p", "p_holm", "source", "confidence", "data", "tolerance_ms",
)  # fmt: skip
Shares = npt.NDArray[np.float64]


def compare(results: Sequence[Result]) -> pd.DataFrame:
    """Return one row a run, metric, cell and query length: top-1 with its interval, and its difference from the first.

    Columns: run, encoder, metric, cell, length_s, n, value, low, high (Wilson), then difference, difference_low and
    difference_high (paired bootstrap), p (McNemar) and p_holm, corrected over all cells and lengths of the run and
    metric; these are NaN for the first run. Shares lie between 0 and 1; every interval is one of 95 %.
    After the cells of a metric, a row a run for the mean over all degraded cells and lengths, its length NaN: the share
    of them in which a query is found, averaged over queries. Both of its intervals are bootstraps over queries; it has
    no p, and its difference is over the cells that both runs have.
    Last comes what was published: without run, n and intervals, but with source, confidence, data and tolerance_ms.
    Of runs that all aligned recorders alone, the rows of `bench.align.evaluate.summarise_sets` instead.
    Raises: ConfigError if a run is named twice, was asked other queries, or alone has none.
    """
    if not any(len(result.rows) for result in results):
        return summarise_sets(merge_alignments(results))
    for result in results:
        if result.rows.empty:
            key = result.summary["run"]
            raise ConfigError(f"the run {key} has no queries, as it aligned recorders alone; leave it out")
    check_same_queries(results)
    rows = [row for metric in HITS for row in _rows(results, metric)]
    rows += [_build_published_row(number) for number in select_published(results)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64"})  # whole, though published rows have none


def render(*results: Result) -> RenderableType:
    """Return the paper's tables, those of recorders, the differences from the first run, then means and costs."""
    check_distinct(results)
    tables = paper_tables(results)
    means = [table for table in tables if table.key == MEANS]
    aligned = merge_alignments(results)
    return Group(
        *_heading(results),
        render_tables([table for table in tables if table.key != MEANS]),
        *([Text(), alignment.render(aligned)] if len(aligned) else []),
        render_tables([*difference_tables(results), *means, cost_table(results)]),
    )


def difference_tables(results: Sequence[Result]) -> list[PaperTable]:
    """Return a table for each run but the first: conditions down, lengths across, segment-level top-1 less the first's.

    An entry is `alike` where McNemar's test, corrected over the table, does not tell the two apart.
    """
    own = [result for result in results if len(result.rows)]
    return [_differences(own[0], result) for result in own[1:]]


def merge_alignments(results: Sequence[Result]) -> pd.DataFrame:
    """Return the files' scores by all aligners of all runs, in one frame; empty if no run aligned anything.

    An aligner that hears with an encoder is called by its run too, where there are several. One that does not is there
    once, unless its answers differ (other settings).
    Raises: ConfigError if two runs aligned other recordings under the same name.
    """
    own = [result for result in results if len(result.alignment)]
    for result in own[1:]:
        _check_same_recordings(own[0], result)
    if len(own) < 2:
        return own[0].alignment if own else pd.DataFrame()
    together = pd.concat([result.alignment.assign(run=label(result)) for result in own], ignore_index=True)
    parts = []
    for (_, _, aligner), files in together.groupby(["set", "split", "aligner"], sort=False):
        answers = [of_run for _, of_run in files.groupby("run", sort=False)]
        if aligner == ORACLE or (
            not _needs_encoder(str(aligner)) and all(_has_same_errors(answers[0], other) for other in answers)
        ):
            parts.append(answers[0])
        else:
            parts.append(files.assign(aligner=files["aligner"] + ", " + files["run"]))
    return pd.concat(parts, ignore_index=True).drop(columns="run")


def _heading(results: Sequence[Result]) -> list[Text]:
    """Return what the runs were tested on, said of those that were asked queries."""
    tested = [result.summary for result in results if len(result.rows)]
    return [
        Text(
            f"{one['benchmark']}: {one['queries_per_cell']} queries a cell, {one['database_vectors']:,} fingerprints "
            f"of {one['database_tracks']:,} tracks, searched by {one['index']}, {one['sequence']}"
        )
        for one in tested[:1]
    ]


def _rows(results: Sequence[Result], metric: str) -> list[dict[str, object]]:
    """Return the rows of one metric: those of cells, run by run, then the means."""
    hits = [group_hits(result, metric) for result in results]
    rows = [_build_row(results[0], metric, key, hit_Q) for key, hit_Q in hits[0].items()]
    for result, own in zip(results[1:], hits[1:], strict=True):
        differences = _compare_cells(hits[0], own)
        rows += [_build_row(result, metric, key, hit_Q) | differences.get(key, {}) for key, hit_Q in own.items()]
    for result, own in zip(results, hits, strict=True):
        share_Q = average_degraded(own)
        if len(share_Q):
            rows.append(
                _build_mean_row(result, metric, share_Q) | ({} if own is hits[0] else _mean_difference(hits[0], own))
            )
    return rows


def _build_row(result: Result, metric: str, key: Key, hit_Q: Bools) -> dict[str, object]:
    low, high = wilson(int(hit_Q.sum()), len(hit_Q))
    names = _names(result, metric) | {"cell": key[0], "length_s": key[1]}
    return names | {"n": len(hit_Q), "value": float(hit_Q.mean()), "low": low, "high": high}


def _names(result: Result, metric: str) -> dict[str, object]:
    return {"run": result.summary["run"], "encoder": result.summary["encoder"], "metric": metric}


def _compare_cells(one: HitsByCondition, other: HitsByCondition) -> dict[Key, dict[str, float]]:
    """Return the columns of the difference for each cell and length that both have."""
    both = [key for key in other if key in one]
    p = [mcnemar(one[key], other[key]) for key in both]
    found: dict[Key, dict[str, float]] = {}
    for key, own_p, p_holm in zip(both, p, holm(p), strict=True):
        low, high = bootstrap_difference(one[key], other[key])
        difference = float(other[key].mean() - one[key].mean())
        found[key] = _columns(difference, low, high) | {"p": own_p, "p_holm": p_holm}
    return found


def _columns(difference: float, low: float, high: float) -> dict[str, float]:
    return {"difference": difference, "difference_low": low, "difference_high": high}


def _build_mean_row(result: Result, metric: str, share_Q: Shares) -> dict[str, object]:
    low, high = bootstrap_mean(share_Q)
    names = _names(result, metric) | {"cell": MEAN, "length_s": np.nan}
    return names | {"n": len(share_Q), "value": float(share_Q.mean()), "low": low, "high": high}


def _mean_difference(one: HitsByCondition, other: HitsByCondition) -> dict[str, float]:
    """Return the columns of the difference of means, over the degraded cells that both have; none without any."""
    one_Q, other_Q = (average_degraded(own) for own in intersect_hits([one, other]))
    if not len(one_Q):
        return {}
    return _columns(float((other_Q - one_Q).mean()), *bootstrap_mean(other_Q - one_Q))


def _build_published_row(number: PublishedShare) -> dict[str, object]:
    return {
        "encoder": number.system, "metric": number.metric, "cell": number.cell.name if number.cell else MIX,
        "length_s": number.length_s, "value": number.value, "source": number.source, "confidence": number.confidence,
        "data": number.data, "tolerance_ms": number.tolerance_ms,
    }  # fmt: skip


def _differences(first: Result, result: Result) -> PaperTable:
    one, other = group_hits(first), group_hits(result)
    paired, lengths_s = _compare_cells(one, other), sorted({length_s for _, length_s in one})
    lines = [
        Line(_format_condition(cell), "run", "", tuple(_entry(paired.get((cell, length_s))) for length_s in lengths_s))
        for cell in dict.fromkeys(cell for cell, _ in one)
    ]
    mean = _mean_difference(one, other)
    caption = (
        "points, with 95 % intervals (paired bootstrap over queries); =: not significant (McNemar's exact test, "
        f"corrected by Holm over the {len(paired)} entries of a table); both: noise and reverb; mean: over all "
        "degraded conditions and lengths"
    )
    title = f"{label(result)} less {label(first)}: {LEVELS[SEGMENT]}"
    if mean:
        low, high = 100 * mean["difference_low"], 100 * mean["difference_high"]
        title += f", mean {100 * mean['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
    columns = tuple(f"{length_s:g} s" for length_s in lengths_s)
    return PaperTable(f"difference_{result.summary['run'][:6]}", title, columns, "points", tuple(lines), caption)


def _entry(paired: Mapping[str, float] | None) -> Entry | None:
    if paired is None:
        return None
    low, high = paired["difference_low"], paired["difference_high"]
    return Entry(paired["difference"], low, high, alike=paired["p_holm"] >= ALPHA)


def _format_condition(cell: str) -> str:
    """Return a cell's name for a reader: `noise_reverb/snr_0/t60_0.5` is both 0 dB."""
    kind, *parts = cell.split("/")
    said = CONDITIONS.get(kind, kind)
    values = dict(part.split("_") for part in parts)
    if "snr" in values:
        return f"{said} {values['snr']} dB"
    return f"{said} {values['t60']} s" if values else said


def _needs_encoder(aligner: str) -> bool:
    """Return whether an aligner's answers depend on the encoder; of one that is not here any more, that they may."""
    try:
        return bool(load("aligner", aligner.partition(":")[0]).NEEDS_ENCODER)
    except PluginError:
        return True


def _has_same_errors(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    columns = ["name", "mse_s2", "mae_ms"]
    return bool((one[columns].to_numpy() == other[columns].to_numpy()).all()) if len(one) == len(other) else False


def _check_same_recordings(one: Result, other: Result) -> None:
    """Raise ConfigError if two runs aligned sets of one name whose annotations differ."""
    sets = set(one.alignment["set"]) & set(other.alignment["set"])
    for name in sorted(sets):
        if not _truth(one, name).equals(_truth(other, name)):
            raise ConfigError(
                f"runs {one.summary['run']} and {other.summary['run']} cannot be compared: their recordings of {name} "
                "differ; run both with the same --set pairs.*, or compare them apart"
            )


def _truth(result: Result, set_name: str) -> pd.DataFrame:
    columns = ["split", "file", "time0_s", "time1_s"]
    own = result.keypoints.loc[result.keypoints["set"] == set_name, columns].drop_duplicates()
    return own.sort_values(columns, ignore_index=True)
