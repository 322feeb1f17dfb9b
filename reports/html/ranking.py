"""Ranks runs by mean top-1, and compares each with the best run, for the HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.reports.html.load import Run
from bench.reports.paper import HitsByCondition, average_degraded, group_hits
from bench.score.statistics import bootstrap_mean, holm, mcnemar, rank_with_ties

ALPHA = 0.05


@dataclass(frozen=True)
class RankingRow:
    """One row of the ranking: a run's mean top-1 over degraded cells and lengths, and its difference from the best.

    `behind` is the best run's mean minus this run's, over the same queries, with its interval; NaN for the best itself.
    `worse` and `better` count the conditions that differ significantly from the best (McNemar, Holm), of `tested`.
    `missing` counts cells and lengths that other runs have and this one lacks; such a run is not ranked.
    """

    run: Run
    value: float
    low: float
    high: float
    n: int
    missing: int = 0
    behind: float = np.nan
    behind_low: float = np.nan
    behind_high: float = np.nan
    worse: int = 0
    better: int = 0
    tested: int = 0
    rank: int = 0
    """1 plus the number of runs that are significantly better; 0 for a run that is not ranked."""

    @property
    def differs(self) -> bool:
        """Return whether the mean is significantly below the best's: the interval of the difference excludes 0."""
        return self.behind_low > 0

    @property
    def is_ranked(self) -> bool:
        """Return whether the run was tested in every condition that another run was tested in."""
        return not self.missing


def rank_runs(runs: Sequence[Run]) -> list[RankingRow]:
    """Return the ranking of runs on the same queries: the best first, runs with missing cells last."""
    by_run = {run.key: group_hits(run.result) for run in runs}
    conditions = {condition for hits in by_run.values() for condition in hits}
    rows = [_score_run(run, by_run[run.key], len(conditions) - len(by_run[run.key])) for run in runs]
    order = sorted(rows, key=lambda row: (not row.is_ranked, -np.nan_to_num(row.value), row.run.key))
    best = by_run[order[0].run.key]
    compared = [order[0], *(_compare_to_best(best, by_run[row.run.key], row) for row in order[1:])]
    shares = [average_degraded(by_run[row.run.key]) for row in compared if row.is_ranked]
    ranks = rank_with_ties(shares) if all(len(share_Q) for share_Q in shares) else [0] * len(shares)
    # Runs that are not ranked come last.
    return [replace(row, rank=rank) for row, rank in zip(compared, [*ranks, *[0] * len(compared)], strict=False)]


def _score_run(run: Run, hits: HitsByCondition, missing: int) -> RankingRow:
    share_Q = average_degraded(hits)
    low, high = bootstrap_mean(share_Q)
    return RankingRow(run, float(share_Q.mean()) if len(share_Q) else np.nan, low, high, len(share_Q), missing)


def _compare_to_best(best: HitsByCondition, hits: HitsByCondition, row: RankingRow) -> RankingRow:
    """Return a run's row with its differences from the best, over the conditions that both have."""
    shared = [condition for condition in best if condition in hits]
    # By condition: which of them differ significantly.
    p_holm = holm([mcnemar(best[condition], hits[condition]) for condition in shared])
    gains = [hits[condition].mean() - best[condition].mean() for condition in shared]
    significant = [gain for gain, p in zip(gains, p_holm, strict=True) if p < ALPHA]
    counts = {
        "worse": sum(gain < 0 for gain in significant),
        "better": sum(gain > 0 for gain in significant),
        "tested": len(shared),
    }
    # On the mean: the paired difference, with its interval.
    best_Q, share_Q = (average_degraded({condition: each[condition] for condition in shared}) for each in (best, hits))
    if not len(best_Q):
        return replace(row, **counts)
    low, high = bootstrap_mean(best_Q - share_Q)
    return replace(row, behind=float((best_Q - share_Q).mean()), behind_low=low, behind_high=high, **counts)
