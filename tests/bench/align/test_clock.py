import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.align.clock import BLOCK, TAPS, Clock, ClockRange, Wobble, warp, warp_blocks
from bench.errors import ConfigError
from bench.values import RATE_HZ

SWINGING = Clock(0.3, 5e-4, 5.0, (Wobble(0.05, 40.0, 1.0), Wobble(0.02, 11.0, 2.0)))


def test_lag_is_offset_drift_and_wobble_by_hand() -> None:
    clock = Clock(2.0, 0.001, 60.0, (Wobble(0.5, 40.0, 0.0),))
    # at 10 s: 2 - 0.05 + 0.5 sin(90 degrees); at 60 s: 2 + 0 + 0.5 sin(540 degrees); at 70 s: 2 + 0.01 + 0.5 sin(630)
    np.testing.assert_allclose(clock.lag(np.array([10.0, 60.0, 70.0])), [2.45, 2.0, 1.51], atol=1e-12)
    np.testing.assert_allclose(clock.time1(np.array([10.0])), [12.45], atol=1e-12)


@given(
    st.floats(-5, 5),
    st.floats(-0.2, 0.2),
    st.floats(-0.3, 0.3),
    st.floats(10, 200),
    st.lists(st.floats(-10, 3700), max_size=5),
)
def test_inverse_is_right_to_a_nanosecond_and_time_goes_on(
    offset_s: float, drift: float, height_s: float, period_s: float, times: list[float]
) -> None:
    clock = Clock(offset_s, drift, 60.0, (Wobble(height_s, period_s, 1.0),))
    time0_K = np.sort(np.array(times))
    assert np.abs(clock.time0(clock.time1(time0_K)) - time0_K).max(initial=0) < 1e-9
    assert (np.diff(clock.time1(time0_K)) >= 0).all()


@pytest.mark.parametrize(
    "parts",
    [
        {"drift": 0.6},
        {"offset_s": np.nan},
        {"wobbles": (Wobble(1.0, 10.0, 0.0),)},  # 2 pi / 10 = 0.63 s a second
        {"wobbles": (Wobble(0.0, 0.0, 0.0),)},
    ],
)
def test_a_clock_that_could_run_backwards_is_refused(parts: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"less than 0\.5|must be > 0"):
        Clock(**parts)  # type: ignore[arg-type]


@given(st.integers(0, 2**32), st.sampled_from([(4.5, 500.0, 0.05), (0.45, 100.0, 0.005), (0.0, 0.0, 0.0)]))
def test_drawn_clocks_keep_their_range(seed: int, limits: tuple[float, float, float]) -> None:
    wanted = ClockRange(*limits)
    clock = wanted.draw(np.random.default_rng(seed), 120.0)
    lag = clock.lag(np.linspace(0, 120, 1001))
    assert np.abs(lag).max() <= wanted.largest_lag_s(120.0) + 1e-12
    curve = lag - np.polyval(np.polyfit(np.linspace(0, 120, 1001), lag, 1), np.linspace(0, 120, 1001))
    assert (np.abs(curve).max() > 1e-6) == (limits[2] > 0)  # a wobble is no line


def test_a_range_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match=">= 0"):
        ClockRange(-1.0, 0.0)


@pytest.mark.parametrize("hertz", [30.0, 440.0, 3000.0, 6000.0, 7000.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_warped_sines_are_right_to_80_db_below_7_khz(hertz: float, sign: int) -> None:
    num_samples = 6 * RATE_HZ
    wave_T = np.sin(2 * np.pi * hertz * np.arange(num_samples) / RATE_HZ).astype(np.float32)
    clock = Clock(sign * 0.3, sign * 0.004, 3.0, (Wobble(0.02, 4.0, 1.0),))
    heard_s = clock.time1(np.arange(num_samples) / RATE_HZ)
    inside = (heard_s > TAPS / RATE_HZ) & (heard_s < 6 - TAPS / RATE_HZ)
    error = warp(wave_T, heard_s)[inside] - np.sin(2 * np.pi * hertz * heard_s[inside])
    assert inside.sum() > 5 * RATE_HZ
    assert np.abs(error).max() < 10 ** (-80 / 20)


def test_warped_is_the_sum_of_windowed_sincs() -> None:
    """The slow oracle: the equation with scipy's Kaiser window, sample by sample."""
    from scipy.special import i0

    draw = np.random.default_rng(0)
    wave_T = draw.standard_normal(500)
    times = draw.uniform(0, 500 / RATE_HZ, 200)
    beta = 0.1102 * (100 - 8.7)
    expected = []
    for place in times * RATE_HZ:
        near = range(int(place) - TAPS // 2 + 1, int(place) + TAPS // 2 + 1)
        weights = [np.sinc(place - n) * i0(beta * np.sqrt(max(0, 1 - (2 * (place - n) / TAPS) ** 2))) for n in near]
        samples = [wave_T[n] if 0 <= n < 500 else 0.0 for n in near]
        expected.append(np.dot(weights, samples) / np.sum(weights))
    np.testing.assert_allclose(warp(wave_T, times), expected, atol=3e-5)  # -90 dB: phases and float32


def test_warped_at_its_own_times_is_the_wave_and_silence_outside() -> None:
    wave_T = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    times = np.arange(-500, 1500) / RATE_HZ
    heard = warp(wave_T, times)
    np.testing.assert_allclose(heard[500:1500], wave_T, atol=1e-5)
    assert np.abs(heard[: 500 - TAPS]).max() == 0 and np.abs(heard[1500 + TAPS :]).max() == 0
    assert np.abs(warp(wave_T, np.array([-1e9, 1e9]))).max() == 0
    assert len(warp(wave_T, np.zeros(0))) == 0


def test_a_late_channel_is_brought_forward() -> None:
    """An event at 1 s of channel 0 is at 1.25 s of channel 1; on the clock of channel 0 it is at 1 s again."""
    wave1_T = np.zeros(2 * RATE_HZ, np.float32)
    wave1_T[round(1.25 * RATE_HZ)] = 1
    moved = np.concatenate(list(warp_blocks(wave1_T, Clock(0.25).time1, 2 * RATE_HZ)))
    assert np.argmax(moved) == RATE_HZ and moved.max() == pytest.approx(1, abs=1e-5)


def test_another_rate_moves_by_the_same_seconds() -> None:
    wave_T = np.zeros(1000, np.float32)
    wave_T[500] = 1
    assert warp(wave_T, np.array([500 / 48_000]), rate_hz=48_000)[0] == pytest.approx(1, abs=1e-5)


def test_blocks_are_the_whole_and_memory_is_flat(tmp_path: Path) -> None:
    """A map of 80 MB is put onto another clock in less than a tenth of it."""
    num_samples = 20_000_000
    long_T = np.lib.format.open_memmap(tmp_path / "long.npy", mode="w+", dtype=np.float32, shape=(num_samples,))
    long_T[5 * BLOCK - 100 : 6 * BLOCK] = np.random.default_rng(2).standard_normal(BLOCK + 100)
    blocks = warp_blocks(long_T, SWINGING.time1, num_samples)
    tracemalloc.start()
    first = [next(blocks) for _ in range(8)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = warp(long_T, SWINGING.time1(np.arange(8 * BLOCK) / RATE_HZ))
    np.testing.assert_allclose(np.concatenate(first), whole, atol=2e-5)
    assert peak < 16e6
