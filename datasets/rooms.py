"""Simulated room impulse responses with given reverberation times, computed with pyroomacoustics.

The sides of a shoebox room are drawn at random; image sources give the early part of the response and ray tracing its
tail. Sabine's formula is wrong by up to a third, so the absorption is corrected until the t60 measured from the
response is within a few per cent of its target. The same seed gives the same response on every machine.

With a direct-to-reverberant ratio, the direct sound is computed once more by itself and scaled to it, and its time is
that of the geometry; without one, the largest peak is taken for it, as `fma-segment/v1` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.degrade.room import Response, align_direct_sound, measure_t60, set_direct_ratio
from bench.errors import ConfigError, DataError
from bench.store import ADDED_LATER, decisive_settings, digest
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

    direct_to_reverberant_db: float | None = field(default=None, metadata=ADDED_LATER)
    """Energy of the direct sound to that of all later sound, in dB; None leaves it to distance and walls, as `v1`."""

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
        return Response(
            name, _draw_response(target_s, draw, self.config.direct_to_reverberant_db), split, target_s, "generated"
        )

    def digest(self) -> str:
        """Return a digest of the settings and the version of pyroomacoustics."""
        import pyroomacoustics

        return digest("rooms", 1, decisive_settings(self.config), pyroomacoustics.__version__)


def _draw_response(t60_s: float, draw: np.random.Generator, ratio_db: float | None) -> Floats:
    for _ in range(MAX_DRAWS):
        # Longer reverberation times belong to larger rooms.
        size = np.clip((t60_s - SMALL_T60_S) / (LARGE_T60_S - SMALL_T60_S), 0, 1)
        sides_m = (np.array(SMALL_ROOM) * (1 - size) + np.array(LARGE_ROOM) * size) * draw.uniform(0.8, 1.2, 3)
        source_m, microphone_m = (draw.uniform(MARGIN_M, sides_m - MARGIN_M) for _ in range(2))
        seed = int(draw.integers(2**31))
        try:
            wave_T, measured_s = _fit_absorption(t60_s, Shoebox(sides_m, source_m, microphone_m, seed, ratio_db))
        except DataError:
            if ratio_db is None:
                raise
            continue  # reflections close behind the direct sound alone are above the ratio
        if abs(measured_s / t60_s - 1) <= ACCEPTABLE:
            return wave_T
    raise DataError(
        f"no room with a t60 of {t60_s:g} s +- {ACCEPTABLE:.0%}{_format_ratio(ratio_db)} was found in {MAX_DRAWS} "
        "draws; change the seed or the t60"
    )


def _format_ratio(ratio_db: float | None) -> str:
    return "" if ratio_db is None else f" and a direct-to-reverberant ratio of {ratio_db:g} dB"


@dataclass(frozen=True)
class Shoebox:
    """A room and who is where in it; all but `seed` and `ratio_db` are of shape (3,) in m."""

    sides_m: Floats
    source_m: Floats
    microphone_m: Floats

    seed: int
    """Seed of the rays."""

    ratio_db: float | None
    """The direct-to-reverberant ratio, as in Config."""

    @property
    def surface_m2(self) -> float:
        """Return the area of the walls, the floor and the ceiling."""
        length, width, height = self.sides_m
        return float(2 * (length * width + length * height + width * height))


def _fit_absorption(t60_s: float, box: Shoebox) -> tuple[Floats, float]:
    """Return the response with the absorption that brings its t60 closest to t60_s, and the t60 measured from it."""
    absorption = min(0.95, float(0.161 * np.prod(box.sides_m) / (t60_s * box.surface_m2)))  # Sabine's formula
    best: tuple[Floats, float] = (np.zeros(0, dtype=np.float32), np.inf)
    for _ in range(MAX_CORRECTIONS):
        wave_T = _simulate(absorption, box)
        measured_s, _method = measure_t60(wave_T)
        if abs(measured_s / t60_s - 1) < abs(best[1] / t60_s - 1):
            best = (wave_T, measured_s)
        if abs(measured_s / t60_s - 1) <= TOLERANCE:
            break
        # Eyring's law: t60 is inversely proportional to -log(1 - absorption).
        absorption = float(np.clip(1 - (1 - absorption) ** (measured_s / t60_s), 0.01, 0.98))
    return best


def _simulate(absorption: float, box: Shoebox) -> Floats:
    import pyroomacoustics as pra

    wave_T = _compute_response(absorption, box)
    if box.ratio_db is None:
        return align_direct_sound(wave_T)
    alone_T = _compute_response(absorption, box, direct_alone=True)
    direct_T = np.pad(alone_T, (0, max(0, len(wave_T) - len(alone_T))))[: len(wave_T)]
    # An impulse begins half a filter of fractional delay after its time, so that what rises before it is kept.
    delay_s = float(np.linalg.norm(box.source_m - box.microphone_m)) / pra.constants.get("c")
    at = round(delay_s * RATE_HZ) + pra.constants.get("frac_delay_length") // 2
    with_ratio_T = set_direct_ratio(direct_T, wave_T - direct_T, at, box.ratio_db)
    return align_direct_sound(with_ratio_T, direct=at)


def _compute_response(absorption: float, box: Shoebox, direct_alone: bool = False) -> Floats:
    """Return the response of a room as pyroomacoustics has it, or its direct sound alone."""
    import pyroomacoustics as pra

    pra.random.seed(box.seed)
    room = pra.ShoeBox(
        box.sides_m,
        fs=RATE_HZ,
        materials=pra.Material(absorption),
        max_order=0 if direct_alone else IMAGE_ORDER,
        ray_tracing=not direct_alone,
        air_absorption=True,
    )
    if not direct_alone:
        room.set_ray_tracing(n_rays=RAYS)
    room.add_source(box.source_m)
    room.add_microphone(box.microphone_m)
    room.compute_rir()
    return np.asarray(room.rir[0][0], dtype=np.float32)
