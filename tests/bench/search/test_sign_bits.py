"""Sign bits: read back as they were made, at any place of any track, and what a damaged file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.audio.whiten import halve_rate, whiten
from bench.errors import StoreError
from bench.search.sign_bits import SignBits, make_sign_bits, read_sign_bits, write_sign_bits

RNG = np.random.default_rng(0)
TRACKS = [RNG.integers(-20_000, 20_000, size=size).astype(np.int16) for size in (1_000, 333, 2_048)]


@pytest.fixture
def bits(tmp_path: Path) -> SignBits:
    counts = write_sign_bits(tmp_path / "bits.u8", iter(TRACKS))
    assert counts == [500, 167, 1_024]
    return read_sign_bits(tmp_path / "bits.u8", counts, "key")


def signs_of(track: np.ndarray) -> np.ndarray:
    return np.where(whiten(halve_rate(track)) >= 0, 1, -1).astype(np.float32)


@pytest.mark.parametrize("row", range(3))
def test_window_holds_the_signs_of_its_track_and_zeros_beyond_it(bits: SignBits, row: int) -> None:
    padded = np.concatenate([np.zeros(64, np.float32), signs_of(TRACKS[row]), np.zeros(2_000, np.float32)])
    firsts = np.array([-64, -8, 0, 8, 104, 160])
    windows = bits.read_windows(np.full(len(firsts), row), firsts, 256)
    for window, first in zip(windows, firsts, strict=True):
        np.testing.assert_array_equal(window, padded[64 + first : 64 + first + 256])


@pytest.mark.parametrize("step", [2, 4, 8])
def test_means_of_samples_are_those_of_the_window(bits: SignBits, step: int) -> None:
    inside = bits.read_windows(np.array([2]), np.array([16]), 256)
    means = bits.read_windows(np.array([2]), np.array([16]), 256, step)
    np.testing.assert_array_equal(means, inside.reshape(1, -1, step).mean(axis=2))
    # Track 1 has 167 samples: from sample 160 on, 7 of them are left, and nothing before its first.
    beyond = bits.read_windows(np.array([1, 1]), np.array([160, -16]), 32, step)
    assert (beyond[0, -(-7 // step) :] == 0).all()
    assert (beyond[1, : 16 // step] == 0).all()
    assert beyond[1, 16 // step] == signs_of(TRACKS[1])[:step].mean()


def test_eight_samples_take_a_byte() -> None:
    packed, count = make_sign_bits(TRACKS[0])
    assert (packed.nbytes, count) == (63, 500)


def test_windows_of_several_tracks_are_read_together(bits: SignBits) -> None:
    windows = bits.read_windows(np.array([2, 0]), np.array([0, 0]), 8)
    np.testing.assert_array_equal(windows, [signs_of(TRACKS[2])[:8], signs_of(TRACKS[0])[:8]])


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bits.u8"
    counts = write_sign_bits(path, iter(TRACKS))
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    with pytest.raises(StoreError, match=r"bits\.u8 is missing or cut off"):
        read_sign_bits(path, counts, "key")
