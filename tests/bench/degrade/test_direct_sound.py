"""Where the direct sound of a response is: v1 takes the largest peak for it, later versions find the first one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from bench.datasets import rir_folder, rooms
from bench.degrade.room import (
    DIRECT_AT,
    align_direct_sound,
    find_direct_sound,
    measure_direct_ratio,
    measure_t60,
    set_direct_ratio,
)
from bench.errors import DataError
from bench.values import RATE_HZ, Floats


def response(*peaks: tuple[int, float], noise: float = 0.0) -> Floats:
    """Return a response with peaks (sample, amplitude) after a weak noise."""
    wave_T = noise * np.random.default_rng(0).standard_normal(2_000)
    for at, amplitude in peaks:
        wave_T[at] = amplitude
    return wave_T.astype(np.float32)


@pytest.mark.parametrize("first", [0.15, -0.3, 0.9])
def test_a_reflection_louder_than_the_direct_sound_is_told_from_it(first: float) -> None:
    wave_T = response((300, first), (460, 1.0), (800, -0.6), noise=0.01)
    assert find_direct_sound(wave_T, "v2") == 300
    assert find_direct_sound(wave_T, "v1") == find_direct_sound(wave_T) == 460
    aligned_T = align_direct_sound(wave_T, "v2")
    assert np.abs(aligned_T).max() == 1 and aligned_T[DIRECT_AT] == pytest.approx(first)


def test_an_impulse_that_rises_before_its_peak_is_at_the_peak() -> None:
    wave_T = soxr.resample(response((3 * 300, 1.0)), 3 * RATE_HZ, RATE_HZ)  # rings for some samples on both sides
    assert find_direct_sound(wave_T, "v2") == find_direct_sound(wave_T, "v1") == 300


def test_responses_of_v1_stay_equal_to_the_bit() -> None:
    wave_T = response((300, 0.5), (460, -0.8), noise=0.01)
    expected_T = wave_T[460 - DIRECT_AT :] / np.float32(0.8)
    assert np.array_equal(align_direct_sound(wave_T), expected_T)
    early_T = wave_T[450:]
    lead_T = np.concatenate([np.zeros(DIRECT_AT - 10, np.float32), early_T]) / np.float32(0.8)
    assert np.array_equal(align_direct_sound(early_T), lead_T)


# The direct-to-reverberant ratio


def test_direct_ratio_by_hand() -> None:
    aligned_T = response((DIRECT_AT, 1.0), (2 * DIRECT_AT, 1.0), (2 * DIRECT_AT + 1, 0.5), (900, -0.5))
    # 1 + 1 within 2.5 ms of the direct sound, 0.25 + 0.25 later: a ratio of 4.
    assert measure_direct_ratio(aligned_T) == pytest.approx(10 * np.log10(4))
    assert measure_direct_ratio(response((DIRECT_AT, 1.0))) == pytest.approx(100)


@pytest.mark.parametrize("ratio_db", [-6.0, 0.0, 6.0])
@pytest.mark.parametrize("at", [10, 300])
def test_direct_sound_is_scaled_to_the_ratio(ratio_db: float, at: int) -> None:
    direct_T = response((at - 1, 0.2), (at, 1.0), (at + 1, 0.2))
    later_T = response((at + 20, 0.1), (at + 60, 0.8), (at + 700, -0.6))
    scaled_T = set_direct_ratio(direct_T, later_T, at, ratio_db)
    assert measure_direct_ratio(align_direct_sound(scaled_T, direct=at)) == pytest.approx(ratio_db, abs=1e-3)
    np.testing.assert_allclose(scaled_T[at + 2 :], later_T[at + 2 :])
    assert scaled_T[at] / scaled_T[at + 1] == pytest.approx(5)


def test_ratio_below_that_of_early_reflections_is_refused() -> None:
    with pytest.raises(DataError, match=r"reflections within 2\.5 ms alone are above -20 dB"):
        set_direct_ratio(response((300, 1.0)), response((310, 1.0), (700, 1.0)), 300, -20.0)


@pytest.mark.parametrize("ratio_db", [0.0, 6.0])
def test_simulated_room_has_its_ratio_its_t60_and_its_direct_sound_by_geometry(ratio_db: float) -> None:
    config = rooms.Config((0.4,), 1, train_rooms=0, direct_to_reverberant_db=ratio_db)
    wave_T = rooms.Rooms(config).load("test/0.4/0").wave_T
    assert measure_direct_ratio(wave_T) == pytest.approx(ratio_db, abs=0.01)
    assert measure_t60(wave_T)[0] == pytest.approx(0.4, rel=rooms.ACCEPTABLE)
    # Nothing comes before the direct sound: in v1 this room's largest peak is a reflection, 2.4 ms later.
    assert find_direct_sound(wave_T, "v2") == int(np.argmax(np.abs(wave_T))) == DIRECT_AT
    v1_T = rooms.Rooms(rooms.Config()).load("test/0.4/0").wave_T
    assert find_direct_sound(v1_T, "v2") == 2


def test_rooms_without_a_ratio_have_the_digest_of_v1() -> None:
    plain = rooms.Rooms(rooms.Config()).digest()
    assert plain == rooms.Rooms(rooms.Config(direct_to_reverberant_db=None)).digest()
    assert plain != rooms.Rooms(rooms.Config(direct_to_reverberant_db=0.0)).digest()


def test_measured_room_of_v2_begins_with_its_first_arrival(tmp_path: Path) -> None:
    decay = 10.0 ** (-3 * np.arange(6_000) / RATE_HZ / 0.3)
    wave = 0.05 * decay * np.random.default_rng(0).standard_normal(6_000)
    wave[0], wave[200] = 0.5, -0.9  # a reflection 12.5 ms later is louder
    soundfile.write(tmp_path / "hall.wav", np.pad(wave, (1_000, 0)), RATE_HZ, subtype="FLOAT")
    largest_T, first_T = (
        rir_folder.build(rir_folder.Config(direct_sound=direct_sound), tmp_path).load("hall.wav").wave_T
        for direct_sound in ("largest", "first")
    )
    assert largest_T[DIRECT_AT] == -1 and first_T[DIRECT_AT] == pytest.approx(0.5 / 0.9)
    assert first_T[DIRECT_AT + 200] == -1
