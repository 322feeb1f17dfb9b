"""Which of a few lags each second of a pair has, and how surely: a hidden Markov model of a recorder's clock.

Each second is compared with channel 1 at every candidate lag, by the height of the correlation there. How much a height
speaks for or against a lag was measured on pairs with a known truth; one loud second counts no more than a few clear
ones, since an animal may repeat a call exactly. A clock keeps its lag, rarely jumps to another, and may lose it (no
state: silence, or sound of one recorder only). The confidence is the probability of the lag given the whole recording.
Source: Rabiner, A tutorial on hidden Markov models, 1989, section III.A (forwards and backwards).

Shape legend: K knots, one every second, C candidates, S = C + 1 states (the last has no lag), L lags.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len

from bench.align.contract import SPACING_S, Seconds
from bench.align.waves import TINY, Whitened
from bench.score.statistics import MAD_TO_DEVIATION
from bench.values import RATE_HZ, Floats

Values = npt.NDArray[np.float64]

BLOCK = round(SPACING_S * RATE_HZ)
AROUND = RATE_HZ // 4  # samples on either side of a lag, from which the deviation is measured
TOLERANCE = RATE_HZ * 3 // 2000  # samples by which a candidate's lag may be off: 1.5 ms
TONAL_FROM = 8.0  # height, higher than chance peaks beside it, from which on a second may be too tonal to tell its lag:
TONAL = 0.9  # another peak around it has this share of its height

# Log odds that a second shares its sound at a lag, by the height there in deviations: 2,457 seconds at the true lag and
# 10,684 at lags that had a chance peak elsewhere in the pair (docs/experiments.md).
HEIGHTS = (2.0, 3.5, 4.5, 5.5, 6.5, 8.0, 10.0, 50.0)
LOG_ODDS = (-1.9, -0.9, 0.3, 1.4, 2.5, 3.5, 4.5, 5.5)

JUMPS = -9.0  # log probability in each second that the clock jumps to another candidate's lag,
LOSES = -5.0  # that it loses its lag
FINDS = -6.0  # and that it finds one, or has it at the start
RIVAL = 2.0  # log odds by which a lag must beat any other one that it could be confused with
SHARED = 0.5  # of a stretch that a rival must be able to explain


@dataclass(frozen=True, eq=False)
class Evidence:
    """The lags of each candidate at each knot, the heights of the correlation there, and the probabilities, (K, C)."""

    time0_K: Seconds
    lag_KC: Seconds
    height_KC: Values
    probability_KC: Values


def gather_evidence(one: Whitened, other: Whitened, time0_K: Seconds, lag_KC: Seconds) -> Evidence:
    """Return the evidence for candidates whose lags (K, C) at some knots are given."""
    height_KC = measure_heights(one, other, time0_K, lag_KC)
    return Evidence(time0_K, lag_KC, height_KC, weigh(height_KC))


def measure_heights(one: Whitened, other: Whitened, time0_K: Seconds, lag_KC: Seconds) -> Values:
    """Return the height (K, C) of the correlation of the second around each knot, at the lags of each candidate.

    In deviations of the correlation around that lag; NaN where a second says nothing: it is silent in a recording, lies
    outside the other one, or is as high at other lags around, as a buzz is. Cost: an FFT of 1.5 s for each.
    """
    fft_samples = next_fast_len(BLOCK + 2 * AROUND, real=True)
    height_KC = np.full(lag_KC.shape, np.nan)
    for k, knot_s in enumerate(time0_K):
        start = max(0, min(round(knot_s * RATE_HZ) - BLOCK // 2, len(one.wave_T) - BLOCK))
        spectrum_F = one.spectrum(start, BLOCK, fft_samples).conj()
        for c, lag_s in enumerate(lag_KC[k]):
            partner = start + round(lag_s * RATE_HZ)
            if -BLOCK // 2 <= partner < len(other.wave_T) - BLOCK // 2:
                near_F = other.spectrum(partner - AROUND, BLOCK + 2 * AROUND, fft_samples)
                height_KC[k, c] = _height(np.abs(irfft(spectrum_F * near_F, fft_samples)[: 2 * AROUND + 1]))
    return height_KC


def _height(correlation_L: Floats) -> float:
    """Return the height of the middle of a correlation, in its deviations; NaN if it says nothing."""
    deviation = MAD_TO_DEVIATION * float(np.median(correlation_L))
    near = slice(AROUND - TOLERANCE, AROUND + TOLERANCE + 1)
    height = float(correlation_L[near].max())
    if deviation <= TINY:
        return np.nan
    aside_L = np.abs(np.arange(-AROUND, AROUND + 1)) > 3 * TOLERANCE
    is_tonal = height > TONAL_FROM * deviation and float(correlation_L[aside_L].max()) > TONAL * height
    return np.nan if is_tonal else height / deviation


def weigh(height_KC: Values) -> Values:
    """Return the probability (K, C) of each candidate at each knot, given all heights. Cost: K C^2."""
    num_knots, num_candidates = height_KC.shape
    odds_KS = np.zeros((num_knots, num_candidates + 1))
    odds_KS[:, :-1] = np.nan_to_num(_log_odds(height_KC))
    change_SS = np.full((num_candidates + 1, num_candidates + 1), JUMPS)
    change_SS[-1], change_SS[:, -1] = FINDS, LOSES
    np.fill_diagonal(change_SS, 0)
    start_S = np.append(np.full(num_candidates, FINDS), 0.0)
    forwards_KS, backwards_KS = odds_KS.copy(), np.zeros_like(odds_KS)
    forwards_KS[0] += start_S
    for k in range(1, num_knots):
        forwards_KS[k] += np.logaddexp.reduce(forwards_KS[k - 1][:, None] + change_SS, axis=0)
    for k in range(num_knots - 2, -1, -1):
        backwards_KS[k] = np.logaddexp.reduce(change_SS + odds_KS[k + 1] + backwards_KS[k + 1], axis=1)
    both_KS = forwards_KS + backwards_KS
    probability_KS = np.exp(both_KS - np.logaddexp.reduce(both_KS, axis=1, keepdims=True))
    probability_KC: Values = probability_KS[:, :-1]
    return probability_KC


def rate_against_rivals(height_KC: Values, chosen: int) -> float:
    """Return the probability that a candidate is the lag of a stretch (K knots) rather than any other candidate.

    Only seconds count in which both could match: sound that repeats itself, such as a loop or a tone, matches at many
    lags, and the one with the longest overlap is no likelier than the others.
    """
    odds_KC = _log_odds(height_KC)
    lead_KC = odds_KC[:, [chosen]] - odds_KC
    is_rival_C = np.isfinite(lead_KC).mean(axis=0) >= SHARED
    is_rival_C[chosen] = False
    lead = np.nansum(lead_KC, axis=0)[is_rival_C].min(initial=np.inf)
    return float(1 / (1 + np.exp(RIVAL - lead)))


def _log_odds(height_KC: Values) -> Values:
    odds_KC: Values = np.interp(height_KC, HEIGHTS, LOG_ODDS)
    return odds_KC
