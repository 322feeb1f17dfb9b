"""Confidence intervals of metrics, and tests between two systems.

A share has Wilson's interval, any other mean a bootstrap interval. Two systems are compared on the same queries, by
McNemar's exact test and by the bootstrap interval of their difference, which resamples queries.

Shape legend: Q queries, G groups, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # standard normal quantile at 0.975
MAD_TO_DEVIATION = 1.4826  # standard deviation of a Gaussian over its median absolute deviation
RESAMPLES = 2_000
LEVEL, POWER = 0.05, 0.8  # of tests: false alarms, and how often a difference that is there is seen


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share hits / n, within [0, 1]; (0, 1) for n = 0.

    Why not Wald: at a share of 0 or 1 Wald's interval has no width. Source: Wilson 1927, equation 4.
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and n the formula gives the bound itself, up to rounding.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def bootstrap_mean(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of a mean, from a fixed seed; (nan, nan) without values."""
    if len(values) == 0:
        return math.nan, math.nan
    # A resample is the count of each distinct value. Few are distinct, so ten thousand queries cost no more than ten.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
    means = drawn @ distinct / len(values)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_ratio(hits_of_G2: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of a share, from a fixed seed, over groups that stand together.

    Shapes: (G, 2), the hits and the number of tries of each group. Groups are drawn, not tries.
    """
    num_groups = len(hits_of_G2)
    drawn_RG = np.random.default_rng(0).multinomial(num_groups, np.full(num_groups, 1 / num_groups), RESAMPLES)
    hits, tries = (drawn_RG @ hits_of_G2).T
    low, high = np.quantile(hits / tries, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(one_Q: npt.NDArray[np.bool_], other_Q: npt.NDArray[np.bool_]) -> float:
    """Return the two-sided p value of McNemar's exact test that two systems are right equally often.

    Under this hypothesis, the queries that only one system finds are split between the systems like tosses of a fair
    coin: p is twice the smaller tail of that binomial, at most 1. The observed outcome counts in full, not by half as
    in the mid-p test.
    Source: McNemar 1947; the exact form as in Fagerland et al. 2013, equation 2.
    """
    only_one, only_other = int((one_Q & ~other_Q).sum()), int((other_Q & ~one_Q).sum())
    discordant = only_one + only_other
    if discordant == 0:
        return 1.0
    from scipy.stats import binom  # slow to import, and only comparisons need it

    return min(1.0, 2 * float(binom.cdf(min(only_one, only_other), discordant, 0.5)))


def bootstrap_difference(one_Q: npt.NDArray[np.bool_], other_Q: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of mean(other) - mean(one), over the same queries.

    A drawn query brings its outcomes for both systems. From a fixed seed; (nan, nan) without queries.
    """
    return bootstrap_mean(other_Q.astype(np.float64) - one_Q.astype(np.float64))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for multiple tests, in the given order: at most 1, never below the raw ones.

    The smallest of m is multiplied by m, the next by m - 1 and so on; each is raised to the one before it if smaller.
    Source: Holm 1979.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def detectable_difference(difference_Q: npt.NDArray[np.floating], num_tests: int = 1) -> float:
    """Return the smallest mean difference that a paired test of these queries sees in 80 % of cases.

    The test is two-sided at 5 %, divided by the number of tests (Bonferroni, which Holm's first step is), and by the
    normal approximation; McNemar's exact test needs a little more where few queries differ. It depends on
    how much the differences (Q,) of single queries scatter, and on their number; NaN where they do not scatter, as then
    they do not tell.
    Source: (z[1 - level / 2] + z[power]) sigma / sqrt(n), as in Card et al., With little power comes great
    responsibility, EMNLP 2020.
    """
    if len(difference_Q) < 2 or not np.ptp(difference_Q) > 0:
        return math.nan
    error = float(np.std(difference_Q, ddof=1)) / math.sqrt(len(difference_Q))
    normal = NormalDist()
    return (normal.inv_cdf(1 - LEVEL / (2 * num_tests)) + normal.inv_cdf(POWER)) * error


def paired_p(difference_Q: npt.NDArray[np.floating]) -> float:
    """Return the two-sided p value that the mean of paired differences is 0, by the normal approximation.

    For tens of queries and more; 1 if no query differs, and 0 if all differ by the same.
    """
    if len(difference_Q) < 2 or not np.any(difference_Q):
        return 1.0
    error = float(np.std(difference_Q, ddof=1)) / math.sqrt(len(difference_Q))
    return 2 * NormalDist().cdf(-abs(float(np.mean(difference_Q))) / error) if error > 0 else 0.0


def rank_with_ties(share_GQ: Sequence[npt.NDArray[np.floating]]) -> list[int]:
    """Return the rank of each system: 1 plus the number of systems that are significantly better.

    Shares are of the same queries. Systems that nothing is better than share the first rank; of two that cannot be told
    apart, one may rank behind the other, if a third is better than it alone. Each pair is tested once (`paired_p`), all
    pairs together by Holm's correction at 5 %.
    """
    pairs = [(i, j) for i in range(len(share_GQ)) for j in range(i)]
    p_holm = holm([paired_p(share_GQ[i] - share_GQ[j]) for i, j in pairs])
    ranks = [1] * len(share_GQ)
    for (i, j), p in zip(pairs, p_holm, strict=True):
        if p < LEVEL:
            ranks[i if share_GQ[i].mean() < share_GQ[j].mean() else j] += 1
    return ranks
