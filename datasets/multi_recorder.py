"""Real simultaneous recordings by several field recorders, one channel resampled to a known clock.

`locar`: pairs of neighbours among nine recorders on a grid of 40 m, synchronised by GPS, 7 s. The annotations describe
the clocks, but the sound of one bird reaches recorders 40 m apart with up to 117 ms between them: the error of an
aligner is not known more precisely than that here.
`shifted-copies`: five copies of one recording, 3 s, shifted by lags that are known to a sample at 32 kHz. There is no
distance, and therefore no such floor, but no second microphone either.

Both channels are cut so that each has sound from beginning to end: silence at an end would reveal the lag.
Channel 0 is unchanged; channel 1 is resampled to a clock with an offset and a drift.

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
# Time of an event in copy 1 minus its time in this copy, from the peak of the correlation of the whole recordings. The
# peaks are on whole samples at the rate of the copies, 32 kHz; at 16 kHz, a call of 5.8 kHz makes another peak of equal
# height one period away.
COPY_LAG_S = {1: 0.0, 2: -589 / 32_000, 3: 1714 / 32_000, 4: 1473 / 32_000, 5: 33 / 32_000}


@dataclass(frozen=True)
class Config:
    """Which recordings are paired, and which clocks channel 1 has."""

    clocks: int = 2
    """Number of clocks drawn for each pair of recordings, at least 1; each clock makes one file."""

    locar_offset_s: float = 0.45
    """Largest offset of the clocks of `locar`, in s, with either sign."""

    copies_offset_s: float = 0.3
    """Largest offset of the clocks of `shifted-copies`, in s, with either sign.

    Smaller than that of `locar`, because the largest lag is cut off at both ends and the recordings last only 3 s.
    """

    drift_ppm: float = 500.0
    """Largest drift of a clock, in parts per million, with either sign."""

    keypoint_s: float = 0.5
    """Time from one annotated keypoint to the next, in s, above 0."""

    max_distance_m: float = 45.0
    """Largest distance in m between two recorders that are paired.

    Further apart, the travel time of sound between them would exceed the errors to be measured.
    """

    seed: int = 0
    """Seed of all random draws."""

    def __post_init__(self) -> None:
        require(self.clocks >= 1 and self.keypoint_s > 0, "clocks must be >= 1 and keypoint_s > 0", self)
        for name, length_s in zip(SETS, (LOCAR_S, COPIES_S), strict=True):
            largest_s = self.clock_range(name).largest_lag_s(length_s)
            require(largest_s <= MAX_LAG_S, f"lags of {name} must be <= {MAX_LAG_S:g} s", largest_s)

    def clock_range(self, set_name: str) -> ClockRange:
        """Return the range from which the clocks of a set are drawn."""
        return ClockRange(self.locar_offset_s if set_name == "locar" else self.copies_offset_s, self.drift_ppm)


@dataclass(frozen=True)
class RecordingPair:
    """Two recordings of the same sounds."""

    name: str
    path0: Path
    path1: Path
    lag_s: float
    """How much later an event is in the second recording than in the first, in s."""


def build(config: Config, root: Path | None) -> MultiRecorder:
    """Return the sets below `root`. Raises: DataError if a recording or the coordinates are missing."""
    home = root / HOME if root is not None else None
    if home is None or not home.is_dir():
        raise DataError(
            f"multi-recorder needs the recordings of {LOCAR} and {COPIES} ({SOURCE}) at "
            f"{home or '<data root>' / HOME}; put them there, or leave out the sets of multi-recorder"
        )
    pairs = {"locar": _pair_locar(home / LOCAR, config.max_distance_m), "shifted-copies": _pair_copies(home / COPIES)}
    for path in (path for of_set in pairs.values() for pair in of_set for path in (pair.path0, pair.path1)):
        if not path.is_file():
            raise DataError(f"no recording at {path}; restore it, or leave out the sets of multi-recorder")
    return MultiRecorder(config, pairs)


def _pair_locar(folder: Path, max_distance_m: float) -> list[RecordingPair]:
    """Return the pairs of recorders that are at most max_distance_m apart; GPS synchronises their clocks."""
    try:
        with (folder / COORDINATES).open(newline="", encoding="utf-8-sig") as file:
            positions = {
                row["Station"]: (float(row["Easting"]), float(row["Northing"])) for row in csv.DictReader(file)
            }
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{folder / COORDINATES} cannot be read ({error!r}); restore it from {SOURCE}") from error
    near = [(a, b) for a, b in combinations(sorted(positions), 2) if dist(positions[a], positions[b]) <= max_distance_m]
    if not near:
        raise DataError(f"no two recorders of {folder} are within max_distance_m = {max_distance_m:g}; raise it")
    return [
        RecordingPair(f"{a}_{b}", folder / LOCAR_FILE.format(a), folder / LOCAR_FILE.format(b), 0.0) for a, b in near
    ]


def _pair_copies(folder: Path) -> list[RecordingPair]:
    """Return all pairs of copies. An event at time t in copy 1 is at t - COPY_LAG_S[c] in copy c."""
    return [
        RecordingPair(
            f"{a}_{b}", folder / COPY_FILE.format(a), folder / COPY_FILE.format(b), COPY_LAG_S[a] - COPY_LAG_S[b]
        )
        for a, b in combinations(COPY_LAG_S, 2)
    ]


@dataclass(frozen=True)
class MultiRecorder:
    """Writes the sets SETS, each with the single split SPLIT."""

    config: Config
    recording_pairs: dict[str, list[RecordingPair]]

    def sets(self) -> tuple[str, ...]:
        """Return the names of both sets."""
        return SETS

    def max_lag_s(self, set_name: str) -> float:
        """Return the largest lag in seconds of a set."""
        return MAX_LAG_S

    def digest(self) -> str:
        """Return a digest of the settings, the decoder, and the names, sizes and times of the recordings."""
        pairs = [pair for of_set in self.recording_pairs.values() for pair in of_set]
        paths = sorted({path for pair in pairs for path in (pair.path0, pair.path1)})
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return digest("multi-recorder", FORMAT, asdict(self.config), COPY_LAG_S, stamps, decoder_version())

    def folder(self, store: Store, progress: Progress) -> Path:
        """Return the folder of both sets, made on the first call."""

        def make(folder: Path) -> None:
            for set_name in SETS:
                write_split(folder, set_name, SPLIT, self.recipes(set_name), progress)

        return store.fetch("pairs", self.digest(), make)

    def recipes(self, set_name: str) -> Sequence[Recipe]:
        """Return how each file of a set is made: one file for each pair of recordings and each of its clocks."""
        length_s = LOCAR_S if set_name == "locar" else COPIES_S
        clocks = self.config.clock_range(set_name)
        # Both ends lose the largest lag, so that both channels have sound throughout.
        recording_lag_s = max(abs(pair.lag_s) for pair in self.recording_pairs[set_name])
        margin_s = clocks.largest_lag_s(length_s) + recording_lag_s
        duration_s = length_s - 2 * margin_s
        recipes = []
        for pair in self.recording_pairs[set_name]:
            for number in range(self.config.clocks):
                seed = int(digest("multi-recorder", self.config.seed, set_name, pair.name, number), 16)
                clock = clocks.draw(np.random.default_rng(seed), duration_s)
                time0_K = np.arange(0.0, duration_s, self.config.keypoint_s)
                keypoints = Keypoints(time0_K, np.clip(clock.time1(time0_K), 0.0, duration_s))
                make = partial(cut_pair, pair, clock, margin_s, duration_s)
                recipes.append(Recipe(f"{pair.name}_{number}.wav", keypoints, make))
        return recipes


def cut_pair(pair: RecordingPair, clock: Clock, margin_s: float, duration_s: float) -> tuple[Floats, Floats]:
    """Return both channels (T,), duration_s long; channel 0 begins margin_s after the beginning of its recording.

    An event at clock.time0(t) in channel 0 is at t in channel 1; it is lag_s later in recording 1 than in recording 0.
    """
    wave0_T, wave1_T = decode(pair.path0), decode(pair.path1)
    time1_T = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    start = round(margin_s * RATE_HZ)
    recording1_s_T = clock.time0(time1_T) + start / RATE_HZ + pair.lag_s
    return wave0_T[start : start + len(time1_T)], warp(wave1_T, recording1_s_T)
