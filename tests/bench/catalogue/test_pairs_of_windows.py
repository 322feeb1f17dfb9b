"""Two windows that each say too little are one answer where they agree; similarities worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bench.catalogue.folder import Catalogue, Limit
from bench.catalogue.lines import Line, Recording, find_stretches
from bench.values import RATE_HZ, Fingerprints

HOP, TRACK, WINDOW = 1_600, 400, 100
DIM = 64


class Stub(SimpleNamespace):
    """What `find_stretches` uses of a catalogue: thresholds of 0.6 alone, and of 0.35 or 0.3 together."""

    threshold = Catalogue.threshold
    pair_threshold = Catalogue.pair_threshold


def catalogue() -> Stub:
    """Return two tracks of random unit vectors in the first half of all dimensions."""
    vectors_ND = np.zeros((2 * TRACK, DIM), dtype=np.float32)
    vectors_ND[:, : DIM // 2] = np.random.default_rng(0).normal(0, 1, (2 * TRACK, DIM // 2))
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return Stub(
        database=Fingerprints(vectors_ND, np.arange(2), np.array([0, TRACK, 2 * TRACK]), HOP, ""),
        limits=(Limit(91, 0.6, 400, 0.01, 0.0),),
        part_limits=(),
        pair_limits=(Limit(50, 0.35, 400, 0.01, 0.0), Limit(100, 0.3, 400, 0.01, 0.0)),
    )


def heard(stub: Stub, parts: list[tuple[int, int, float]]) -> Recording:
    """Return a recording of parts: segments, the place of the first, and the similarity with the place of each.

    The rest of each vector is in dimensions in which the database is 0, so that similarities are exact.
    """
    place_M = np.concatenate([np.arange(place, place + count) for count, place, _ in parts])
    similarity_M = np.concatenate([np.full(count, similarity) for count, _, similarity in parts])
    vectors_MD = similarity_M[:, None] * stub.database.vectors[place_M]
    vectors_MD[:, -1] = np.sqrt(1 - similarity_M**2)
    count = len(place_M)
    return Recording(
        vectors_MD.astype(np.float32), place_M[:, None], np.zeros(count, dtype=bool), count * HOP + RATE_HZ
    )


def found(parts: list[tuple[int, int, float]]) -> list[Line]:
    stub = catalogue()
    return find_stretches(stub, heard(stub, parts))  # type: ignore[arg-type]


def test_two_windows_on_one_line_are_one_answer_at_their_mean() -> None:
    # 0.32 and 0.29 are both below 0.6, and the halves of each below 0.35; together they have 0.305, above 0.3.
    (line,) = found([(WINDOW, 500, 0.32), (WINDOW, 600, 0.29)])
    assert (line.row, line.place) == (1, 500)
    assert line.score == pytest.approx(0.305, abs=1e-4) and line.threshold == pytest.approx(0.3)
    assert (line.begin, line.end) == (0, 2 * WINDOW)


def test_a_clock_that_is_a_hop_off_is_the_same_line() -> None:
    assert len(found([(WINDOW, 500, 0.32), (WINDOW, 601, 0.29)])) == 1


@pytest.mark.parametrize(
    "second",
    [(WINDOW, 602, 0.32), (WINDOW, 200, 0.32), (WINDOW, 600, 0.27)],
    ids=["another time", "another track", "a mean of 0.295"],
)
def test_two_windows_that_disagree_or_say_too_little_are_no_answer(second: tuple[int, int, float]) -> None:
    assert found([(WINDOW, 500, 0.32), second]) == []


@pytest.mark.parametrize(("count", "answers"), [(75, 1), (49, 0)])
def test_a_short_last_piece_is_judged_with_the_window_before_it(count: int, answers: int) -> None:
    # At 75 segments the threshold lies between 0.35 and 0.3: 0.35 - 0.05 x log(75 / 50) / log(2) = 0.3208.
    lines = found([(WINDOW, 500, 0.33), (count, 600, 0.33)])
    assert len(lines) == answers
    assert all(line.threshold == pytest.approx(0.3208, abs=1e-4) for line in lines)


def test_the_halves_of_one_window_still_confirm_each_other() -> None:
    (line,) = found([(WINDOW, 500, 0.36)])
    assert line.threshold == pytest.approx(0.35) and line.score == pytest.approx(0.36, abs=1e-4)


def test_a_piece_in_the_middle_of_nothing_is_no_pair() -> None:
    assert found([(WINDOW, 500, 0.32), (WINDOW, 0, 0.0), (WINDOW, 700, 0.32)]) == []
