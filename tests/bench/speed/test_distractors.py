"""A crowd of made-up tracks: what it keeps of the real ones, and that it is made whole after a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.errors import ConfigError, DataError
from bench.search.distractors import fit_principal_axes, reflect_sequence
from bench.speed import distractors as crowds
from bench.speed.distractors import prepare_distractors
from bench.store import Store
from bench.values import Fingerprints, no_progress

TRACKS, LENGTH, DIM = 40, 60, 32


def music(tracks: int = TRACKS, length: int = LENGTH) -> np.ndarray:
    """Return unit vectors (tracks, length, D): each track wanders about a place of its own, its steps are small.

    A few axes hold most of the variance, and the mean is not 0, as with real encoders.
    """
    draw = np.random.default_rng(0)
    scale = 0.9 ** np.arange(DIM)
    home = draw.standard_normal((tracks, 1, DIM))
    step = draw.standard_normal((tracks, length, DIM))
    for i in range(1, length):
        step[:, i] = 0.8 * step[:, i - 1] + 0.6 * step[:, i]
    wave = (0.7 * home + step) * scale + 0.3
    return (wave / np.linalg.norm(wave, axis=2, keepdims=True)).astype(np.float32)


def fingerprints(sequences: list[np.ndarray], key: str = "real") -> Fingerprints:
    first = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
    tracks = 10 + 2 * np.arange(len(sequences))
    return Fingerprints(np.concatenate(sequences), tracks, first, 1_600, key)


@pytest.fixture(scope="module")
def real() -> Fingerprints:
    return fingerprints(list(music()))


@pytest.fixture(scope="module")
def made(real: Fingerprints, tmp_path_factory: pytest.TempPathFactory) -> Fingerprints:
    return prepare_distractors(Store(tmp_path_factory.mktemp("store")), real, 6 * len(real.vectors) + 7, no_progress)


def test_real_tracks_come_first_and_the_last_made_up_one_is_cut_off(real: Fingerprints, made: Fingerprints) -> None:
    np.testing.assert_array_equal(made.vectors[: len(real.vectors)], real.vectors)
    assert len(made.vectors) == 6 * len(real.vectors) + 7 == made.first_vector[-1]
    assert made.vectors.dtype == np.float32 and made.hop_samples == real.hop_samples
    np.testing.assert_array_equal(made.tracks[:TRACKS], real.tracks)
    assert len(set(made.tracks.tolist())) == len(made.tracks) == 6 * TRACKS + 1
    np.testing.assert_array_equal(np.diff(made.first_vector), [*[LENGTH] * 6 * TRACKS, 7])


def test_vectors_are_of_unit_length(made: Fingerprints) -> None:
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-6)


def test_a_reflection_is_that_of_the_equation(real: Fingerprints) -> None:
    spread, sequence = fit_principal_axes(real.vectors), real.vectors[:LENGTH]
    found = reflect_sequence(sequence, spread, np.random.default_rng(5), crowds.FLIPPED)
    mean = real.vectors.astype(np.float64).mean(axis=0)
    variance, axes = np.linalg.eigh(np.cov(real.vectors.T.astype(np.float64), bias=True))
    held, sign = 0.0, np.ones(DIM)
    for axis in np.random.default_rng(5).permutation(DIM):
        sign[axis], held = -1, held + variance[axis] / variance.sum()
        if held >= crowds.FLIPPED:
            break
    expected = np.array([mean + axes @ (sign * (axes.T @ (x - mean))) for x in sequence.astype(np.float64)])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_track_stays_like_itself_through_time(real: Fingerprints, made: Fingerprints) -> None:
    """Similarities of two moments, of every made-up track against the one it is made from."""
    tracks = made.vectors[: 6 * len(real.vectors)].reshape(-1, LENGTH, DIM)
    for lag in (1, 3, 20):
        alike = np.einsum("tnd,tnd->tn", tracks[:, lag:], tracks[:, :-lag]).mean(axis=1)
        own, other = alike[:TRACKS], alike[TRACKS:]
        turns = other.reshape(5, TRACKS)
        assert abs(turns.mean() - own.mean()) < 0.02
        assert np.corrcoef(np.tile(own, 5), other)[0, 1] > 0.7


def test_made_up_tracks_are_impostors_as_hard_as_other_real_tracks(real: Fingerprints, made: Fingerprints) -> None:
    queries = real.vectors[::11]
    own = real.track_row_of(np.arange(len(real.vectors))[::11])
    best = (queries @ made.vectors[: 6 * len(real.vectors)].T).reshape(len(queries), -1, LENGTH).max(axis=2)
    other = np.arange(TRACKS) != own[:, None]
    among_real, among_made = best[:, :TRACKS][other], best[:, TRACKS:].ravel()
    for share in (0.25, 0.5, 0.75, 0.95):
        assert abs(np.quantile(among_real, share) - np.quantile(among_made, share)) < 0.05
    from_own = best[:, TRACKS:].reshape(len(queries), 5, TRACKS).transpose(0, 2, 1)[~other]
    assert np.quantile(from_own, 0.5) < 0.95  # not copies of the track that they are made from


def test_covariance_and_mean_are_kept(real: Fingerprints, made: Fingerprints) -> None:
    crowded = made.vectors[len(real.vectors) :].astype(np.float64)
    own = np.cov(real.vectors.T.astype(np.float64))
    assert np.linalg.norm(np.cov(crowded.T) - own) < 0.15 * np.linalg.norm(own)
    np.testing.assert_allclose(crowded.mean(axis=0), real.vectors.mean(axis=0), atol=0.05)


def test_a_killed_crowd_goes_on_where_it_was_and_becomes_the_same(
    real: Fingerprints, made: Fingerprints, tmp_path: Path
) -> None:
    begun: list[int] = []

    def kill(at: int) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            begun.append(done)
            if done >= at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare_distractors(Store(tmp_path), real, len(made.vectors), progress)

    kill(5 * LENGTH)
    kill(90 * LENGTH)
    (partial,) = (tmp_path / "crowd").glob("*.partial/vectors.npy")
    with partial.open("ab") as file:  # half a vector: a kill in the middle of a write
        file.write(b"\1" * (LENGTH * DIM * 2))
    assert begun.count(0) == 1  # the second time did not begin anew
    again = prepare_distractors(Store(tmp_path), real, len(made.vectors), no_progress)
    np.testing.assert_array_equal(again.vectors, made.vectors)
    assert again.key == made.key


def test_tracks_of_any_length_take_turns_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    waves = music(3, 9)
    real = fingerprints([waves[0][:0], waves[0][:4], waves[1][:0], waves[2]])
    found = prepare_distractors(Store(tmp_path), real, 13 + 13 + 4 + 2, no_progress)
    np.testing.assert_array_equal(np.diff(found.first_vector), [0, 4, 0, 9, 4, 9, 4, 2])
    assert found.tracks.tolist() == [10, 12, 14, 16, 17, 18, 19, 20]
    assert not np.array_equal(found.vectors[13:17], found.vectors[26:30])  # made from the same, otherwise


def test_sizes_that_need_no_crowd_or_cannot_have_one(real: Fingerprints, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert prepare_distractors(store, real, len(real.vectors), no_progress) is real
    with pytest.raises(ConfigError, match="at least the 2400 real vectors, got 2399"):
        prepare_distractors(store, real, len(real.vectors) - 1, no_progress)
    with pytest.raises(DataError, match="no fingerprint to derive distractors from"):
        prepare_distractors(store, fingerprints([np.zeros((0, DIM), np.float32)]), 5, no_progress)
    assert not (tmp_path / "crowd").exists()


def test_one_vector_can_be_repeated(tmp_path: Path) -> None:
    one = music(1, 1)[0]
    np.testing.assert_allclose(
        prepare_distractors(Store(tmp_path), fingerprints([one]), 3, no_progress).vectors, one[[0, 0, 0]]
    )


def test_a_full_disk_is_a_sentence(real: Fingerprints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.errors import StoreError

    def full(*_: object) -> np.ndarray:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crowds, "reflect_sequence", full)
    with pytest.raises(StoreError, match="cannot write crowd in the store"):
        prepare_distractors(Store(tmp_path), real, len(real.vectors) + 1, no_progress)
