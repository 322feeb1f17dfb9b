"""Alignments, against a count of every place by itself."""

from __future__ import annotations

import numpy as np
import pytest

from bench.match.alignments import find_alignments, rows_of


def find_slowly(
    print_: np.ndarray, row: np.ndarray, offset: np.ndarray, window: int, num_answers: int
) -> list[tuple[int, float, int]]:
    hits = list(zip(print_.tolist(), row.tolist(), offset.tolist(), strict=True))
    places = sorted({(r, o) for _, r, o in hits})
    counted = []
    for r, o in places:
        near = [(p, q) for p, s, q in hits if s == r and abs(q - o) <= window]
        counted.append((-len({p for p, _ in near}), r, o, float(np.mean([q for _, q in near]))))
    found: list[tuple[int, int, int, float]] = []
    for count, r, o, mean in sorted(counted):
        if len(found) < num_answers and not any(r == s and abs(o - p) <= 2 * window for _, s, p, _ in found):
            found.append((count, r, o, mean))
    return [(r, mean, -count) for count, r, _, mean in found]


@pytest.mark.parametrize("window", [0, 1, 3, 40])
@pytest.mark.parametrize("hits", [0, 1, 2, 30, 300])
def test_alignments_are_those_of_a_count_of_every_place(hits: int, window: int) -> None:
    draw = np.random.default_rng(hits + window)
    print_, row, offset = draw.integers(0, 8, hits), draw.integers(0, 4, hits), draw.integers(-20, 60, hits)
    found = find_alignments(print_, row, offset, window, 12)
    wanted = find_slowly(print_, row, offset, window, 12)
    assert found.row_A.tolist() == [w[0] for w in wanted]
    assert found.offset_A == pytest.approx([w[1] for w in wanted])
    assert found.count_A.tolist() == [w[2] for w in wanted]


def test_a_print_counts_once_however_many_of_its_hits_are_in_the_window() -> None:
    # Print 0 meets offsets 9, 10 and 11 of row 2, print 1 only 10, and both meet 30 of row 0.
    print_, row = np.array([0, 0, 0, 1, 0, 1]), np.array([2, 2, 2, 2, 0, 0])
    offset = np.array([9, 10, 11, 10, 30, 30])
    found = find_alignments(print_, row, offset, 1, 5)
    assert (found.row_A.tolist(), found.count_A.tolist()) == ([0, 2], [2, 2])
    assert found.offset_A.tolist() == [30.0, 9 + 2 / 3]  # seen from 9, the first of equal places: 9, 10 and 10


def test_answers_of_one_track_share_no_hit() -> None:
    print_, offset = np.arange(6), np.array([9, 11, 12, 12, 13, 20])
    found = find_alignments(print_, np.zeros(6, np.int64), offset, 1, 5)
    assert found.count_A.tolist() == [4, 1, 1] and found.offset_A.tolist() == [12.0, 9.0, 20.0]


def test_positions_become_rows_and_times_of_their_own() -> None:
    row, time = rows_of(np.array([0, 4, 5, 8, 9]), np.array([0, 5, 5, 9, 12]))  # track 1 is empty
    assert (row.tolist(), time.tolist()) == ([0, 0, 2, 2, 3], [0, 4, 0, 3, 0])


def test_of_equal_counts_the_preferred_track_comes_first_and_no_preference_beats_a_count() -> None:
    # Rows 0 and 2 have two prints that agree, row 1 has one.
    print_, row, offset = np.array([0, 1, 0, 0, 1]), np.array([0, 0, 1, 2, 2]), np.full(5, 7)
    found = find_alignments(print_, row, offset, 0, 3, np.array([0.1, 0.9, 0.2]))
    assert found.row_A.tolist() == [2, 0, 1]
    assert found.score_A == pytest.approx([2.2, 2.1, 1.9]) and found.count_A.tolist() == [2, 2, 1]
