"""Simulated room impulse responses with given reverberation times, computed with pyroomacoustics.

The sides of a shoebox room are drawn at random; image sources give the early part of the response and ray tracing its
tail. Sabine's formula is wrong by up to a third, so the absorption is corrected until the t60 measured from the
response is within a few per cent of its target. The same seed gives the same response on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.degrade.room import Response, align_direct_sound, measure_t60
from bench.errors import ConfigError, DataError
from bench.store import digest
from bench.values import RATE_HZ, Floats, Split

KIND = "rir"
CITE = "Scheibler et al., Pyroomacoustics, ICASSP 2018"
LICENSE = "generated"
SOURCE = "pyroomacoustics, hybrid of image sources and ray tracing"

TOLERANCE = 0.03  # relative error of the measured t60 below which the correction stops
MAX_CORRECTIONS = 6
ACCEPTABLE = 0.10  # relative error; a room with a larger one is replaced by another draw
MAX_DRAWS = 20
IMAGE_ORDER = 3  # reflections computed by image sources
RAYS = 5000
MARGIN_M = 0.5  # least distance of the source and the microphone from a wall
# Sides in m (length, width, height) of the rooms for the shortest and the longest t60; interpolated in between.
SMALL_ROOM, LARGE_ROOM = (2.5, 2.2, 2.2), (9.0, 7.0, 3.5)
SMALL_T60_S, LARGE_T60_S = 0.15, 1.0


@dataclass(frozen=True)
class Config:
    """Which rooms are simulated. Reverberation times are in s, at least SMALL_T60_S."""

    test_t60_s: tuple[float, ...] = (0.2, 0.4, 0.5, 0.7, 0.8)
    """Reverberation times of the test rooms."""

    test_rooms: int = 8
    """Number of test rooms for each reverberation time."""

    train_rooms: int = 48
    """Number of training rooms."""

    train_t60_s: tuple[float, float] = (0.2, 1.0)
    """Range from which the reverberation times of the training rooms are drawn uniformly."""

    seed: int = 0
    """Seed of all random draws."""

    def __post_init__(self) -> None:
        if min((*self.test_t60_s, *self.train_t60_s), default=1.0) < SMALL_T60_S:
            raise ConfigError(f"t60 must be >= {SMALL_T60_S} s (no simulated room is drier), got {self}")


def build(config: Config, root: Path | None) -> Rooms:
    """Return the source of simulated responses; `root` is not used."""
    return Rooms(config)


@dataclass(frozen=True)
class Rooms:
    """Simulates responses with names such as `test/0.5/3` (target t60, number) and `train/17`."""

    config: Config

    def names(self) -> Sequence[str]:
        """Return the names of all responses."""
        test = [f"test/{t60_s:g}/{i}" for t60_s in self.config.test_t60_s for i in range(self.config.test_rooms)]
        return [*test, *(f"train/{i}" for i in range(self.config.train_rooms))]

    def load(self, name: str) -> Response:
        """Return one response. Raises: DataError if no drawn room comes close enough to the target t60."""
        side, *rest = name.split("/")
        split: Split = "test" if side == "test" else "train"
        seed = int(digest("rooms", self.config.seed, name)[:8], 16)
        draw = np.random.default_rng(seed)
        target_s = float(rest[0]) if split == "test" else float(draw.uniform(*self.config.train_t60_s))
        return Response(name, _draw_response(target_s, draw), split, target_s, "generated")

    def digest(self) -> str:
        """Return a digest of the settings and the version of pyroomacoustics."""
        import pyroomacoustics

        return digest("rooms", 1, asdict(self.config), pyroomacoustics.__version__)


def _draw_response(t60_s: float, draw: np.random.Generator) -> Floats:
    for _ in range(MAX_DRAWS):
        # Longer reverberation times belong to larger rooms.
        size = np.clip((t60_s - SMALL_T60_S) / (LARGE_T60_S - SMALL_T60_S), 0, 1)
        sides_m = (np.array(SMALL_ROOM) * (1 - size) + np.array(LARGE_ROOM) * size) * draw.uniform(0.8, 1.2, 3)
        source_m, microphone_m = (draw.uniform(MARGIN_M, sides_m - MARGIN_M) for _ in range(2))
        seed = int(draw.integers(2**31))
        wave_T, measured_s = _fit_absorption(t60_s, sides_m, source_m, microphone_m, seed)
        if abs(measured_s / t60_s - 1) <= ACCEPTABLE:
            return wave_T
    raise DataError(
        f"no room with a t60 of {t60_s:g} s +- {ACCEPTABLE:.0%} was found in {MAX_DRAWS} draws; "
        "change the seed or the t60"
    )


def _fit_absorption(
    t60_s: float, sides_m: Floats, source_m: Floats, microphone_m: Floats, seed: int
) -> tuple[Floats, float]:
    """Return the response with the absorption that brings its t60 closest to t60_s, and the t60 measured from it."""
    absorption = min(0.95, float(0.161 * np.prod(sides_m) / (t60_s * _surface(sides_m))))  # Sabine's formula
    best: tuple[Floats, float] = (np.zeros(0, dtype=np.float32), np.inf)
    for _ in range(MAX_CORRECTIONS):
        wave_T = _simulate(absorption, sides_m, source_m, microphone_m, seed)
        measured_s, _method = measure_t60(wave_T)
        if abs(measured_s / t60_s - 1) < abs(best[1] / t60_s - 1):
            best = (wave_T, measured_s)
        if abs(measured_s / t60_s - 1) <= TOLERANCE:
            break
        # Eyring's law: t60 is inversely proportional to -log(1 - absorption).
        absorption = float(np.clip(1 - (1 - absorption) ** (measured_s / t60_s), 0.01, 0.98))
    return best


def _surface(sides_m: Floats) -> float:
    length, width, height = sides_m
    return float(2 * (length * width + length * height + width * height))


def _simulate(absorption: float, sides_m: Floats, source_m: Floats, microphone_m: Floats, seed: int) -> Floats:
    import pyroomacoustics as pra

    pra.random.seed(seed)
    room = pra.ShoeBox(
        sides_m,
        fs=RATE_HZ,
        materials=pra.Material(absorption),
        max_order=IMAGE_ORDER,
        ray_tracing=True,
        air_absorption=True,
    )
    room.set_ray_tracing(n_rays=RAYS)
    room.add_source(source_m)
    room.add_microphone(microphone_m)
    room.compute_rir()
    return align_direct_sound(np.asarray(room.rir[0][0], dtype=np.float32))
