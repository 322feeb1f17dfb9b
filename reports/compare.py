"""Runs side by side on the same queries: segment-level top-1 of each, and paired differences from the first.

A report of several runs: `render` takes two or more results, where the other reports take one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table

from bench.config import require
from bench.errors import ConfigError
from bench.results import DEGRADED, Result
from bench.score.statistics import bootstrap_difference, bootstrap_mean, holm, mcnemar, wilson

TESTED = ("benchmark", "query set", "first index", "sequence search")
LEAST_P = 0.001  # smaller ones are shown as such
MEAN = "mean"
Key = tuple[str, float]


def compare(results: Sequence[Result]) -> pd.DataFrame:
    """Return one row a run, cell and query length: top-1 with its interval, and how it differs from the first run's.

    Columns: run, encoder, cell, length_s, n, value, low, high (Wilson), then difference, difference_low and
    difference_high (paired bootstrap), p (McNemar) and p_holm, corrected over all cells and lengths of the run; these
    are NaN for the first run. Shares lie between 0 and 1; every interval is one of 95 %.
    Last comes a row a run for the mean over all degraded cells and lengths, its length NaN: the share of them in which
    a query is found, averaged over queries. Both of its intervals are bootstraps over queries; it has no p.
    Raises: ConfigError if there are fewer than two runs, one twice, or runs of different queries.
    """
    _check_comparable(results)
    first = _hits(results[0])
    parts = [_row(results[0], key, hit_Q) for key, hit_Q in first.items()]
    for result in results[1:]:
        found = _hits(result)
        corrected = holm([mcnemar(hit_Q, found[key]) for key, hit_Q in first.items()])
        for p_holm, (key, hit_Q) in zip(corrected, first.items(), strict=True):
            parts.append(_row(result, key, found[key]) | _difference(hit_Q, found[key]) | {"p_holm": p_holm})
    base_Q = _degraded(first)
    for result in results if len(base_Q) else []:
        own_Q = _degraded(_hits(result))
        parts.append(_mean_row(result, own_Q) | ({} if result is results[0] else _mean_difference(base_Q, own_Q)))
    return pd.DataFrame(parts)


def render(*results: Result) -> RenderableType:
    """Return the comparison as a table: conditions down, runs across, each later one with its difference."""
    table = compare(results)
    tests = table["p"].notna().sum() // (len(results) - 1)
    names = [f"{result.summary['encoder']}\n{result.summary['run'][:6]}" for result in results]
    shown = Table(
        title=f"{results[0].summary['benchmark']}: segment-level top-1, differences from the first run",
        caption=f"per cent, then its 95 % interval; n = {table['n'].iloc[0]} queries a cell; difference: in points, "
        f"paired over queries; p: McNemar's exact test, corrected (Holm) over the {tests} rows; "
        "mean: over all degraded conditions and lengths",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("condition", overflow="fold")
    later = [title for name in names[1:] for title in (name, "difference", "p")]
    for title in ("length", names[0], *later):
        shown.add_column(title, justify="right", no_wrap=True)
    last_cell = ""
    for _, rows in table.groupby(["cell", "length_s"], sort=False, dropna=False):
        texts = [text for _, row in rows.iterrows() for text in _texts(row)]
        cell, length_s = str(rows["cell"].iloc[0]), rows["length_s"].iloc[0]
        length = "all" if pd.isna(length_s) else f"{length_s:g} s"
        shown.add_row("" if cell == last_cell else cell, length, *texts)
        last_cell = cell
    return shown


def _check_comparable(results: Sequence[Result]) -> None:
    require(len(results) >= 2, "a comparison needs at least two runs", len(results))
    keys = [str(result.summary["run"]) for result in results]
    for key, result in zip(keys, results, strict=True):
        if result.rows.empty:
            raise ConfigError(f"the run {key} has no queries, as it aligned recorders alone; leave it out")
    require(len(set(keys)) == len(keys), "a comparison must not name a run twice", ", ".join(keys))
    for key, result in zip(keys[1:], results[1:], strict=True):
        for what, one, other in zip(TESTED, _tested(results[0]), _tested(result), strict=True):
            if one != other:
                raise ConfigError(
                    f"runs {keys[0]} and {key} cannot be compared: their {what} is {one} and {other}; run both with "
                    f"the same data, --dataset and --set eval.*"
                )


def _tested(result: Result) -> tuple[str, ...]:
    summary = result.summary
    queries = ", ".join(sorted(result.rows["queries"].unique()))
    return summary["benchmark"], queries, summary["index"], summary["sequence"]


def _hits(result: Result) -> dict[Key, npt.NDArray[np.bool_]]:
    """Return whether each query was found, in the order of queries, for each cell and length in the order tested."""
    hits, summary = result.hits, result.summary
    own = hits[(hits["index"] == summary["index"]) & (hits["sequence"] == summary["sequence"])]
    return {
        (str(cell), float(length_s)): rows.sort_values("query")["hit"].to_numpy(dtype=bool)
        for (cell, length_s), rows in own.groupby(["cell", "length_s"], sort=False)
    }


def _row(result: Result, key: Key, hit_Q: npt.NDArray[np.bool_]) -> dict[str, object]:
    low, high = wilson(int(hit_Q.sum()), len(hit_Q))
    return {
        "run": result.summary["run"],
        "encoder": result.summary["encoder"],
        "cell": key[0],
        "length_s": key[1],
        "n": len(hit_Q),
        "value": float(hit_Q.mean()),
        "low": low,
        "high": high,
    }


def _difference(one_Q: npt.NDArray[np.bool_], other_Q: npt.NDArray[np.bool_]) -> dict[str, object]:
    low, high = bootstrap_difference(one_Q, other_Q)
    return {
        "difference": float(other_Q.mean() - one_Q.mean()),
        "difference_low": low,
        "difference_high": high,
        "p": mcnemar(one_Q, other_Q),
    }


def _degraded(found: dict[Key, npt.NDArray[np.bool_]]) -> npt.NDArray[np.float64]:
    """Return for each query the share of degraded cells and lengths in which it was found; nothing without any."""
    hits = [hit_Q for (cell, _), hit_Q in found.items() if cell.split("/")[0] in DEGRADED]
    share_Q: npt.NDArray[np.float64] = np.mean(hits, axis=0) if hits else np.zeros(0)
    return share_Q


def _mean_row(result: Result, share_Q: npt.NDArray[np.float64]) -> dict[str, object]:
    low, high = bootstrap_mean(share_Q)
    names = {"run": result.summary["run"], "encoder": result.summary["encoder"], "cell": MEAN, "length_s": np.nan}
    return names | {"n": len(share_Q), "value": float(share_Q.mean()), "low": low, "high": high}


def _mean_difference(one_Q: npt.NDArray[np.float64], other_Q: npt.NDArray[np.float64]) -> dict[str, object]:
    low, high = bootstrap_mean(other_Q - one_Q)
    return {
        "difference": float((other_Q - one_Q).mean()),
        "difference_low": low,
        "difference_high": high,
    }


def _texts(row: pd.Series) -> list[str]:
    """Return what the table says of one run in one row: the share, and of a later run the difference and its p."""
    interval = f"{100 * row['low']:.0f}-{100 * row['high']:.0f}"
    share = f"{100 * row['value']:.1f} {interval:>6s}"
    if pd.isna(row["difference"]):
        return [share]
    low, high = 100 * row["difference_low"], 100 * row["difference_high"]
    return [share, f"{100 * row['difference']:+.1f} {low:+.0f} to {high:+.0f}", _p(row["p_holm"])]


def _p(value: float) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:.3f}" if value >= LEAST_P else f"<{LEAST_P:g}"
