"""Confidence intervals of metrics, and tests between two systems.

A share has Wilson's interval, any other mean a bootstrap interval. Two systems are compared on the same queries, by
McNemar's exact test and by the bootstrap interval of their difference.

Several queries of one track are alike, so that they tell less than as many of other tracks: where the tracks (Q,) of
the queries are given, the sample is one of tracks. With one query of each, everything is as if none were given.

Shape legend: Q queries, G groups (of queries: their tracks), D distinct groups, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from bench.values import Ints

Z_95 = 1.959963984540054  # standard normal quantile at 0.975
MAD_TO_DEVIATION = 1.4826  # standard deviation of a Gaussian over its median absolute deviation
RESAMPLES = 2_000
LEVEL, POWER = 0.05, 0.8  # of tests: false alarms, and how often a difference that is there is seen

Bools = npt.NDArray[np.bool_]
Floats64 = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating] | Bools


def sum_by_track(values_Q: Values, track_Q: Ints | None) -> tuple[Floats64, Floats64]:
    """Return the sum of each track's values, and their number; without tracks each value is one of its own.

    Shapes: (G,) both.
    """
    if track_Q is None:
        return values_Q.astype(np.float64), np.ones(len(values_Q))
    _, group_Q, count_G = np.unique(track_Q, return_inverse=True, return_counts=True)
    return np.bincount(group_Q, values_Q, len(count_G)).astype(np.float64), count_G.astype(np.float64)


def design_effect(hit_Q: Values, track_Q: Ints) -> float:
    """Return how many times the variance of a share is that of as many queries of different tracks; from 1 on.

    1 + (m - 1) rho, with m the mean number of queries of a query's track, and rho the correlation of two queries of one
    track: that of the variances between and within tracks, from 0 to 1. Few hits do not tell rho, and none or all of
    them nothing: two tracks more are counted in rho, one with all of its queries found and one with none, which makes
    it 1 there.
    Source: Kish, Survey Sampling, 1965, section 8.2; rho as in Donner and Koval 1980, Biometrics 36. The two tracks are
    ours, after the two hits and misses of Agresti and Coull 1998.
    """
    sum_G, count_G = sum_by_track(hit_Q, track_Q)
    num_queries, num_tracks = len(hit_Q), len(count_G)
    if num_queries == num_tracks:
        return 1.0
    mean_count = num_queries / num_tracks
    m_G, x_G = np.append(count_G, [mean_count] * 2), np.append(sum_G, [mean_count, 0.0])
    total, freedom = float(m_G.sum()), len(m_G) - 1
    share, share_G = x_G.sum() / total, x_G / m_G
    between = float((m_G * (share_G - share) ** 2).sum()) / freedom
    within = float((m_G * share_G * (1 - share_G)).sum()) / (total - len(m_G))
    usual_m = (total - float((m_G**2).sum()) / total) / freedom
    rho = (between - within) / (between + (usual_m - 1) * within)
    return 1 + (float((count_G**2).sum()) / num_queries - 1) * min(1.0, max(0.0, rho))


def share_interval(hit_Q: Values, track_Q: Ints) -> tuple[float, float]:
    """Return the 95 % interval of a share over other tracks: Wilson's, with n over the design effect.

    Source: n over the design effect as in Korn and Graubard 1998, Survey Methodology 24; Wilson's interval of it is
    among the best of those compared by Franco et al. 2019, J. Survey Statistics and Methodology 7.
    """
    effect = design_effect(hit_Q, track_Q) if len(hit_Q) else 1.0
    return wilson(float(hit_Q.sum()) / effect, len(hit_Q) / effect)


def wilson(hits: float, n: float) -> tuple[float, float]:
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


def bootstrap_mean(values_Q: Values, track_Q: Ints | None = None) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of a mean, from a fixed seed; (nan, nan) without values.

    Tracks are drawn with all of their values.
    """
    if len(values_Q) == 0:
        return math.nan, math.nan
    # A resample is the count of each distinct track. Few are distinct, so ten thousand cost no more than ten.
    sums_of_G2 = np.stack(sum_by_track(values_Q, track_Q), axis=1)
    distinct_D2, counts_D = np.unique(sums_of_G2, axis=0, return_counts=True)
    num_tracks = len(sums_of_G2)
    drawn_RD = np.random.default_rng(0).multinomial(num_tracks, counts_D / num_tracks, size=RESAMPLES)
    sum_D, count_D = np.ascontiguousarray(distinct_D2.T)
    low, high = np.quantile((drawn_RD @ sum_D) / (drawn_RD @ count_D), [0.025, 0.975])
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


def mcnemar(one_Q: Bools, other_Q: Bools, track_Q: Ints | None = None) -> float:
    """Return the two-sided p value of McNemar's exact test that two systems are right equally often.

    Under this hypothesis, the queries that only one system finds are split between the systems like tosses of a fair
    coin: p is twice the smaller tail of that binomial, at most 1. The observed outcome counts in full, not by half as
    in the mid-p test. A track is tossed as a whole, with what one system found more of its queries than the other: all
    tosses of all tracks are counted, as sums of one binomial for each such number.
    Source: McNemar 1947; the exact form as in Fagerland et al. 2013, equation 2. By tracks: the permutation test whose
    normal approximation is a test for clustered pairs, as in Yang, Sun and Hardin 2010, Biometrical Journal 52.
    """
    difference_G = sum_by_track(one_Q.astype(np.float64) - other_Q, track_Q)[0]
    sizes, counts = np.unique(np.abs(difference_G[difference_G != 0]).astype(int), return_counts=True)
    if not len(sizes):
        return 1.0
    from scipy.stats import binom  # slow to import, and only comparisons need it

    smaller_tail = (int(sizes @ counts) - abs(round(difference_G.sum()))) // 2
    # By each sum: the probability that the tracks with a difference above 1 give it in favour of one system.
    probability = np.ones(1)
    for size, count in zip(sizes[sizes > 1], counts[sizes > 1], strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        probability = np.convolve(probability, of_size)
    of_one = int(counts[sizes == 1].sum())
    some = np.arange(min(smaller_tail + 1, len(probability)))
    return min(1.0, 2 * float(probability[some] @ binom.cdf(smaller_tail - some, of_one, 0.5)))


def bootstrap_difference(one_Q: Bools, other_Q: Bools, track_Q: Ints | None = None) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of mean(other) - mean(one), over the same queries.

    A drawn track brings its outcomes for both systems. From a fixed seed; (nan, nan) without queries.
    """
    return bootstrap_mean(other_Q.astype(np.float64) - one_Q.astype(np.float64), track_Q)


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


def standard_error(values_Q: Values, track_Q: Ints | None = None) -> float:
    """Return the standard error of a mean, of at least two tracks.

    Source: that of a ratio of two sums, in Cochran, Sampling Techniques, 1977, chapter 2.
    """
    sum_G, count_G = sum_by_track(values_Q, track_Q)
    around_G = sum_G - values_Q.mean() * count_G
    return float(np.std(around_G, ddof=1)) * math.sqrt(len(around_G)) / len(values_Q)


def detectable_difference(difference_Q: Values, num_tests: int = 1, track_Q: Ints | None = None) -> float:
    """Return the smallest mean difference that a paired test of these queries sees in 80 % of cases.

    The test is two-sided at 5 %, divided by the number of tests (Bonferroni, which Holm's first step is), and by the
    normal approximation; McNemar's exact test needs a little more where few queries differ. It depends on
    how much the differences (Q,) of single queries scatter, and on their number; NaN where they do not scatter, as then
    they do not tell.
    Source: (z[1 - level / 2] + z[power]) sigma / sqrt(n), as in Card et al., With little power comes great
    responsibility, EMNLP 2020.
    """
    if len(difference_Q) < 2 or not float(np.ptp(difference_Q)) > 0:
        return math.nan
    error = standard_error(difference_Q, track_Q)
    normal = NormalDist()
    return (normal.inv_cdf(1 - LEVEL / (2 * num_tests)) + normal.inv_cdf(POWER)) * error


def paired_p(difference_Q: Values, track_Q: Ints | None = None) -> float:
    """Return the two-sided p value that the mean of paired differences is 0, by the normal approximation.

    For tens of queries and more; 1 if no query differs, and 0 if all differ by the same.
    """
    if len(difference_Q) < 2 or not np.any(difference_Q):
        return 1.0
    error = standard_error(difference_Q, track_Q)
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
