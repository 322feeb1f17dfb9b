"""The check of an aligner plug-in.

Shape legend: T samples, K keypoints.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench.align.contract import Aligner, Pair, PairEmbedder, TimeMap
from bench.align.pairs import Keypoints
from bench.testing._common import SEED, check_module, expect, make_music
from bench.values import RATE_HZ, Floats, no_progress

SCENE_S = 12  # length of the test pairs
LAG_S = 0.6  # lag of their channel 1, with either sign
MAX_LAG_S = 1.0  # the largest lag that they promise
LAG_TOLERANCE_S = 0.3  # of a confident map: a turned sign is off by 1.2, the grids of the baselines by 0.2
CONFIDENT = 0.5  # a map of this mean confidence or more is confident


def check_aligner(plugin: ModuleType, config: Any = None, embedder: PairEmbedder | None = None) -> None:
    """Check an aligner plug-in, built with its default config if none is given.

    An aligner with NEEDS_ENCODER gets `embedder`, or the random projection, which needs no training.
    Rules: every pair has a valid map, whatever the lengths of its channels, read-only waves included; the same pair has
    the same map, whatever its name is and whichever pairs came before; silence in a channel gives a low confidence; a
    confident map has the right lag, positive where channel 1 is later. An aligner that learns is trained here on two
    pairs: the same seed gives the same maps, and a loaded aligner gives those of the saved one.
    """
    check_module(plugin)
    expect(isinstance(plugin.NEEDS_ENCODER, bool), "NEEDS_ENCODER is a truth value", plugin.NEEDS_ENCODER)
    config = plugin.Config() if config is None else config
    embedder = _build_untrained_embedder() if embedder is None else embedder
    aligner = _train_or_build(plugin, config, embedder)
    given = embedder if plugin.NEEDS_ENCODER else None
    later, earlier = _make_scene("later", LAG_S), _make_scene("earlier", -LAG_S)
    found = _align(aligner, later, given)
    _check_lag(found, later, LAG_S)
    _check_lag(_align(aligner, earlier, given), earlier, -LAG_S)
    _check_same_map(found, _align(aligner, later, given), "the same pair has the same map, whatever came before")
    renamed = dataclasses.replace(later, name="another", key="another")
    _check_same_map(found, _align(aligner, renamed, given), "a map does not depend on the pair's name or key")
    for pair in _build_silent_pairs(later):
        confidence = float(_align(aligner, pair, given).confidence_at(pair.keypoints).mean())
        expect(confidence < CONFIDENT, f"{pair.name} gives a confidence below {CONFIDENT:g}", f"{confidence:.2f}")
    for pair in _build_uneven_pairs(later):
        _align(aligner, pair, given)


def _check_lag(found: TimeMap, pair: Pair, lag_s: float) -> None:
    found_s = float(np.median(found.at(pair.keypoints) - pair.keypoints))
    confident = float(found.confidence_at(pair.keypoints).mean()) >= CONFIDENT
    right = abs(found_s - lag_s) <= LAG_TOLERANCE_S
    rule = "a confident map has the lag, positive where channel 1 is later"
    expect(not confident or right, rule, f"{found_s:+.2f} s where {lag_s:+.2f} s is right")


def _align(aligner: Aligner, pair: Pair, embedder: PairEmbedder | None) -> TimeMap:
    rule = f"a pair has a valid map ({pair.name}: {' and '.join(f'{s:g}' for s in pair.durations_s)} s)"
    try:
        found = aligner.align(pair, embedder, no_progress)
    except Exception as error:
        raise AssertionError(f"the contract says: {rule}; found {type(error).__name__}: {error}") from error
    expect(isinstance(found, TimeMap), rule, type(found).__name__)
    return found


def _check_same_map(one: TimeMap, other: TimeMap, rule: str) -> None:
    parts = ("time0_K", "time1_K", "confidence_K")
    differing = [part for part in parts if not np.array_equal(getattr(one, part), getattr(other, part))]
    expect(not differing, rule, f"another {' and '.join(differing)}")


def _train_or_build(plugin: ModuleType, config: Any, embedder: PairEmbedder) -> Aligner:
    """Return an aligner; one that learns, and whose config names no weights, is trained, saved and loaded."""
    learns = hasattr(plugin, "train") and not getattr(config, "weights", "")
    if not learns:
        built: Aligner = plugin.build(config)
        return built
    lacking = [part for part in ("save", "load") if not hasattr(plugin, part)]
    expect(not lacking, "an aligner that learns has train, save and load", f"no {' and '.join(lacking)}")
    labelled = [_make_labelled_pair(lag_s) for lag_s in (LAG_S, -LAG_S)]
    trained, again = (plugin.train(config, labelled, embedder, SEED, no_progress) for _ in range(2))
    given = embedder if plugin.NEEDS_ENCODER else None
    pair = _make_scene("after training", LAG_S)
    found = _align(trained, pair, given)
    _check_same_map(found, _align(again, pair, given), "the same seed trains the same aligner")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        plugin.save(trained, path)
        loaded: Aligner = plugin.load(path)
    _check_same_map(found, _align(loaded, pair, given), "a loaded aligner answers as the saved one")
    return loaded


def _build_untrained_embedder() -> PairEmbedder:
    import torch

    from bench.align.pair_embedder import CachedPairEmbedder
    from bench.fingerprint import Embedder
    from bench.registry import load

    plugin = load("encoder", "random-projection")
    return CachedPairEmbedder(Embedder(plugin.build(plugin.Config()).eval(), torch.device("cpu"), "fp32", "check"))


def _make_scene(name: str, lag_s: float) -> Pair:
    """Return gliding tones in two recordings, each with a little noise; read-only, as memory maps are."""
    draw = np.random.default_rng(SEED)
    margin, size = round(MAX_LAG_S * RATE_HZ), SCENE_S * RATE_HZ
    sound_T = make_music(2 * SCENE_S + 4, RATE_HZ // 2, RATE_HZ).reshape(-1)
    starts = (margin, margin - round(lag_s * RATE_HZ))
    waves = [(sound_T[at : at + size] + 0.002 * draw.standard_normal(size)).astype(np.float32) for at in starts]
    return _make_pair(name, *waves)


def _make_labelled_pair(lag_s: float) -> tuple[Pair, Keypoints]:
    pair = _make_scene(f"to learn from {lag_s:+g}", lag_s)
    return pair, Keypoints(pair.keypoints, (pair.keypoints + lag_s).clip(0, pair.durations_s[1]))


def _make_pair(name: str, wave0_T: Floats, wave1_T: Floats) -> Pair:
    for wave_T in (wave0_T, wave1_T):
        wave_T.flags.writeable = False
    return Pair(name, wave0_T, wave1_T, name, MAX_LAG_S)


def _build_silent_pairs(pair: Pair) -> list[Pair]:
    quiet_T = np.zeros_like(pair.wave0_T)
    return [
        _make_pair("silence in both channels", quiet_T, quiet_T),
        _make_pair("silence in channel 0", quiet_T, pair.wave1_T),
        _make_pair("silence in channel 1", pair.wave0_T, quiet_T),
    ]


def _build_uneven_pairs(pair: Pair) -> list[Pair]:
    whole0_T, whole1_T, third = pair.wave0_T, pair.wave1_T, len(pair.wave0_T) // 3
    return [
        _make_pair("a shorter channel 1", whole0_T, whole1_T[:third]),
        _make_pair("a shorter channel 0", whole0_T[:third], whole1_T),
        _make_pair("a fifth of a second", whole0_T[: RATE_HZ // 5], whole1_T[: RATE_HZ // 5]),
        _make_pair("a single sample", whole0_T[:1], whole1_T[:1]),
    ]
