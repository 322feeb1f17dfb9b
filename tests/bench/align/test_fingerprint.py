"""The aligners that need an encoder, and the rules for every aligner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import registry
from bench.align.aligners import fingerprint_median_regress as regress
from bench.align.clock import Clock, Wobble, warp
from bench.align.contract import Pair, TimeMap, make_monotonic
from bench.align.lags import subtract_mean
from bench.align.pair_embedder import CachedPairEmbedder
from bench.errors import ConfigError, PluginError
from bench.fingerprint import Embedder
from bench.values import RATE_HZ, Floats, no_progress

HEARING = ("fingerprint-global", "fingerprint-median", "fingerprint-median-regress", "fingerprint-path")
TRAINED = {"deeplearning"}  # has tests of its own
SECONDS = 40


@cache
def untrained_embedder() -> CachedPairEmbedder:
    plugin = registry.load("encoder", "random-projection")
    return CachedPairEmbedder(Embedder(plugin.build(plugin.Config()).eval(), torch.device("cpu"), "fp32", "key"))


@cache
def scene(seed: int = 0) -> Floats:
    """Return made-up calls over a little noise, with six seconds more at either end."""
    draw = np.random.default_rng(seed)
    time = np.arange((SECONDS + 12) * RATE_HZ) / RATE_HZ
    wave = 0.002 * draw.standard_normal(len(time))
    for at in draw.uniform(0, SECONDS + 11, 60):
        inside = (time >= at) & (time < at + draw.uniform(0.1, 0.7))
        sweep = draw.uniform(500, 5_000) * (time[inside] - at) + draw.uniform(-2_000, 2_000) * (time[inside] - at) ** 2
        wave[inside] += draw.uniform(0.02, 0.1) * np.sin(2 * np.pi * sweep)
    return wave.astype(np.float32)


def pair_of(clock: Clock, noise: float = 0.003, max_lag_s: float = 5.0, seed: int = 0) -> Pair:
    draw = np.random.default_rng(seed + 1)
    time1 = np.arange(SECONDS * RATE_HZ) / RATE_HZ
    waves = scene(seed)[6 * RATE_HZ :][: len(time1)], warp(scene(seed), clock.time0(time1) + 6)
    heard = [(wave + noise * draw.standard_normal(len(wave))).astype(np.float32) for wave in waves]
    return Pair("made", *heard, key=f"{clock} {noise} {seed}", max_lag_s=max_lag_s)


def found(name: str, pair: Pair, **settings: object) -> TimeMap:
    plugin = registry.load("aligner", name)
    return plugin.build(plugin.Config(**settings)).align(
        pair, untrained_embedder() if plugin.NEEDS_ENCODER else None, no_progress
    )


def off_ms(time_map: TimeMap, pair: Pair, clock: Clock) -> np.ndarray:
    """Return errors where both channels have the moment."""
    time0 = pair.keypoints
    true = clock.time1(time0)
    inside = (true > 1) & (true < SECONDS - 1)
    return 1000 * (time_map.at(time0) - true)[inside]


@pytest.mark.parametrize("offset_s", [-3.2, -0.3, 0.0, 1.7])
@pytest.mark.parametrize("name", HEARING)
def test_a_known_lag_of_either_sign_is_found_to_half_a_hop(name: str, offset_s: float) -> None:
    clock = Clock(offset_s=offset_s)
    pair = pair_of(clock)
    time_map = found(name, pair)
    assert np.abs(off_ms(time_map, pair, clock)).max() <= 51
    assert time_map.confidence_K.mean() > 0.3


def test_hop_is_the_grain_of_the_global_lag() -> None:
    pair = pair_of(clock := Clock(offset_s=0.65))
    assert np.abs(off_ms(found("fingerprint-global", pair, hop_ms=50.0), pair, clock)).max() <= 1
    assert np.abs(off_ms(found("fingerprint-global", pair), pair, clock)).max() == pytest.approx(50, abs=1)


def test_path_follows_a_drift_and_a_wobble_to_a_millisecond() -> None:
    clock = Clock(1.234, 300e-6, SECONDS / 2, (Wobble(0.01, 60.0, 1.0),))
    pair = pair_of(clock)
    fine, coarse = found("fingerprint-path", pair), found("fingerprint-path", pair, refine=False)
    assert np.median(np.abs(off_ms(fine, pair, clock))) < 0.6
    assert np.median(np.abs(off_ms(fine, pair, clock))) < np.median(np.abs(off_ms(coarse, pair, clock))) < 20
    assert fine.confidence_K.min() > 0.9


def test_path_is_not_sure_of_recordings_of_other_scenes() -> None:
    """What agrees does so by chance, which the rounding of another processor changes: a single pair may look sure."""
    one = pair_of(Clock())
    unlike = [replace(one, wave1_T=pair_of(Clock(), seed=s).wave1_T, key=f"unlike {s}") for s in range(5, 17)]
    sure = [found("fingerprint-path", pair).confidence_K.max() for pair in unlike]
    assert np.mean(sure) < 0.33 and np.median(sure) < 0.2  # 0.15 and 0.01; by a fixed share of agreement 0.53 and 0.44
    assert found("fingerprint-path", one).confidence_K.min() > 0.9


def test_path_is_not_sure_of_a_lag_beyond_its_reach() -> None:
    beyond = [pair_of(Clock(offset_s=3.0), max_lag_s=0.5, seed=s) for s in range(4)]
    assert sum(found("fingerprint-path", pair).confidence_K.max() >= 0.5 for pair in beyond) <= 1


def test_path_knows_the_way_through_a_silence() -> None:
    clock = Clock(-0.8, 200e-6, SECONDS / 2)
    pair = pair_of(clock)
    waves = [pair.wave0_T.copy(), pair.wave1_T.copy()]
    for wave in waves:
        wave[12 * RATE_HZ : 24 * RATE_HZ] = 0
    found_map = found("fingerprint-path", replace(pair, wave0_T=waves[0], wave1_T=waves[1], key="gap"))
    assert np.abs(off_ms(found_map, pair, clock)).max() < 5


def test_line_through_lags_is_not_pulled_by_outliers_and_not_believed_when_steep() -> None:
    time = np.arange(100.0)
    residual = 1e-3 * time - 0.05 + 1e-3 * np.random.default_rng(0).standard_normal(100)
    residual[::10] += 3
    slope, intercept_s = regress.huber_line(time, residual, regress.Config())
    assert (slope, intercept_s) == (pytest.approx(1e-3, abs=3e-4), pytest.approx(-0.05, abs=0.03))
    assert regress.huber_line(time, np.zeros(100), regress.Config()) == (0.0, 0.0)
    assert regress.huber_line(time[:1], np.ones(1), regress.Config()) == (0.0, 0.0)


def test_line_is_left_out_beyond_the_steepest_that_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of(clock := Clock(offset_s=0.5))
    monkeypatch.setattr(regress, "huber_line", lambda *_: (0.01, 0.0))
    assert np.abs(off_ms(found("fingerprint-median-regress", pair, max_slope=0.005), pair, clock)).max() < 51
    assert np.abs(off_ms(found("fingerprint-median-regress", pair), pair, clock)).max() > 300


def test_informative_vectors_leave_out_what_is_always_there() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    lengths = np.linalg.norm(subtract_mean(vectors), axis=1)
    assert lengths[3] > 2.9 * lengths[0] and subtract_mean(vectors[:0]).shape == (0, 2)


def test_presets_are_the_models_of_the_report() -> None:
    global_lag = registry.load("aligner", "fingerprint-global")
    assert {name: c.hop_ms for name, c in global_lag.presets().items()} == {"biodcase-1": 100.0, "biodcase-4": 50.0}
    assert regress.presets()["biodcase-2"].max_slope == 0.05 and regress.Config().epsilon == 1.35
    assert registry.load("aligner", "fingerprint-median").Config().window_s == 20.0


@pytest.mark.parametrize("name", HEARING)
def test_settings_out_of_range_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: hop_ms must be .*got 1"):
        registry.load("aligner", name).Config(hop_ms=1.0)


# What every aligner keeps


@dataclass(frozen=True)
class Bad:
    name: str
    one: Floats
    other: Floats


NOISE = np.random.default_rng(3).standard_normal(12 * RATE_HZ).astype(np.float32)
BAD = (
    Bad("silent channel", 0.1 * NOISE, np.zeros_like(NOISE)),
    Bad("both silent", np.zeros_like(NOISE), np.zeros_like(NOISE)),
    Bad("constant", np.full_like(NOISE, 0.3), np.full_like(NOISE, 0.3)),
    Bad("shorter than a segment", 0.1 * NOISE[:4_000], 0.1 * NOISE[9_000:13_000]),
    Bad("one sample", NOISE[:1], NOISE[:1]),
    Bad("a second and a half", 0.1 * NOISE[:24_000], 0.1 * NOISE[30_000:54_000]),
    Bad("of very different length", 0.1 * NOISE, 0.1 * NOISE[: 2 * RATE_HZ]),
    Bad("clipped", np.sign(NOISE), np.sign(NOISE)),
)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
@pytest.mark.parametrize("name", sorted(set(registry.names("aligner")) - TRAINED))
@pytest.mark.filterwarnings("error")
def test_bad_input_has_an_honest_answer(name: str, bad: Bad) -> None:
    pair = Pair(bad.name, bad.one, bad.other, bad.name, max_lag_s=2.0)
    time_map = found(name, pair)
    assert np.isfinite(time_map.at(pair.keypoints)).all()
    unheard = ["silent channel", "both silent"]
    unheard += ["shorter than a segment"] if name in HEARING else []
    unheard += ["a second and a half"] if name == "fingerprint-path" else []  # to the others few vectors look alike
    if bad.name in unheard:
        assert time_map.confidence_K.max() < 0.5, time_map.confidence_K


def test_time_maps_are_straight_between_knots_and_keep_their_lag_beyond() -> None:
    time_map = TimeMap(np.array([1.0, 3.0]), np.array([2.0, 5.0]), np.array([0.0, 1.0]))
    assert time_map.at(np.array([0.0, 1.0, 2.0, 3.0, 9.0])).tolist() == [1.0, 2.0, 3.5, 5.0, 11.0]
    assert time_map.confidence_at(np.array([0.0, 2.0])).tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (([1.0, 1.0], [0.0, 1.0], [1.0, 1.0]), "must rise"), (([0.0, 1.0], [1.0, 0.0], [1.0, 1.0]), "must rise"),
        (([0.0], [0.0], [2.0]), "between 0 and 1"), (([0.0], [np.nan], [1.0]), "NaN"), (([], [], []), "needs knots"),
        (([0.0, 1.0], [0.0], [1.0]), "needs knots"),
    ],
)  # fmt: skip
def test_maps_that_are_no_clocks_are_refused(parts: tuple[list[float], ...], told: str) -> None:
    with pytest.raises(PluginError, match=told):
        TimeMap(*(np.array(part) for part in parts))


def test_rising_is_the_nearest_that_never_falls() -> None:
    assert make_monotonic(np.array([0.0, 3.0, 1.0, 4.0])).tolist() == [0.0, 2.0, 2.0, 4.0]


def test_pair_is_embedded_once_per_hop_and_the_last_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    cached = CachedPairEmbedder(untrained_embedder().embedder)
    whole = cached._vectors
    monkeypatch.setattr(cached, "_vectors", lambda wave, hop: calls.append(hop) or whole(wave, hop))
    one = Pair("a", NOISE[: 3 * RATE_HZ], NOISE[: 2 * RATE_HZ], "a")
    first = cached(one, 0.5)
    assert cached(one, 0.5) is first and len(calls) == 2
    assert [len(vectors) for vectors in first] == [5, 3]
    cached(one, 0.25), cached(replace(one, key="b"), 0.5), cached(one, 0.5)
    assert len(calls) == 8
