"""Who won, by how much, and whether that is more than chance: runs ranked, and each compared with the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.reports.html.load import Run
from bench.reports.paper import HitsByCondition, average_degraded, group_hits
from bench.score.statistics import bootstrap_mean, holm, mcnemar

ALPHA = 0.05


@dataclass(frozen=True)
class RankingRow:
    """A run's place: its mean top-1 over degraded cells and lengths with its interval, and how the best differs.

    `behind` is the best's mean less its own, over the same queries, with its interval; NaN for the best itself.
    `worse` and `better` count the conditions in which it differs from the best (McNemar, Holm), of `tested`.
    `missing` counts cells and lengths that other runs have and this one has not: it then has no rank.
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

    @property
    def differs(self) -> bool:
        """Say whether the mean is below the best's by more than chance: the interval leaves out nought."""
        return self.behind_low > 0

    @property
    def is_ranked(self) -> bool:
        """Say whether the run was tested in all that the others were."""
        return not self.missing


def rank_runs(runs: Sequence[Run]) -> list[RankingRow]:
    """Return runs of the same queries, the best first, those with missing cells last."""
    by_run = {run.key: group_hits(run.result) for run in runs}
    every = {condition for own in by_run.values() for condition in own}
    alone = [_score_run(run, by_run[run.key], len(every) - len(by_run[run.key])) for run in runs]
    order = sorted(alone, key=lambda own: (not own.is_ranked, -np.nan_to_num(own.value), own.run.key))
    best = by_run[order[0].run.key]
    return [order[0], *(_compare_to_best(best, by_run[own.run.key], own) for own in order[1:])]


def _score_run(run: Run, hits: HitsByCondition, missing: int) -> RankingRow:
    share_Q = average_degraded(hits)
    low, high = bootstrap_mean(share_Q)
    return RankingRow(run, float(share_Q.mean()) if len(share_Q) else np.nan, low, high, len(share_Q), missing)


def _compare_to_best(best: HitsByCondition, hits: HitsByCondition, own: RankingRow) -> RankingRow:
    """Return a run's standing with its differences from the best, over the conditions that both have."""
    shared = [condition for condition in best if condition in hits]
    p = holm([mcnemar(best[condition], hits[condition]) for condition in shared])
    gained = [hits[condition].mean() - best[condition].mean() for condition in shared]
    differ = [gain for gain, corrected in zip(gained, p, strict=True) if corrected < ALPHA]
    counts = {"worse": sum(g < 0 for g in differ), "better": sum(g > 0 for g in differ), "tested": len(shared)}
    one_Q, own_Q = (average_degraded({condition: each[condition] for condition in shared}) for each in (best, hits))
    if not len(one_Q):
        return replace(own, **counts)
    low, high = bootstrap_mean(one_Q - own_Q)
    return replace(own, behind=float((one_Q - own_Q).mean()), behind_low=low, behind_high=high, **counts)
