"""Prints of tracks in one array, and one answer for each alignment."""

from pathlib import Path

import numpy as np
import pytest

from bench.errors import StoreError
from bench.match.answers import Answer, answer_each, keep_alignments, no_answer
from bench.match.prints import load_prints, stack_prints


def test_places_are_where_a_whole_query_fits_into_one_track() -> None:
    prints = stack_prints([np.zeros(n, np.uint32) for n in (4, 0, 2, 3)])
    assert prints.places_of(3).tolist() == [0, 1, 6]
    assert prints.places_of(3, without=0).tolist() == [6]
    assert prints.places_of(5).tolist() == []
    position_P = np.arange(-2, 12)
    for without in (-1, 0, 3):
        fits = prints.are_places(position_P, 3, without)
        assert position_P[fits].tolist() == prints.places_of(3, without).tolist()


def test_a_print_belongs_to_the_track_with_prints_around_it() -> None:
    prints = stack_prints([np.zeros(n, np.uint32) for n in (2, 0, 1)])
    assert prints.row_of(np.array([-1, 0, 1, 2, 3])).tolist() == [-1, 0, 0, 2, 3]


def test_damaged_prints_are_refused(tmp_path: Path) -> None:
    stack_prints([np.arange(100, dtype=np.uint32)]).save(tmp_path)
    assert load_prints(tmp_path, np.uint32).print_N.tolist() == list(range(100))
    with pytest.raises(StoreError, match="do not fit"):
        load_prints(tmp_path, np.uint8)
    with pytest.raises(StoreError, match="do not fit"):
        load_prints(tmp_path, np.uint32, (4,))
    content = (tmp_path / "prints.npy").read_bytes()
    (tmp_path / "prints.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"prints\.npy is damaged"):
        load_prints(tmp_path, np.uint32)
    (tmp_path / "prints.npy").unlink()
    with pytest.raises(StoreError, match=r"prints\.npy is damaged"):
        load_prints(tmp_path, np.uint32)


def keep_slowly(row: list[int], place: list[int], score: list[int], num_kept: int, window: int) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(row)), key=lambda i: (-score[i], row[i], place[i])):
        if all(row[k] != row[i] or abs(place[k] - place[i]) >= window for k in kept):
            kept.append(i)
    return kept[:num_kept]


@pytest.mark.parametrize("num_kept", [1, 3, 50])
def test_kept_places_are_those_of_the_slow_way(num_kept: int) -> None:
    draw = np.random.default_rng(num_kept)
    place = draw.permutation(300)
    row, score = place // 100, draw.integers(0, 20, 300)  # many are equal
    kept = keep_alignments(row, place, score, num_kept, 4)
    assert kept.tolist() == keep_slowly(row.tolist(), place.tolist(), score.tolist(), num_kept, 4)


def test_places_in_a_window_are_one_and_equal_scores_come_by_row() -> None:
    row, place, score = np.array([1, 1, 1, 0]), np.array([10, 13, 14, 12]), np.array([5, 4, 3, 5])
    assert keep_alignments(row, place, score, 9, 4).tolist() == [3, 0, 2]


def test_each_query_is_asked_alone_and_its_answers_are_filled_up_with_none() -> None:
    asked: list[tuple[float, int, int]] = []

    def answer(wave_T: np.ndarray, num_answers: int, without: int) -> Answer:
        asked.append((float(wave_T[0]), num_answers, without))
        return (np.array([4]), np.array([-3]), np.array([0.5], np.float32)) if wave_T[0] else no_answer()

    found = answer_each(answer, np.array([[0], [1]], np.float32), 2, np.array([-1, 7]))
    assert asked == [(0.0, 2, -1), (1.0, 2, 7)]
    assert found.row_QR.tolist() == [[-1, -1], [4, -1]] and found.start_QR[1, 0] == 0
    assert np.isnan(found.score_QR).tolist() == [[True, True], [False, True]]
