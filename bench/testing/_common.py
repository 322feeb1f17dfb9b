"""Parts of several checks: the error, the module, test signals.

Shape legend: B batch, T samples, N database vectors, Q query vectors, D dimensions.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np

from bench.values import RATE_HZ, Floats

SEED = 20
TOLERANCE = 1e-4  # of a unit vector: float32 sums in another order differ by less


def expect(holds: object, rule: str, found: object) -> None:
    """Raise AssertionError with the rule and what was found instead, unless the rule holds."""
    if not holds:
        raise AssertionError(f"the contract says: {rule}; found {found}")


def check_module(plugin: ModuleType) -> None:
    """Check the parts that modules of every kind have: CITE, LICENSE, SOURCE and a frozen Config."""
    for name in ("CITE", "LICENSE", "SOURCE"):
        expect(isinstance(getattr(plugin, name, None), str), f"{name} is a text in the module", "none")
    kind = plugin.Config
    expect(dataclasses.is_dataclass(kind), "Config is a dataclass", kind)
    expect(kind.__dataclass_params__.frozen, "Config is frozen", kind)
    expect(kind() == kind(), "Config() works without arguments and equals itself", kind())


def check_digest(source: Any) -> str:
    """Return the digest of a data set's source, having checked that it is a text and stays the same."""
    has_old_name = hasattr(source, "fingerprint") and not hasattr(source, "digest")
    rule = "a source has digest(), which earlier versions called fingerprint(): rename the method"
    expect(not has_old_name, rule, "fingerprint() and no digest()")
    digest: str = source.digest()
    expect(isinstance(digest, str) and digest != "", "digest() is a text", repr(digest))
    again = source.digest()
    expect(again == digest, "digest() stays the same", again)
    return digest


def check_wave(wave_T: Floats, name: str) -> None:
    """Check that a wave is mono float32, finite, scaled to 1 and not empty."""
    expect(isinstance(wave_T, np.ndarray) and wave_T.dtype == np.float32, f"audio of {name} is float32", type(wave_T))
    expect(wave_T.ndim == 1 and len(wave_T) > 0, f"audio of {name} is mono, shape (T,)", wave_T.shape)
    expect(np.isfinite(wave_T).all(), f"audio of {name} is finite", "NaN or infinity")
    peak = float(np.abs(wave_T).max())
    # Lossy decoders overshoot full scale a little; samples that were never divided by it do by far.
    expect(peak < 8, f"audio of {name} is scaled so that full scale is 1", f"a peak of {peak:g}")
    expect(len(wave_T) > RATE_HZ // 1000, f"audio of {name} lasts over a millisecond", f"{len(wave_T)} samples")


def make_music(num_segments: int, num_samples: int, rate_hz: int) -> Floats:
    """Return segments that differ: three gliding tones and noise each, peak 0.5, shape (B, T)."""
    draw = np.random.default_rng(SEED)
    seconds_T = np.arange(num_samples) / rate_hz
    start_hz, end_hz = draw.uniform(80, rate_hz / 4, (2, num_segments, 3, 1))
    turns = start_hz * seconds_T + (end_hz - start_hz) * seconds_T**2 / (2 * seconds_T[-1])
    wave_BT = np.sin(2 * np.pi * turns).sum(axis=1) + 0.1 * draw.standard_normal((num_segments, num_samples))
    scaled: Floats = (0.5 * wave_BT / np.abs(wave_BT).max(axis=1, keepdims=True)).astype(np.float32)
    return scaled


def draw_clusters(num_vectors: int, dim: int, num_queries: int) -> tuple[Floats, Floats]:
    """Return unit vectors (N, D) around a few centres, and queries (Q, D) near some of them."""
    draw = np.random.default_rng(SEED)
    centres = draw.standard_normal((max(1, num_vectors // 20), dim))
    vectors_ND = centres[draw.integers(len(centres), size=num_vectors)] + 0.5 * draw.standard_normal((num_vectors, dim))
    queries_QD = vectors_ND[draw.integers(num_vectors, size=num_queries)] + 0.1 * draw.standard_normal(
        (num_queries, dim)
    )
    unit = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (vectors_ND, queries_QD)]
    return unit[0], unit[1]
