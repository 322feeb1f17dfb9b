"""Real recordings by several recorders at one time, read off clocks that are known.

`locar`: neighbours of nine recorders on a grid of 40 m, synchronised by GPS, 7 s. The annotations are of the clocks,
but recorders 40 m apart hear one bird up to 117 ms apart: no aligner's error is known better than that here.
`shifted-copies`: five copies of one recording, 3 s, shifted by lags that are known to a sample at 32 kHz; no distance,
and so no such floor, but no second microphone either.

Both channels are cut so that each has sound from its first moment to its last: silence at an end would tell the lag.
Channel 0 is as it was; channel 1 is read off a clock with an offset and a drift.

Shape legend: T samples, K keypoints.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from math import dist
from pathlib import Path

import numpy as np

from bench.align.clock import Clock, ClockRange, warp
from bench.align.pairs import Keypoints, Recipe, write_split
from bench.audio.decode import decode, decoder_version
from bench.errors import DataError
from bench.settings import require
from bench.store import Store, digest
from bench.values import RATE_HZ, Floats, Progress

KIND = "pairs"
CITE = "Hedley et al., locaR; Lapp et al., OpenSoundscape, Methods in Ecology and Evolution 2023"
LICENSE = "MIT"
SOURCE = "example recordings of rhedley/locaR and kitzeslab/opensoundscape on GitHub"

FORMAT = 1
HOME = Path("field/multi_recorder")
SETS = ("locar", "shifted-copies")
SPLIT = "test"
MAX_LAG_S = 0.5

LOCAR = "locar_2020"
COORDINATES = "Vignette_Coordinates.csv"
LOCAR_FILE = "{}_0_1_20200617_090000.mp3"
LOCAR_S = 7.0

COPIES = "aru_shifted_copies"
COPY_FILE = "aru_{}.wav"
COPIES_S = 3.0
# Time in copy 1 less the time in this copy: the peaks of the whole recordings' correlation, which are on whole samples
# of the copies' rate. At 16 kHz a call of 5.8 kHz makes a peak of equal height one period away.
COPY_LAG_S = {1: 0.0, 2: -589 / 32_000, 3: 1714 / 32_000, 4: 1473 / 32_000, 5: 33 / 32_000}


@dataclass(frozen=True)
class Config:
    """Which pairs of recordings, and which clocks."""

    clocks: int = 2
    """Clocks drawn for each pair of recordings, at least 1; each makes a file."""

    locar_offset_s: float = 0.45
    """Largest offset of the clocks of `locar`, in s, with either sign."""

    copies_offset_s: float = 0.3
    """Largest offset of the clocks of `shifted-copies`, in s, with either sign.

    It is smaller than that of `locar`: what an offset may cost is cut off both ends, and the recordings have only 3 s.
    """

    drift_ppm: float = 500.0
    """Largest drift of a clock, in parts of a million, with either sign."""

    keypoint_s: float = 0.5
    """Time from one annotated keypoint to the next, in s, above 0."""

    max_distance_m: float = 45.0
    """Recorders further apart than this, in m, make no pair.

    Otherwise the floor, the time that sound takes between them, would be higher than what is to be measured.
    """

    seed: int = 0
    """Seed of every draw."""

    def __post_init__(self) -> None:
        require(self.clocks >= 1 and self.keypoint_s > 0, "clocks must be >= 1 and keypoint_s > 0", self)
        for name, length_s in zip(SETS, (LOCAR_S, COPIES_S), strict=True):
            largest_s = self.clock_range(name).largest_lag_s(length_s)
            require(largest_s <= MAX_LAG_S, f"lags of {name} must be <= {MAX_LAG_S:g} s", largest_s)

    def clock_range(self, set_name: str) -> ClockRange:
        """Return the range of a set's clocks."""
        return ClockRange(self.locar_offset_s if set_name == "locar" else self.copies_offset_s, self.drift_ppm)


@dataclass(frozen=True)
class RecordingPair:
    """Two recordings, and how much later (s) the second has what the first has."""

    name: str
    path0: Path
    path1: Path
    lag_s: float


def build(config: Config, root: Path | None) -> MultiRecorder:
    """Return the sets below `root`. Raises: DataError if a recording or the coordinates are not there."""
    home = root / HOME if root is not None else None
    if home is None or not home.is_dir():
        raise DataError(
            f"multi-recorder needs the recordings of {LOCAR} and {COPIES} ({SOURCE}) at "
            f"{home or '<data root>' / HOME}; put them there, or leave out its sets"
        )
    origins = {"locar": _pair_locar(home / LOCAR, config.max_distance_m), "shifted-copies": _pair_copies(home / COPIES)}
    for path in (path for some in origins.values() for origin in some for path in (origin.path0, origin.path1)):
        if not path.is_file():
            raise DataError(f"no recording at {path}; restore it, or leave out the sets of multi-recorder")
    return MultiRecorder(config, origins)


def _pair_locar(folder: Path, max_distance_m: float) -> list[RecordingPair]:
    """Return the pairs of recorders that stand near each other; their clocks are GPS's."""
    try:
        with (folder / COORDINATES).open(newline="", encoding="utf-8-sig") as file:
            places = {row["Station"]: (float(row["Easting"]), float(row["Northing"])) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{folder / COORDINATES} cannot be read ({error!r}); restore it from {SOURCE}") from error
    near = [(a, b) for a, b in combinations(sorted(places), 2) if dist(places[a], places[b]) <= max_distance_m]
    if not near:
        raise DataError(f"no two recorders of {folder} are within max_distance_m = {max_distance_m:g}; raise it")
    return [
        RecordingPair(f"{a}_{b}", folder / LOCAR_FILE.format(a), folder / LOCAR_FILE.format(b), 0.0) for a, b in near
    ]


def _pair_copies(folder: Path) -> list[RecordingPair]:
    """Return all pairs of copies. An event at t of copy 1 is at t - COPY_LAG_S[c] of copy c."""
    return [
        RecordingPair(
            f"{a}_{b}", folder / COPY_FILE.format(a), folder / COPY_FILE.format(b), COPY_LAG_S[a] - COPY_LAG_S[b]
        )
        for a, b in combinations(COPY_LAG_S, 2)
    ]


@dataclass(frozen=True)
class MultiRecorder:
    """Makes the sets of SETS, each with the one split SPLIT."""

    config: Config
    recording_pairs: dict[str, list[RecordingPair]]

    def sets(self) -> tuple[str, ...]:
        """Return the names of both sets."""
        return SETS

    def max_lag_s(self, set_name: str) -> float:
        """Return the largest lag in seconds that a set promises."""
        return MAX_LAG_S

    def digest(self) -> str:
        """Return a digest of the settings, the decoder and the recordings' names, sizes and times."""
        paths = sorted({path for some in self.recording_pairs.values() for o in some for path in (o.path0, o.path1)})
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return digest("multi-recorder", FORMAT, asdict(self.config), COPY_LAG_S, stamps, decoder_version())

    def folder(self, store: Store, progress: Progress) -> Path:
        """Return the folder of both sets, made on the first call."""

        def make(place: Path) -> None:
            for set_name in SETS:
                write_split(place, set_name, SPLIT, self.recipes(set_name), progress)

        return store.fetch("pairs", self.digest(), make)

    def recipes(self, set_name: str) -> Sequence[Recipe]:
        """Return how each file of a set is made: every pair of recordings with every one of its clocks."""
        length_s = LOCAR_S if set_name == "locar" else COPIES_S
        clocks = self.config.clock_range(set_name)
        known_s = max(abs(origin.lag_s) for origin in self.recording_pairs[set_name])
        margin_s = clocks.largest_lag_s(length_s) + known_s
        heard_s = length_s - 2 * margin_s
        recipes = []
        for origin in self.recording_pairs[set_name]:
            for number in range(self.config.clocks):
                seed = int(digest("multi-recorder", self.config.seed, set_name, origin.name, number), 16)
                clock = clocks.draw(np.random.default_rng(seed), heard_s)
                time0_K = np.arange(0.0, heard_s, self.config.keypoint_s)
                keypoints = Keypoints(time0_K, np.clip(clock.time1(time0_K), 0.0, heard_s))
                make = partial(cut_pair, origin, clock, margin_s, heard_s)
                recipes.append(Recipe(f"{origin.name}_{number}.wav", keypoints, make))
        return recipes


def cut_pair(origin: RecordingPair, clock: Clock, margin_s: float, heard_s: float) -> tuple[Floats, Floats]:
    """Return both channels (T,): channel 0 begins margin_s after its recording does.

    Channel 1 has at time t what channel 0 has at clock.time0(t): in its own recording, lag_s later than in the other.
    """
    wave0_T, wave1_T = decode(origin.path0), decode(origin.path1)
    time1_T = np.arange(round(heard_s * RATE_HZ)) / RATE_HZ
    start = round(margin_s * RATE_HZ)
    source_s_T = clock.time0(time1_T) + start / RATE_HZ + origin.lag_s
    return wave0_T[start : start + len(time1_T)], warp(wave1_T, source_s_T)
