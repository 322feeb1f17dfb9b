"""Simulated pairs of field recorders that record animal calls, with exactly known recorder clocks.

A scene has a few animals, in the open or in a reverberant space. Each calls now and then, and in some stretches none
calls. Two recorders stand close together. Each has its own gain, equaliser, noise floor and self-noise, and misses
some of the animals. Channel 0 runs on the time of the scene; channel 1 is resampled to a clock with an offset, a drift
and a slow wobble. The keypoints are computed from the equation of that clock.

The smallest possible error: a sound from the side reaches the recorders up to spacing_m / 343 m/s apart, 1.2 ms for
the default 0.4 m, in addition to the difference of the clocks. The annotations describe the clocks alone, so this delay
is the floor for a single call; the mean over many calls from all sides is closer to zero. Equalisers have linear phase,
and their delay is removed, so they shift nothing.

Calls come from `field/train` for the split train and from `field/test` for test, which share no recording. Without
field recordings, calls of three kinds are synthesised; that is a different benchmark, with a different digest.

Shape legend: T samples, S sources, R recorders, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from bench.align.clock import Clock, ClockRange, warp
from bench.align.contract import SPACING_S
from bench.align.pairs import Keypoints, Recipe, write_split
from bench.audio.decode import decode, decoder_version
from bench.audio.files import find_audio, stamp_file
from bench.errors import DataError
from bench.settings import require
from bench.store import Store, digest
from bench.values import RATE_HZ, Floats, Progress

Doubles = npt.NDArray[np.float64]

KIND = "pairs"
CITE = "Scheibler et al., Pyroomacoustics, ICASSP 2018"
LICENSE = "that of the field recordings; synthetic calls: generated"
SOURCE = "field recordings below field/train and field/test, spaces by pyroomacoustics"

FORMAT = 1
SPLITS = ("train", "test")
MAX_LAG_S = {"coarse": 5.0, "fine": 0.5}

CALL_S = (0.5, 6.0)  # length of a call
PAUSE_S = 6.0  # mean time between two calls of an animal
CALL_RMS = 0.05
CALL_LEVEL_DB = (-12.0, 0.0)  # relative to CALL_RMS
FADE_S = 0.02
CROPS_PER_CALL = 4  # the liveliest is used: most of a soundscape is background
FRAME_S = 0.05  # the liveliness of a crop is measured on the levels of its frames
SILENT_RMS = 1e-5  # re full scale

HEIGHT_M = (0.5, 12.0)  # of animals in the open
RECORDER_M = 1.5  # height of the recorders
SIDES_M = ((15.0, 30.0), (12.0, 25.0), (4.0, 8.0))  # length, width and height of a reverberant space
WALL_M = 1.0  # least distance of an animal from a wall
ABSORPTION = (0.3, 0.6)  # share of energy that a wall absorbs
IMAGE_ORDER = 8

GAIN_DB = 6.0  # largest gain of a recorder, with either sign
EQUALISER_DB = 6.0  # largest gain of an octave, with either sign
EQUALISER_TAPS = 257  # odd: the delay is 128 samples, which is removed; the filter resolves 125 Hz
OCTAVES_HZ = (0.0, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, RATE_HZ / 2)
SELF_NOISE_DB = (-20.0, -10.0)  # white, relative to the noise floor, which falls by 3 dB per octave
PEAK = 0.5  # of the louder recorder, before the gains


@dataclass(frozen=True)
class Config:
    """Which scenes are simulated. Each file draws its values from the ranges."""

    duration_s: float = 120.0
    """Length of a file in s, at least 10."""

    train_files: int = 8
    """Number of files in the split `train` of each set; 0 makes none."""

    test_files: int = 12
    """Number of files in the split `test` of each set; 0 makes none."""

    sources: Literal["auto", "field", "made-up"] = "auto"
    """Source of the calls: `field` recordings, `made-up` (synthetic) calls, or `auto`: field recordings if found."""

    num_sources: tuple[int, int] = (3, 6)
    """Range of the number of animals in a scene, at least 1."""

    spacing_m: tuple[float, float] = (0.05, 0.4)
    """Range of the distance between the two recorders, in m."""

    distance_m: tuple[float, float] = (4.0, 40.0)
    """Range of the distance of an animal from the recorders, in m."""

    reverberant_share: float = 0.5
    """Share of the scenes that are in a reverberant space, between 0 and 1; the others are in the open."""

    missing_share: float = 0.25
    """Probability that one of the recorders, chosen at random, misses an animal, between 0 and 1.

    At least one animal is always recorded by both.
    """

    snr_db: tuple[float, float] = (0.0, 20.0)
    """Range of the signal-to-noise ratio in dB: the level of the calls, pauses excluded, over the noise floor."""

    num_silences: tuple[int, int] = (1, 3)
    """Range of the number of stretches in which no animal calls."""

    silence_s: tuple[float, float] = (4.0, 12.0)
    """Range of the length of such a stretch, in s."""

    coarse_offset_s: float = 4.5
    """Largest offset of the clocks of `aru-sim-coarse`, in s, with either sign."""

    coarse_drift_ppm: float = 500.0
    """Largest drift of the clocks of `aru-sim-coarse`, in parts per million, with either sign."""

    coarse_wobble_s: float = 0.05
    """Largest wobble of the clocks of `aru-sim-coarse`, in s; 0 turns it off."""

    fine_offset_s: float = 0.45
    """Largest offset of the clocks of `aru-sim-fine`, in s, with either sign."""

    fine_drift_ppm: float = 100.0
    """Largest drift of the clocks of `aru-sim-fine`, in parts per million, with either sign."""

    fine_wobble_s: float = 0.005
    """Largest wobble of the clocks of `aru-sim-fine`, in s; 0 turns it off."""

    seed: int = 0
    """Seed of all random draws."""

    def __post_init__(self) -> None:
        require(self.duration_s >= 10, "duration_s must be >= 10 s", self.duration_s)
        require(min(self.train_files, self.test_files) >= 0, "numbers of files must be >= 0", self)
        ranges = (self.num_sources, self.spacing_m, self.distance_m, self.snr_db, self.num_silences, self.silence_s)
        require(all(low <= high for low, high in ranges), "a range must go from low to high", ranges)
        require(self.num_sources[0] >= 1, "num_sources must be >= 1", self.num_sources)
        least = min(self.spacing_m[0], self.distance_m[0], self.num_silences[0], self.silence_s[0])
        require(least >= 0, "spacings, distances and silences must be >= 0", self)
        shares = (self.reverberant_share, self.missing_share)
        require(min(shares) >= 0 and max(shares) <= 1, "shares must be between 0 and 1", shares)
        for regime, max_lag_s in MAX_LAG_S.items():
            largest_s = self.clock_range(regime).largest_lag_s(self.duration_s)
            require(largest_s <= max_lag_s, f"lags of aru-sim-{regime} must be <= {max_lag_s:g} s", largest_s)

    def clock_range(self, regime: str) -> ClockRange:
        """Return the range from which the clocks of a regime are drawn."""
        if regime == "fine":
            return ClockRange(self.fine_offset_s, self.fine_drift_ppm, self.fine_wobble_s)
        return ClockRange(self.coarse_offset_s, self.coarse_drift_ppm, self.coarse_wobble_s)


class Calls(Protocol):
    """A supply of animal calls."""

    def crop(self, num_samples: int, draw: np.random.Generator) -> Floats:
        """Return a random excerpt with calls, shape (T,), at any level."""
        ...


def build(config: Config, root: Path | None) -> AruSim:
    """Return the simulated sets. Raises: DataError if `sources` is `field` and field recordings are missing."""
    field = root / "field" if root is not None else None
    has_field = field is not None and all((field / split).is_dir() for split in SPLITS)
    if config.sources == "field" and not has_field:
        raise DataError(
            f"aru-sim.sources = field needs recordings in {root or '<data root>'}/field/train and field/test; "
            f"give the folder that holds them as --data-root, or set sources to made-up"
        )
    return AruSim(config, field if has_field and config.sources != "made-up" else None)


@dataclass(frozen=True)
class AruSim:
    """The sets `aru-sim-coarse` and `aru-sim-fine`; `field` is None if the calls are synthetic."""

    config: Config
    field: Path | None

    def sets(self) -> tuple[str, ...]:
        """Return the names of the sets, one for each regime."""
        return tuple(f"aru-sim-{regime}" for regime in MAX_LAG_S)

    def max_lag_s(self, set_name: str) -> float:
        """Return the largest lag in seconds of the set's regime."""
        return MAX_LAG_S[_regime(set_name)]

    def digest(self) -> str:
        """Return a digest of the settings, the field recordings and the libraries."""
        import pyroomacoustics

        stamps: list[tuple[str, int, int]] = []
        for split in SPLITS if self.field else ():
            stats = [(path.name, path.stat()) for path in _find_recordings(self.field, split)]
            stamps += [(f"{split}/{name}", stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return digest("aru-sim", FORMAT, asdict(self.config), stamps, pyroomacoustics.__version__, decoder_version())

    def folder(self, store: Store, progress: Progress) -> Path:
        """Return the folder of both sets, made on the first call; after a kill it continues with the next file."""

        def make(folder: Path) -> None:
            for set_name in self.sets():
                for split in SPLITS:
                    write_split(folder, set_name, split, self.recipes(set_name, split), progress)

        return store.fetch("pairs", self.digest(), make)

    def recipes(self, set_name: str, split: str) -> list[Recipe]:
        """Return how each file of a split is made; every file has its own random generator."""
        calls: Calls = FieldCalls(tuple(_find_recordings(self.field, split))) if self.field else MadeUpCalls()
        num_files = self.config.train_files if split == "train" else self.config.test_files
        duration_s = self.config.duration_s
        recipes = []
        for number in range(num_files):
            seed = int(digest("aru-sim", self.config.seed, set_name, split, number), 16)
            clock = self.config.clock_range(_regime(set_name)).draw(np.random.default_rng([seed, 0]), duration_s)
            time0_K = np.arange(0.0, duration_s, SPACING_S)
            keypoints = Keypoints(time0_K, np.clip(clock.time1(time0_K), 0.0, duration_s))
            make = partial(simulate_pair, self.config, calls, clock, self.max_lag_s(set_name), seed)
            recipes.append(Recipe(f"{number:03d}.wav", keypoints, make))
        return recipes


def _regime(set_name: str) -> str:
    regime = set_name.removeprefix("aru-sim-")
    if regime not in MAX_LAG_S:
        raise DataError(f"aru-sim has no set {set_name!r}; it has {', '.join(f'aru-sim-{r}' for r in MAX_LAG_S)}")
    return regime


# The scene


def simulate_pair(config: Config, calls: Calls, clock: Clock, margin_s: float, seed: int) -> tuple[Floats, Floats]:
    """Return both channels (T,) of a file. The scene begins margin_s before channel 0 and ends margin_s after it."""
    draw = np.random.default_rng([seed, 1])
    num_samples = round((config.duration_s + 2 * margin_s) * RATE_HZ)
    # 1. What the animals call, and what arrives at each recorder
    dry_ST = _draw_calls(config, calls, num_samples, draw)
    wet_RT = _propagate(
        dry_ST, _draw_audible(len(dry_ST), config, draw), _simulate_responses(config, len(dry_ST), draw)
    )
    # 2. Recorder noise, equaliser and gain
    recorded_RT = _apply_recorders(wet_RT, config, draw)
    # 3. Channel 0 on the time of the scene, channel 1 on its own clock
    time1 = np.arange(round(config.duration_s * RATE_HZ)) / RATE_HZ
    start = round(margin_s * RATE_HZ)
    return recorded_RT[0, start : start + len(time1)], warp(recorded_RT[1], clock.time0(time1) + margin_s)


def _draw_calls(config: Config, calls: Calls, num_samples: int, draw: np.random.Generator) -> Floats:
    """Return the calls of each animal, shape (S, T), zero between calls."""
    dry_ST = np.zeros((int(draw.integers(*config.num_sources, endpoint=True)), num_samples), np.float32)
    for dry_T in dry_ST:
        start = round(draw.exponential(PAUSE_S) * RATE_HZ)
        while start < num_samples:
            length = min(round(draw.uniform(*CALL_S) * RATE_HZ), num_samples - start)
            level = np.float32(10 ** (draw.uniform(*CALL_LEVEL_DB) / 20))
            dry_T[start : start + length] = level * _draw_call(calls, length, draw)
            start += length + round(draw.exponential(PAUSE_S) * RATE_HZ)
    for _ in range(int(draw.integers(*config.num_silences, endpoint=True))):
        length = min(round(draw.uniform(*config.silence_s) * RATE_HZ), num_samples)
        start = int(draw.integers(0, num_samples - length + 1))
        dry_ST[:, start : start + length] *= 1 - _fade_window(length)
    return dry_ST


def _draw_call(calls: Calls, length: int, draw: np.random.Generator) -> Floats:
    """Return the liveliest of CROPS_PER_CALL crops, shape (T,), faded at both ends, scaled to CALL_RMS."""
    crops = [calls.crop(length, draw) for _ in range(CROPS_PER_CALL)]
    best = max(crops, key=_liveliness)
    rms = float(np.sqrt(np.mean(np.square(best, dtype=np.float64))))
    faded: Floats = best * _fade_window(length) * np.float32(CALL_RMS / max(rms, SILENT_RMS))
    return faded


def _liveliness(wave_T: Floats) -> float:
    """Return the ratio of the 90th to the 10th percentile of a crop's frame levels; 0 if it is silent or too short."""
    frame = round(FRAME_S * RATE_HZ)
    if len(wave_T) < 2 * frame:
        return 0.0
    level = np.sqrt(np.mean(np.square(wave_T[: len(wave_T) // frame * frame].reshape(-1, frame)), axis=1))
    low, high = np.quantile(level, (0.1, 0.9))
    return float(high / max(low, SILENT_RMS)) if high > SILENT_RMS else 0.0


def _fade_window(length: int) -> Floats:
    """Return a window (T,) that rises over FADE_S, stays at 1, and falls over FADE_S."""
    ramp = np.clip((np.arange(length) + 1) / (FADE_S * RATE_HZ), 0, 1)
    window: Floats = (0.5 - 0.5 * np.cos(np.pi * np.minimum(ramp, ramp[::-1]))).astype(np.float32)
    return window


def _draw_audible(num_sources: int, config: Config, draw: np.random.Generator) -> Floats:
    """Return 1 where a recorder records a source, else 0, shape (R, S). Both record the first source."""
    audible_RS = np.ones((2, num_sources), np.float32)
    for source in range(1, num_sources):
        if draw.random() < config.missing_share:
            audible_RS[draw.integers(2), source] = 0
    return audible_RS


def _simulate_responses(config: Config, num_sources: int, draw: np.random.Generator) -> list[list[Floats]]:
    """Return the impulse response from each source to each recorder, [recorder][source], direct delays included."""
    import pyroomacoustics as pra

    if draw.random() < config.reverberant_share:
        sides_m = np.array([draw.uniform(*side) for side in SIDES_M])
        material = pra.Material(float(draw.uniform(*ABSORPTION)))
        room = pra.ShoeBox(sides_m, fs=RATE_HZ, materials=material, max_order=IMAGE_ORDER, air_absorption=True)
        centre_m = np.append(sides_m[:2] * draw.uniform(0.4, 0.6, 2), RECORDER_M)
        positions_m = [draw.uniform(WALL_M, sides_m - WALL_M) for _ in range(num_sources)]
    else:
        room = pra.AnechoicRoom(3, fs=RATE_HZ)
        centre_m = np.array([0.0, 0.0, RECORDER_M])
        positions_m = [_draw_position(config, draw) for _ in range(num_sources)]
    angle = draw.uniform(0, 2 * np.pi)
    apart_m = draw.uniform(*config.spacing_m) / 2 * np.array([np.cos(angle), np.sin(angle), 0.0])
    for position_m in positions_m:
        room.add_source(position_m)
    room.add_microphone_array(np.stack([centre_m - apart_m, centre_m + apart_m], axis=1))
    room.compute_rir()
    return [[np.asarray(response, np.float32) for response in row] for row in room.rir]


def _draw_position(config: Config, draw: np.random.Generator) -> Doubles:
    """Return the position (3,) in m of an animal in the open; the recorders stand at x = y = 0."""
    away_m, angle = draw.uniform(*config.distance_m), draw.uniform(0, 2 * np.pi)
    position_m: Doubles = np.array([away_m * np.cos(angle), away_m * np.sin(angle), draw.uniform(*HEIGHT_M)])
    return position_m


def _propagate(dry_ST: Floats, audible_RS: Floats, responses: Sequence[Sequence[Floats]]) -> Floats:
    """Return the calls as they arrive at the recorders, shape (R, T), scaled to a largest peak of PEAK."""
    from scipy.signal import oaconvolve

    wet_RT = np.zeros((len(responses), dry_ST.shape[1]), np.float32)
    for recorder, source in np.argwhere(audible_RS):
        wet_RT[recorder] += oaconvolve(dry_ST[source], responses[recorder][source])[: dry_ST.shape[1]]
    return wet_RT * np.float32(PEAK / max(float(np.abs(wet_RT).max()), SILENT_RMS))


def _apply_recorders(wet_RT: Floats, config: Config, draw: np.random.Generator) -> Floats:
    """Return what the recorders store, shape (R, T): calls and noise, equalised and amplified."""
    sounding = np.abs(wet_RT).max(axis=0) > SILENT_RMS
    call_rms = float(np.sqrt(np.mean(np.square(wet_RT[:, sounding])))) if sounding.any() else CALL_RMS
    floor_rms = call_rms * 10 ** (-draw.uniform(*config.snr_db) / 20)
    return np.stack([_apply_recorder(wet_T, floor_rms, draw) for wet_T in wet_RT])


def _apply_recorder(wet_T: Floats, floor_rms: float, draw: np.random.Generator) -> Floats:
    from scipy.signal import firwin2, lfilter, oaconvolve

    # 1. The noise floor: white noise through three poles and zeros is close to pink (3 dB per octave) above the
    # lowest octaves.
    # Source: Smith, Spectral Audio Signal Processing, section "Example: Synthesis of 1/F Noise (Pink Noise)".
    white_T = draw.standard_normal(len(wet_T), dtype=np.float32)
    pink_T = lfilter(
        [0.049922035, -0.095993537, 0.050612699, -0.004408786],
        [1.0, -2.494956002, 2.017265875, -0.522189400],
        white_T,
    )
    pink_T *= floor_rms / np.sqrt(np.mean(np.square(pink_T)))
    # 2. The recorder's equaliser
    octave_db = draw.uniform(-EQUALISER_DB, EQUALISER_DB, len(OCTAVES_HZ))
    equaliser = firwin2(EQUALISER_TAPS, OCTAVES_HZ, 10 ** (octave_db / 20), fs=RATE_HZ)
    sound_T = oaconvolve(wet_T + pink_T, equaliser, mode="same")
    # 3. Self-noise and gain
    self_rms = floor_rms * 10 ** (draw.uniform(*SELF_NOISE_DB) / 20)
    sound_T += self_rms * draw.standard_normal(len(wet_T), dtype=np.float32)
    gain = 10 ** (draw.uniform(-GAIN_DB, GAIN_DB) / 20)
    recorded_T: Floats = (gain * sound_T).astype(np.float32)
    return recorded_T


# Calls


def _find_recordings(field: Path | None, split: str) -> list[Path]:
    assert field is not None
    found = [field / split / name for name, problem in find_audio(field / split).items() if not problem]
    return [path for path in found if not stamp_file(path)[2]]


@dataclass(frozen=True)
class FieldCalls:
    """Crops of field recordings. Long ones are drawn more often, so that every second is equally likely."""

    paths: tuple[Path, ...]

    @cached_property
    def waves(self) -> tuple[Floats, ...]:
        """Return the decoded recordings, 230 MB for each hour."""
        return tuple(decode(path) for path in self.paths)

    def crop(self, num_samples: int, draw: np.random.Generator) -> Floats:
        """Return an excerpt of a recording, shape (T,); a shorter recording is repeated."""
        sizes = np.array([len(wave) for wave in self.waves])
        wave_T = self.waves[int(draw.choice(len(sizes), p=sizes / sizes.sum()))]
        start = int(draw.integers(0, max(1, len(wave_T) - num_samples + 1)))
        return np.resize(wave_T[start:], num_samples)


@dataclass(frozen=True)
class MadeUpCalls:
    """Synthetic calls, used without field recordings: chirps, trills and notes with harmonics."""

    def crop(self, num_samples: int, draw: np.random.Generator) -> Floats:
        """Return syllables of one kind, with pauses between them, shape (T,)."""
        kind = (_chirp, _trill, _note)[int(draw.integers(3))]
        syllable_s, pause_s = draw.uniform(0.1, 0.5), draw.uniform(0.05, 0.3)
        wave_T = np.zeros(num_samples, np.float32)
        start = 0
        while start < num_samples:
            length = min(round(syllable_s * draw.uniform(0.8, 1.2) * RATE_HZ), num_samples - start)
            wave_T[start : start + length] = kind(np.arange(length) / RATE_HZ, draw) * _fade_window(length)
            start += length + round(pause_s * draw.uniform(0.5, 2) * RATE_HZ)
        return wave_T


def _chirp(time_T: Doubles, draw: np.random.Generator) -> Doubles:
    """Return a whistle that glides from one pitch to another."""
    low, high = draw.uniform(1500, 6500, 2)
    length_s = max(float(time_T[-1]), FADE_S)
    chirp_T: Doubles = np.sin(2 * np.pi * (low + (high - low) * time_T / (2 * length_s)) * time_T)
    return chirp_T


def _trill(time_T: Doubles, draw: np.random.Generator) -> Doubles:
    """Return a whistle with a fast vibrato."""
    centre, width, rate = draw.uniform(2000, 6000), draw.uniform(100, 800), draw.uniform(15, 60)
    trill_T: Doubles = np.sin(2 * np.pi * centre * time_T + width / rate * np.sin(2 * np.pi * rate * time_T))
    return trill_T


def _note(time_T: Doubles, draw: np.random.Generator) -> Doubles:
    """Return a tone whose harmonics are weaker the higher they are."""
    pitch, slope = draw.uniform(300, 1200), draw.uniform(0.4, 0.8)
    numbers = np.arange(1, 6)[:, None]
    note_T: Doubles = (slope**numbers * np.sin(2 * np.pi * pitch * numbers * time_T)).sum(axis=0)
    return note_T
