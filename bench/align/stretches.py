"""Stretches of a pair in which one clock holds, and how they are joined where it jumps.

Shape legend: K knots, C candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from bench.align.candidates import LEAST_JUMP_S
from bench.align.contract import SPACING_S, Jump, Seconds, TimeMap
from bench.align.evidence import Evidence, rate_against_rivals
from bench.align.waves import JumpTime, Whitened, find_jump
from bench.values import Ints

LIKELY = 0.5  # probability from which on a candidate is the answer
SPEAKS_FROM = 5.0  # height of a second from which on it speaks for a lag
BRIDGE_S = 60.0  # silence between two seconds of one clock over which its lag is believed
WANDERS = 0.005  # change of the lag in each second of silence that may be a clock that wanders, and no jump
EPSILON_S = 1e-4  # between two knots at a jump
EDGE_S = 0.5  # how far a second's evidence reaches: doubted beyond its ends, and beside the likely moments of a jump


@dataclass(frozen=True, eq=False)
class Stretch:
    """Times in channel 0, the lags there, confidences and heights of the correlation, each (K,)."""

    time0_K: Seconds
    lag_K: Seconds
    confidence_K: npt.NDArray[np.float64]
    height_K: npt.NDArray[np.float64]

    def where(self, is_kept_K: npt.NDArray[np.bool_]) -> Stretch:
        """Return the knots of a mask."""
        return Stretch(*(getattr(self, field.name)[is_kept_K] for field in fields(self)))

    def followed_by(self, other: Stretch) -> Stretch:
        """Return both as one."""
        columns = [[getattr(each, field.name) for each in (self, other)] for field in fields(self)]
        return Stretch(*map(np.concatenate, columns))

    def faded(self) -> Stretch:
        """Return the stretch with a knot without confidence beyond each end."""
        ends_s = (self.time0_K[:1] - EDGE_S, self.time0_K[-1:] + EDGE_S)
        return Stretch(
            np.concatenate([ends_s[0], self.time0_K, ends_s[1]]),
            np.pad(self.lag_K, 1, mode="edge"),
            np.pad(self.confidence_K, 1),
            np.pad(self.height_K, 1),
        )


def cut_stretches(evidence: Evidence, duration1_s: float) -> list[Stretch]:
    """Return the stretches in which a candidate is likelier than not, in order of time.

    One that no second is sure of, as another lag explains it as well, stands only if there is no other.
    """
    probability_KC = evidence.probability_KC
    likeliest_K = probability_KC.argmax(axis=1)
    # A clock is slow to lose its lag: a stretch begins and ends with a second that speaks for it.
    speaks_K = np.take_along_axis(evidence.height_KC, likeliest_K[:, None], axis=1)[:, 0] >= SPEAKS_FROM
    chosen_K = np.where(speaks_K & (probability_KC.max(axis=1) > LIKELY), likeliest_K, -1)
    stretches = [_cut(evidence, duration1_s, *run) for run in find_runs(chosen_K)]
    return _keep_in_order([each for each in stretches if each.confidence_K.max() > LIKELY] or stretches)


def _cut(evidence: Evidence, duration1_s: float, chosen: int, first: int, last: int) -> Stretch:
    """Return the stretch of a candidate from its first to its last knot.

    Between two sure knots it is as sure as the less sure of them.
    """
    time0_K, lag_K = evidence.time0_K, evidence.lag_KC[:, chosen]
    knots = slice(first, last + 1)
    found_K = evidence.probability_KC[knots, chosen]
    confidence_K = np.minimum(np.maximum.accumulate(found_K), np.maximum.accumulate(found_K[::-1])[::-1])
    confidence_K *= rate_against_rivals(evidence.height_KC[knots], chosen)
    # The sound in common may end in the middle of an outermost second, unless a recording ends there.
    is_inside_K = (time0_K + lag_K > 0) & (time0_K + lag_K < duration1_s)
    confidence_K[0] *= first == 0 or not is_inside_K[first - 1]
    confidence_K[-1] *= last == len(time0_K) - 1 or not is_inside_K[last + 1]
    height_K = np.nan_to_num(evidence.height_KC[knots, chosen])
    return Stretch(time0_K[knots], lag_K[knots], confidence_K, height_K)


def find_runs(chosen_K: Ints) -> list[tuple[int, int, int]]:
    """Return each run of knots of one candidate: its number, first and last knot.

    Knots of none (-1) lie between runs, or within one if they last no longer than BRIDGE_S.
    """
    runs: list[tuple[int, int, int]] = []
    for k in np.flatnonzero(chosen_K >= 0).tolist():
        c = int(chosen_K[k])
        if runs and runs[-1][0] == c and (k - runs[-1][2]) * SPACING_S <= BRIDGE_S:
            runs[-1] = (c, runs[-1][1], k)
        else:
            runs.append((c, k, k))
    return runs


def _keep_in_order(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Return the stretches without the shorter one of each two between which channel 1 would run backwards."""
    kept: list[Stretch] = []
    for stretch in stretches:
        while kept and stretch.time0_K[0] + stretch.lag_K[0] <= kept[-1].time0_K[-1] + kept[-1].lag_K[-1]:
            if len(kept[-1].time0_K) >= len(stretch.time0_K):
                break
            kept.pop()
        else:
            kept.append(stretch)
    return kept


def join(one: Whitened, other: Whitened, stretches: Sequence[Stretch], polarity: int) -> TimeMap:
    """Return the map of all stretches of a pair, with a jump from each to the next where the lag changes at once."""
    joined, jumps = stretches[0].faded(), []
    for before, after in itertools.pairwise(stretches):
        lag0_s, lag1_s = float(before.lag_K[-1]), float(after.lag_K[0])
        passed_s = float(after.time0_K[0] - before.time0_K[-1])
        if abs(lag1_s - lag0_s) < max(LEAST_JUMP_S, WANDERS * passed_s):
            joined = joined.followed_by(after.faded())
            continue
        # The outermost seconds of both stretches may hold the jump themselves.
        jump = find_jump(one, other, before.time0_K[-1] - SPACING_S, after.time0_K[0] + SPACING_S, lag0_s, lag1_s)
        jumps.append(Jump(jump.time0_s, lag1_s - lag0_s))
        joined = _join_at(joined, after.faded(), jump, lag0_s, lag1_s)
    return TimeMap.of_knots(joined.time0_K, joined.time0_K + joined.lag_K, joined.confidence_K, tuple(jumps), polarity)


def _join_at(one: Stretch, other: Stretch, jump: JumpTime, lag0_s: float, lag1_s: float) -> Stretch:
    """Return both stretches as one, with no confidence in the moments at which the jump may be."""
    resumes_s = jump.time0_s + max(EPSILON_S, lag0_s - lag1_s)
    doubt_s, sure_s = jump.earliest_s - EDGE_S, resumes_s + jump.latest_s - jump.time0_s + EDGE_S
    edge = Stretch(
        np.array([doubt_s, jump.time0_s, resumes_s, sure_s]), np.array([lag0_s] * 2 + [lag1_s] * 2), *np.zeros((2, 4))
    )
    before, after = one.where(one.time0_K < doubt_s), other.where(other.time0_K > sure_s)
    return before.followed_by(edge).followed_by(after)
