"""Verification by the wave: a slow oracle, scores by hand, speeds, ties and what cannot be found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample

from bench.audio.whiten import halve_rate, whiten
from bench.search import verify as module
from bench.search.sign_bits import SignBits, read_sign_bits, write_sign_bits
from bench.search.verify import Candidates, are_candidates, list_speeds, verify, verify_everywhere
from bench.values import RATE_HZ, Found, no_progress

SECOND = RATE_HZ
LENGTH = SECOND  # of the queries


def build(path: Path, *tracks: np.ndarray) -> SignBits:
    counts = write_sign_bits(path / "bits.u8", iter(tracks))
    return read_sign_bits(path / "bits.u8", counts, "key")


def noise(seconds: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3_000, round(seconds * SECOND)).astype(np.int16)


def as_query(track: np.ndarray, start: int, num_samples: int = LENGTH) -> np.ndarray:
    return (track[start : start + num_samples] / 2**15).astype(np.float32)[None]


def search(
    bits: SignBits, wave: np.ndarray, candidates: list[tuple[int, int]], num: int = 3, **options: object
) -> Found:
    row, start = np.array(candidates).reshape(-1, 2).T
    return verify([wave], [Candidates(row[None], start[None])], bits, num, **options)[0]  # type: ignore[arg-type]


def oracle(bits_of: list[np.ndarray], wave: np.ndarray) -> np.ndarray:
    """Return the score at every start of every track (tracks, starts), sample by sample; 0 where a query leaves it."""
    query = whiten(halve_rate(wave[0])).astype(np.float64)
    query /= np.sqrt(np.sum(query**2))
    longest = max(map(len, bits_of))
    scores = np.zeros((len(bits_of), longest))
    for row, signs in enumerate(bits_of):
        for start in range(len(signs) - len(query) + 1):
            scores[row, start] = abs(signs[start : start + len(query)] @ query)
    return scores


def test_best_answers_are_those_of_the_slow_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WIDE_TILE", 4_000)
    tracks = [noise(1.6, 0), noise(0.9, 1), noise(1.2, 2)]
    bits = build(tmp_path, *tracks)
    signs = [np.where(whiten(halve_rate(track)) >= 0, 1, -1) for track in tracks]
    queries = [as_query(tracks[0], 7_001, 3_200), as_query(noise(1, 9), 0, 3_200), as_query(tracks[2], 0, 3_200)]
    own = np.array([0, 1, 2])
    found, impostors = verify_everywhere([np.concatenate(queries)], own, bits, 1, no_progress)
    for query, wave in enumerate(queries):
        scores = oracle(signs, wave)
        row, start = np.unravel_index(scores.argmax(), scores.shape)
        assert (found.row_QR[query, 0], found.start_QR[query, 0]) == (row, 2 * start)
        assert found.score_QR[query, 0] == pytest.approx(scores.max(), abs=module.SCORE_STEP)
        scores[own[query]] = 0
        assert impostors[query] == pytest.approx(scores.max(), abs=module.SCORE_STEP)


@pytest.mark.parametrize("speeds", [(1.0,), list_speeds(0.01, 1.0), list_speeds(0.02, 1.0)])
def test_first_look_at_a_quarter_of_the_rate_keeps_the_best_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speeds: tuple[float, ...]
) -> None:
    tracks = [noise(6, seed) for seed in range(4)]
    bits = build(tmp_path, *tracks)
    candidates = [(row, start) for row in range(4) for start in range(0, 5 * SECOND, SECOND // 4)]
    noisy = as_query(tracks[3], 36_006) + as_query(noise(2, 99), 0)
    quiet = as_query(tracks[0], 0)
    whole = [search(bits, wave, candidates, speeds=speeds) for wave in (noisy, quiet)]
    monkeypatch.setattr(module, "KEPT", 2)
    for wave, expected in zip((noisy, quiet), whole, strict=True):
        found = search(bits, wave, candidates, speeds=speeds)
        assert (found.row_QR[0, 0], found.start_QR[0, 0]) == (expected.row_QR[0, 0], expected.start_QR[0, 0])
        assert found.score_QR[0, 0] == expected.score_QR[0, 0]
        assert np.isnan(found.score_QR[0, 2]), "two tiles were kept"


def test_first_look_keeps_what_plays_at_a_speed_between_those_it_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks = [noise(6, seed) for seed in range(4)]
    played = tracks[2][36_000 : 36_000 + round(LENGTH * 1.006)] / 2**15
    wave = resample(played, LENGTH).astype(np.float32)[None] + as_query(noise(2, 99), 0)
    candidates = [(row, start) for row in range(4) for start in range(0, 5 * SECOND, SECOND // 4)]
    monkeypatch.setattr(module, "KEPT", 2)
    found = search(build(tmp_path, *tracks), wave, candidates, speeds=list_speeds(0.02, 1.0))
    assert (found.row_QR[0, 0], found.start_QR[0, 0]) == (2, pytest.approx(36_000, abs=16))
    assert found.speed_QR is not None
    assert found.speed_QR[0, 0] == pytest.approx(1.006, abs=1e-3)


def test_first_look_keeps_the_best_of_each_query_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    windows = module._Windows(np.array([0, 0, 0, 1, 2, 2]), np.arange(6), np.arange(6) * 8, num_lags=8)
    kept = module._keep_best(windows, np.array([1, 3, 2, 1, 5, 4], np.float32))
    assert kept.row.tolist() == [1, 2, 3, 4, 5]


def test_candidate_half_a_place_away_is_enough(tmp_path: Path) -> None:
    tracks = [noise(3, 0), noise(3, 1)]
    bits = build(tmp_path, *tracks)
    found = search(bits, as_query(tracks[1], 20_002), [(0, 5_000), (1, 20_002 + 1_500)])
    assert (found.row_QR[0, 0], found.start_QR[0, 0]) == (1, 20_002)
    assert found.speed_QR is not None and found.speed_QR[0, 0] == 1


def test_start_between_two_samples_of_the_halved_rate_is_told_within_one(tmp_path: Path) -> None:
    track = noise(3, 0)
    found = search(build(tmp_path, track), as_query(track, 20_001), [(0, 20_000)])
    assert abs(found.start_QR[0, 0] - 20_001) <= 1


def test_score_of_noise_against_itself_is_that_of_one_bit() -> None:
    # The mean size of a normal number is sqrt(2 / pi) of its deviation: of n samples, all of which agree, 0.8 sqrt(n).
    query = np.random.default_rng(0).normal(size=100_000)
    score = np.sign(query) @ (query / np.sqrt(np.sum(query**2)))
    assert score == pytest.approx(np.sqrt(2 / np.pi) * np.sqrt(100_000), rel=0.01)


def test_wrong_place_scores_as_chance_does(tmp_path: Path) -> None:
    tracks = [noise(3, seed) for seed in range(8)]
    bits = build(tmp_path, *tracks)
    found = search(bits, as_query(noise(2, 99), 0), [(row, 8_000) for row in range(8)], num=8)
    # 7,200 lags for each window: the largest of as many normal numbers is about 3.9.
    assert 3 < np.nanmax(found.score_QR) < 5.5


def test_inverted_polarity_is_found(tmp_path: Path) -> None:
    track = noise(3, 0)
    found = search(build(tmp_path, track), -as_query(track, 10_000), [(0, 10_000)])
    assert found.start_QR[0, 0] == 10_000


@pytest.mark.parametrize("speed", [0.98, 0.995, 1.01, 1.02])
def test_changed_speed_is_found_and_told(tmp_path: Path, speed: float) -> None:
    track, start = noise(4, 0), 20_000
    played = track[start : start + round(LENGTH * speed)] / 2**15
    wave = resample(played, LENGTH).astype(np.float32)[None]
    bits = build(tmp_path, track)
    found = search(bits, wave, [(0, start)], speeds=list_speeds(0.02, 1.0))
    assert found.speed_QR is not None
    assert found.speed_QR[0, 0] == pytest.approx(speed, abs=1e-3)
    assert abs(found.start_QR[0, 0] - start) <= 16
    unmoved = search(bits, wave, [(0, start)])
    assert unmoved.score_QR[0, 0] < found.score_QR[0, 0] / 2


def test_speeds_are_a_step_apart_and_reach_the_largest() -> None:
    assert list_speeds(0, 1.0) == (1.0,)
    speeds = sorted(list_speeds(0.01, 1.0))
    assert (speeds[0], speeds[-1], len(speeds)) == (pytest.approx(0.99), pytest.approx(1.01), 11)
    assert np.diff(speeds) == pytest.approx(0.002)
    assert len(list_speeds(0.01, 5.0)) == 51
    assert max(list_speeds(0.001, 1.0)) == pytest.approx(1.001)


def test_of_exact_repetitions_the_earlier_wins(tmp_path: Path) -> None:
    loop = noise(1.5, 0)
    track = np.concatenate([noise(2, 1), loop, noise(1, 2), loop, noise(2, 3)])
    starts = [2 * SECOND, round(4.5 * SECOND)]
    found = search(build(tmp_path, track), as_query(loop, 4_000), [(0, start + 4_000) for start in starts])
    assert found.start_QR[0, 0] == starts[0] + 4_000
    assert found.score_QR[0, 0] - found.score_QR[0, 1] < 1


def test_silence_has_no_answer_and_a_click_scores_as_chance(tmp_path: Path) -> None:
    track = noise(3, 0)
    bits = build(tmp_path, track)
    silent = np.zeros((1, LENGTH), np.float32)
    found = search(bits, silent, [(0, 8_000)])
    assert (found.row_QR == -1).all() and np.isnan(found.score_QR).all()
    click = silent.copy()
    click[0, 5_000] = 1
    assert search(bits, click, [(0, 8_000)]).score_QR[0, 0] < 2


def test_query_without_candidates_and_track_shorter_than_it_have_no_answer(tmp_path: Path) -> None:
    track = noise(0.5, 0)
    bits = build(tmp_path, track)
    wave = as_query(noise(2, 1), 0)
    for candidates in ([(-1, 0)], [(0, 0)]):
        found = search(bits, wave, candidates)
        assert (found.row_QR == -1).all() and np.isnan(found.score_QR).all()


def test_peak_where_two_tiles_meet_is_one_answer(tmp_path: Path) -> None:
    track = noise(4, 0)
    at = 2 * module.TILE  # in samples of the corpus: the first start of the second tile
    found = search(build(tmp_path, track), as_query(track, at), [(0, at - 200), (0, at + 200)])
    assert (found.start_QR[0] == at).sum() == 1
    assert found.start_QR[0, 0] == at


def test_no_batch_has_no_answers(tmp_path: Path) -> None:
    bits = build(tmp_path, noise(2, 0))
    none = np.empty((0, 2), np.int64)
    [found] = verify([], [Candidates(none, none)], bits, 4)
    assert found.row_QR.shape == (0, 4)


def test_sets_of_candidates_are_answered_each_by_its_own(tmp_path: Path) -> None:
    tracks = [noise(3, seed) for seed in range(4)]
    bits = build(tmp_path, *tracks)
    waves = np.concatenate([as_query(tracks[0], 9_000), as_query(tracks[3], 14_000)])
    row, start = np.array([[0, 1, 2], [3, 1, 2]]), np.array([[9_000, 8_000, 9_000], [14_000, 8_000, 9_000]])
    every, without = Candidates(row, start), Candidates(row[:, 1:], start[:, 1:])
    both = verify([waves], [every, without], bits, 3)
    alone = [verify([waves], [each], bits, 3)[0] for each in (every, without)]
    for found, expected in zip(both, alone, strict=True):
        np.testing.assert_array_equal(found.row_QR, expected.row_QR)
        np.testing.assert_array_equal(found.start_QR, expected.start_QR)
        np.testing.assert_array_equal(found.score_QR, expected.score_QR)
    assert both[0].row_QR[:, 0].tolist() == [0, 3]
    assert set(both[1].row_QR[:, :2].ravel()) == {1, 2}


def test_what_lies_in_a_tile_of_a_candidate_or_near_it_is_compared() -> None:
    tile, reach = 2 * module.TILE, 2 * module.REACH  # in samples of the corpus
    candidates = Candidates(np.array([[1, -1]] * 5), np.array([[2 * tile + 50, 0]] * 5))
    starts = np.array([2 * tile - reach, 2 * tile - reach - 2, 3 * tile + reach - 2, 3 * tile + reach, 2 * tile])
    compared = are_candidates(candidates, np.array([1, 1, 1, 1, 0]), starts)
    assert compared.tolist() == [True, False, True, False, False]
