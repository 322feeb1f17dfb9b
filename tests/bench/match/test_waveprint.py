"""Waveprint: wavelets and Min-Hash by hand and by probability, the search against a slow way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from songs import add_noise, cut_query, draw_song

from bench.errors import ConfigError, StoreError
from bench.match.matchers import waveprint
from bench.match.matchers.waveprint import (
    NUM_BITS,
    Config,
    Waveprint,
    build_haar,
    draw_ranks,
    find_largest_signs,
    hash_pictures,
    hash_wave,
    keys_of,
    paint,
    sum_votes,
    transform,
)

GRID = 1_480  # samples from one stored picture to the next


@pytest.fixture(scope="module")
def songs() -> list[np.ndarray]:
    """Return seven tracks: the first and the fourth are one song, the fifth is silent, the sixth is a click long."""
    songs = [draw_song(seed, 12) for seed in range(7)]
    songs[3], songs[4], songs[5] = songs[0].copy(), np.zeros(60_000, np.int16), songs[5][:10]
    return songs


@pytest.fixture(scope="module")
def folder(songs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waveprint")
    waveprint.build(Config(), iter(songs), folder)
    return folder


@pytest.fixture(scope="module")
def matcher(folder: Path) -> Waveprint:
    return waveprint.load(Config(), folder)


def draw_pictures(number: int) -> np.ndarray:
    return np.random.default_rng(4).exponential(1, (number, 128, 32))


def transform_slowly(picture_FM: np.ndarray) -> np.ndarray:
    """Return wavelets by halving: means and differences of neighbours, then the means again, along either axis."""

    def halve(values: np.ndarray) -> np.ndarray:
        details = []
        while len(values) > 1:
            details.insert(0, (values[::2] - values[1::2]) / np.sqrt(2))
            values = (values[::2] + values[1::2]) / np.sqrt(2)
        return np.concatenate([values, *details])

    return halve(halve(picture_FM).T).T


def test_wavelets_are_those_of_the_slow_way_and_keep_the_energy() -> None:
    picture_QFM = draw_pictures(3)
    wavelet_QFM = transform(picture_QFM)
    for picture_FM, wavelet_FM in zip(picture_QFM, wavelet_QFM, strict=True):
        assert wavelet_FM == pytest.approx(transform_slowly(picture_FM), abs=1e-12)
    assert (wavelet_QFM**2).sum(axis=(1, 2)) == pytest.approx((picture_QFM**2).sum(axis=(1, 2)))


def test_the_matrix_of_four_by_hand() -> None:
    half = np.sqrt(0.5)
    expected = [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [half, -half, 0, 0], [0, 0, half, -half]]
    assert build_haar(4) == pytest.approx(np.array(expected))


def test_a_constant_picture_has_one_wavelet_of_64_times_its_value() -> None:
    wavelet_FM = transform(np.full((1, 128, 32), 3.0))[0]
    assert wavelet_FM[0, 0] == pytest.approx(192) and np.abs(wavelet_FM.ravel()[1:]).max() < 1e-12


def test_200_bits_are_set_and_never_both_of_a_wavelet() -> None:
    bits_QK = find_largest_signs(transform(draw_pictures(5)))
    for bits_K in bits_QK:
        assert len(set(bits_K.tolist())) == 200 == len(set((bits_K // 2).tolist()))
        assert bits_K.max() < NUM_BITS


def test_the_bits_are_the_signs_of_the_largest() -> None:
    wavelet_QFM = transform(draw_pictures(2) - 0.5)
    for wavelet_FM, bits_K in zip(wavelet_QFM, find_largest_signs(wavelet_QFM), strict=True):
        flat = wavelet_FM.ravel().astype(np.float32)
        largest = sorted(range(len(flat)), key=lambda w: (-abs(flat[w]), w))[:200]
        assert set(bits_K.tolist()) == {2 * w + (flat[w] < 0) for w in largest}


def test_of_equal_wavelets_the_first_are_kept_and_zeros_have_no_sign() -> None:
    equal = find_largest_signs(np.ones((1, 128, 32)))
    assert sorted(equal[0].tolist()) == list(range(0, 400, 2))
    few = np.zeros((1, 128, 32))
    few[0, 0, 3] = -1
    assert sorted(find_largest_signs(few)[0].tolist()) == [7] + [NUM_BITS] * 199


def test_a_negated_picture_shares_no_bit() -> None:
    wavelet_QFM = transform(draw_pictures(1))
    assert not set(find_largest_signs(wavelet_QFM)[0].tolist()) & set(find_largest_signs(-wavelet_QFM)[0].tolist())


def test_ranks_are_of_permutations_and_cut_at_a_byte() -> None:
    rank_WP = draw_ranks(1)
    for rank_W in rank_WP[:-1].T:
        assert sorted(rank_W.tolist())[:256] == list(range(256)) and np.count_nonzero(rank_W == 255) == NUM_BITS - 255
    assert np.all(rank_WP[-1] == 255)
    assert np.array_equal(rank_WP, draw_ranks(1)) and not np.array_equal(rank_WP, draw_ranks(2))


def draw_sets(jaccard: float, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two lists of sets of 200 bits, of which w / (400 - w) is shared."""
    draw, shared = np.random.default_rng(6), round(400 * jaccard / (1 + jaccard))
    first, second = [], []
    for _ in range(number):
        bits = draw.permutation(NUM_BITS)[: 400 - shared]
        first.append(bits[:200])
        second.append(bits[200 - shared :])
    return np.array(first), np.array(second)


@pytest.mark.parametrize("jaccard", [0.2, 0.5, 0.8])
def test_bytes_are_equal_as_often_as_sets_are_alike(jaccard: float) -> None:
    rank_WP, (first, second) = draw_ranks(3), draw_sets(jaccard, 200)
    equal = rank_WP[first].min(axis=1) == rank_WP[second].min(axis=1)
    # 20,000 draws, of which the 200 by one permutation are not quite independent: four standard errors.
    assert equal.mean() == pytest.approx(jaccard, abs=4 * np.sqrt(jaccard * (1 - jaccard) / equal.size) + 0.003)


def test_pictures_that_are_half_alike_meet_in_a_table_four_times_in_five() -> None:
    rank_WP, (first, second) = draw_ranks(3), draw_sets(0.5, 400)
    meet_QL = keys_of(rank_WP[first].min(axis=1)) == keys_of(rank_WP[second].min(axis=1))
    jaccard = 133 / 267
    assert meet_QL.any(axis=1).mean() == pytest.approx(1 - (1 - jaccard**4) ** 25, abs=0.08)  # 0.80, four SDs
    assert (meet_QL.sum(axis=1) >= 4).mean() == pytest.approx(0.07, abs=0.05)


def test_a_key_is_four_bytes_below_the_number_of_its_table() -> None:
    key_L = keys_of(np.arange(100, dtype=np.uint8)[None])[0]
    assert [hex(int(key)) for key in key_L[[0, 24]]] == ["0x3020100", "0x1863626160"]


@pytest.mark.parametrize(("seconds", "pictures"), [(0.96, 0), (1.83, 0), (1.84, 1), (2, 14), (3, 101), (5, 274)])
def test_queries_have_as_many_pictures_as_frames_allow(seconds: float, pictures: int) -> None:
    assert len(hash_wave(draw_song(1, seconds), "power", 1, draw_ranks(1))) == pictures


def test_a_query_of_1_84_s_is_answered_and_one_of_1_83_s_is_not(songs: list[np.ndarray], matcher: Waveprint) -> None:
    assert matcher.shortest_s == pytest.approx(1.8384, abs=1e-4)
    assert matcher.find(cut_query(songs[1], 10 * GRID, 1.84)[None], 1).row_QR[0, 0] == 1
    assert matcher.find(cut_query(songs[1], 10 * GRID, 1.83)[None], 1).row_QR[0, 0] == -1


def test_a_picture_on_the_grid_meets_its_stored_twin_in_all_tables(songs: list[np.ndarray], matcher: Waveprint) -> None:
    query_T = cut_query(songs[6], 20 * GRID, 1.84)
    hash_P = hash_wave(query_T, "power", 1, matcher.rank_WP)
    stored_P = matcher.prints.print_N[matcher.prints.first_R[6] + 20]
    assert np.array_equal(hash_P[0], stored_P) and np.array_equal(keys_of(hash_P)[0], keys_of(stored_P[None])[0])
    found = matcher.find(query_T[None], 1)
    assert (found.row_QR[0, 0], found.start_QR[0, 0], found.score_QR[0, 0]) == (6, 20 * GRID, 1)


def find_slowly(matcher: Waveprint, query_T: np.ndarray) -> dict[tuple[int, int], int]:
    """Return the votes (row, offset) of all pairs of pictures that meet in four tables, one pair at a time."""
    hash_QP = hash_wave(query_T, "power", 1, matcher.rank_WP)
    frames = 1 + (len(query_T) - 5_920) // 185
    pairs = []
    for row, (first, end) in enumerate(zip(matcher.prints.first_R[:-1], matcher.prints.first_R[1:], strict=True)):
        for position in range(first, end):
            stored_P = matcher.prints.print_N[position]
            for q, hash_P in enumerate(hash_QP):
                tables = (hash_P == stored_P).reshape(25, 4).all(axis=1).sum()
                offset = (position - first) * 8 - q
                if tables >= 4 and -4 <= offset <= matcher.frames_R[row] - frames + 4 and np.any(stored_P != 255):
                    pairs.append((row, offset, int((hash_P == stored_P).sum())))
    votes = {}
    for row, offset, _ in pairs:
        votes[row, offset] = sum(n for r, o, n in pairs if r == row and offset - 4 <= o < offset + 4)
    return votes


def test_the_search_is_the_slow_one(songs: list[np.ndarray], matcher: Waveprint) -> None:
    query_T = add_noise(cut_query(songs[0], 40_321, 2.2), 10)
    votes = find_slowly(matcher, query_T)
    answers = []
    for row, offset in sorted(votes, key=lambda key: (-votes[key], key)):
        if all(r != row or abs(o - offset) >= 32 for r, o in answers):
            answers.append((row, offset))
    assert len(answers) >= 2
    found = matcher.find(query_T[None], 4)
    expected = [row for row, _ in answers[:4]] + [-1] * (4 - len(answers))
    assert found.row_QR[0].tolist() == expected
    scores = [votes[answer] / (100 * (1 + (len(query_T) - 5_920) // 185 - 127)) for answer in answers[:4]]
    assert found.score_QR[0, : len(scores)].tolist() == pytest.approx(scores)
    assert abs(found.start_QR[0, 0] - 40_321) <= GRID


def test_an_alignment_has_the_votes_of_a_stride_and_their_mean() -> None:
    row_H, offset_H, votes_H = np.array([1, 0, 1, 1]), np.array([8, 8, 4, 12]), np.array([50, 70, 10, 30])
    row_A, offset_A, votes_A, mean_A = sum_votes(row_H, offset_H, votes_H, 8)
    assert row_A.tolist() == [0, 1, 1, 1] and offset_A.tolist() == [8, 4, 8, 12]
    assert votes_A.tolist() == [70, 10, 60, 80]  # [o - 4, o + 4): 4 sees itself, 8 sees 4 and 8, 12 sees 8 and 12
    assert mean_A.tolist() == pytest.approx([8, 4, (8 * 50 + 4 * 10) / 60, (8 * 50 + 12 * 30) / 80])


def test_equal_tracks_come_by_row_and_a_track_left_out_never(songs: list[np.ndarray], matcher: Waveprint) -> None:
    query_BT = np.stack([cut_query(songs[0], 30_011, 3)] * 3)
    found = matcher.find(query_BT, 4, np.array([-1, 0, 3]))
    assert found.row_QR[0, :2].tolist() == [0, 3] and found.score_QR[0, 0] == found.score_QR[0, 1]
    assert found.row_QR[1, 0] == 3 and 0 not in found.row_QR[1]
    assert found.row_QR[2, 0] == 0 and 3 not in found.row_QR[2]


def test_each_query_is_answered_alone_and_after_loading_in_the_same_way(
    songs: list[np.ndarray], folder: Path, matcher: Waveprint
) -> None:
    query_BT = np.stack([add_noise(cut_query(songs[row], 20_000, 2.5), 15, row) for row in (1, 2, 6)])
    together, again = matcher.find(query_BT, 5), waveprint.load(Config(), folder).find(query_BT, 5)
    for b in range(3):
        alone = matcher.find(query_BT[b : b + 1], 5)
        for name in ("row_QR", "start_QR", "score_QR"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[b], equal_nan=True)
            assert np.array_equal(getattr(again, name), getattr(together, name), equal_nan=True)


@pytest.mark.parametrize("query_T", [np.zeros(48_000, np.float32), np.ones(10, np.float32), np.empty(0, np.float32)])
def test_silence_and_a_click_have_no_answer(matcher: Waveprint, query_T: np.ndarray) -> None:
    found = matcher.find(query_T[None], 3)
    assert np.all(found.row_QR == -1) and np.all(np.isnan(found.score_QR))


def test_a_silent_database_answers_nothing(tmp_path: Path) -> None:
    waveprint.build(Config(), iter([np.zeros(60_000, np.int16)]), tmp_path)
    found = waveprint.load(Config(), tmp_path).find(cut_query(draw_song(1, 3), 0, 3)[None], 2)
    assert np.all(found.row_QR == -1)


def test_images_are_power_its_root_and_its_logarithm_down_to_80_db() -> None:
    power_QFM = np.array([[[1e8, 1.0, 1e-3]], [[0.0, 0.0, 0.0]]])
    assert np.array_equal(paint(power_QFM, "power"), power_QFM)
    assert paint(power_QFM, "magnitude")[0, 0].tolist() == pytest.approx([1e4, 1, np.sqrt(1e-3)])
    assert paint(power_QFM, "log")[0, 0].tolist() == pytest.approx([np.log(1e8), 0, 0])
    assert not np.any(paint(power_QFM, "log")[1])


def test_the_level_of_a_query_changes_nothing_but_the_mean() -> None:
    picture_QFM, rank_WP = draw_pictures(2), draw_ranks(1)
    for image in ("power", "magnitude", "log"):
        loud = hash_pictures(paint(4 * picture_QFM, image), rank_WP)
        same = np.mean(loud == hash_pictures(paint(picture_QFM, image), rank_WP))
        assert same == 1 if image != "log" else same > 0.95  # where a level adds to the mean, one wavelet


@pytest.mark.parametrize("name", ["prints", "first_prints", "keys", "first", "positions", "ranks", "frames"])
def test_half_a_file_is_refused(songs: list[np.ndarray], tmp_path: Path, name: str) -> None:
    waveprint.build(Config(stride=80), iter([songs[0][:60_000]]), tmp_path)
    path = tmp_path / f"{name}.npy"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoreError, match="damaged"):
        waveprint.load(Config(stride=80), tmp_path)


def test_frames_of_other_tracks_are_refused(songs: list[np.ndarray], tmp_path: Path) -> None:
    waveprint.build(Config(stride=80), iter([songs[0][:60_000]]), tmp_path)
    np.save(tmp_path / "frames.npy", np.array([3, 4]))
    with pytest.raises(StoreError, match="not of its prints"):
        waveprint.load(Config(stride=80), tmp_path)


@pytest.mark.parametrize("wrong", [{"stride": 0}, {"stride": 129}, {"seed": -1}, {"min_tables": 0}, {"min_tables": 26}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(Config(), **wrong)


def test_the_stride_of_the_first_implementations_finds_long_queries(songs: list[np.ndarray], tmp_path: Path) -> None:
    config = waveprint.presets()["stride-930"]
    waveprint.build(config, iter(songs), tmp_path)
    matcher = waveprint.load(config, tmp_path)
    found = matcher.find(cut_query(songs[2], 33_333, 5)[None], 1)
    assert found.row_QR[0, 0] == 2 and abs(found.start_QR[0, 0] - 33_333) < 800
