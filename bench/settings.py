"""Every setting of a run, as frozen dataclasses. A setting has one name everywhere: `train.lr`.

A class checks the ranges of its settings when it is made; `bench.config` reads their values and checks names and types.
Content keys leave out a setting marked ADDED_LATER where it has its default, so that older keys stay valid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bench.errors import ConfigError
from bench.store import ADDED_LATER
from bench.values import STANDARD_HOP_MS

SEQUENCES = ("vote", "vote-50", "rescore", "interpolate", "verify", "edit", "diagonal")
MP3_KBPS = (16, 24, 32, 40, 48, 56, 64)  # constant rates of MPEG-2 layer 3 at 16 kHz; libsndfile cannot write 8
PROBABILITIES = (  # of the transforms of training
    "time_stretch", "resample_jitter", "tanh", "coloured_noise", "pitch_shift", "compress", "clip", "codec", "device",
)  # fmt: skip
COUNTING_SEQUENCES = ("vote", "vote-50", "edit")  # whose scores are shares and no similarities, without impostors


def require(holds: bool, rule: str, got: object) -> None:
    """Raise ConfigError with the rule and the offending value unless the rule holds."""
    if not holds:
        raise ConfigError(f"{rule}, got {got}")


@dataclass(frozen=True)
class DataConfig:
    """Which audio a run uses: music, noise and impulse responses."""

    dataset: str = "synth"
    """The data-set plug-in of the music, by its name or file."""

    noise: str = "auto"
    """The noise: a data-set plug-in, or a folder.

    `auto` takes the folder `noise` of the data root, and synthetic noise where there is none.
    """

    rir: str = "auto"
    """The measured impulse responses that training uses beside simulated rooms: a data-set plug-in, or a folder.

    `auto` takes the folder `rir` of the data root if there is one; `rooms` uses simulated rooms alone. Tests use
    simulated rooms, and those of `eval.measured_rooms`.
    """

    min_track_s: float = 1.0
    """Tracks shorter than this many seconds are left out; at least 1, the length of the longest segment."""

    def __post_init__(self) -> None:
        require(self.min_track_s >= 1.0, "data.min_track_s must be >= 1 (the longest segment)", self.min_track_s)


@dataclass(frozen=True)
class Transforms:
    """How training changes the waveforms of pairs, in worker processes, before noise and rooms are added.

    The last five are the distortions that `fma-segment/v2` tests (`bench.degrade.distort`); no preset uses them.
    Source of the ranges: the BioDCASE report where it gives one, else the defaults of audiomentations; those of the
    last five are ours, around what is tested.
    """

    time_stretch: float = 0.0
    """Probability of a change of tempo at the same pitch, between 0 and 1."""

    resample_jitter: float = 0.0
    """Probability of a change of speed, that is of tempo and pitch together, between 0 and 1."""

    tanh: float = 0.0
    """Probability of a distortion by the hyperbolic tangent, between 0 and 1."""

    coloured_noise: float = 0.0
    """Probability of added pink or brown noise, each equally likely, between 0 and 1."""

    views: Literal["positive", "pair"] = "positive"
    """What is changed: the positive alone, or the anchor too, by draws of its own."""

    stretch_rate: tuple[float, float] = (0.95, 1.05)
    """Range of the tempo of a time stretch, between 0.5 and 2; 1 leaves it unchanged."""

    jitter: tuple[float, float] = (0.01, 0.03)
    """Range of the change of speed, as a share of it, between 0.001 and 0.49; up and down are equally likely."""

    tanh_amount: tuple[float, float] = (0.01, 0.7)
    """Range of the amount of distortion, from 0 (clean) to 1."""

    colour_snr_db: tuple[float, float] = (5.0, 40.0)
    """Range of the SNR of coloured noise over the whole segment, in dB, between -100 and 100."""

    pitch_shift: float = field(default=0.0, metadata=ADDED_LATER)
    """Probability of a shift of pitch at the same tempo, between 0 and 1."""

    compress: float = field(default=0.0, metadata=ADDED_LATER)
    """Probability of dynamic compression, between 0 and 1."""

    clip: float = field(default=0.0, metadata=ADDED_LATER)
    """Probability of clipping, between 0 and 1."""

    codec: float = field(default=0.0, metadata=ADDED_LATER)
    """Probability of a lossy codec, MP3 or Opus, each equally likely, between 0 and 1."""

    device: float = field(default=0.0, metadata=ADDED_LATER)
    """Probability of a telephone line, or a small loudspeaker and a phone's microphone, between 0 and 1."""

    pitch_cents: tuple[float, float] = field(default=(-100.0, 100.0), metadata=ADDED_LATER)
    """Range of the shift of pitch, in hundredths of a semitone, between -1,200 and 1,200."""

    compress_ratio: tuple[float, float] = field(default=(2.0, 10.0), metadata=ADDED_LATER)
    """Range of the ratio of compression above -30 dB of the segment's peak, between 1 and 100."""

    clip_db: tuple[float, float] = field(default=(3.0, 15.0), metadata=ADDED_LATER)
    """Range of how far below the segment's peak it is cut off, in dB, between 0 and 60."""

    codec_kbps: tuple[float, float] = field(default=(16.0, 64.0), metadata=ADDED_LATER)
    """Range of the codec's rate in kbit/s, between 16 and 64; MP3 takes the nearest rate that it has."""

    def __post_init__(self) -> None:
        for name in PROBABILITIES:
            share = getattr(self, name)
            require(0 <= share <= 1, f"train.transforms.{name} is a probability: between 0 and 1", share)
        for name, least, most in (
            ("stretch_rate", 0.5, 2), ("jitter", 1e-3, 0.49), ("tanh_amount", 0, 1), ("colour_snr_db", -100, 100),
            ("pitch_cents", -1200, 1200), ("compress_ratio", 1, 100), ("clip_db", 0, 60), ("codec_kbps", 16, 64),
        ):  # fmt: skip
            low, high = getattr(self, name)
            rule = f"train.transforms.{name} must be (low, high) between {least} and {most}"
            require(least <= low <= high <= most, rule, (low, high))

    @property
    def is_idle(self) -> bool:
        """Return whether no transform is ever applied."""
        return not any(getattr(self, name) for name in PROBABILITIES)


@dataclass(frozen=True)
class Mixture:
    """How many sources sound at once in a training pair, and how loud.

    An anchor is the sum of K sources, each times a gain. Its positive is the sum of the same sources with new gains, of
    which 0 to K - 1 are muted; each source is shifted by up to `train.offset_ms`, independently of the others.
    Source: the BioDCASE report, equation 1 and table 1. It gives neither K nor how many sources are muted.
    """

    sources: tuple[int, int] = (1, 1)
    """Range of K, the number of sources, between 1 and 16; (1, 1) mixes nothing."""

    gain: tuple[float, float] = (0.2, 5.0)
    """Range of a source's gain, a factor of amplitude, above 0 and at most 100."""

    def __post_init__(self) -> None:
        few, many = self.sources
        require(1 <= few <= many <= 16, "train.mixture.sources must be (low, high) between 1 and 16", self.sources)
        low, high = self.gain
        require(0 < low <= high <= 100, "train.mixture.gain must be (low, high), above 0, at most 100", self.gain)

    @property
    def is_idle(self) -> bool:
        """Return whether a pair is of one source alone, as it is."""
        return self.sources[1] == 1


@dataclass(frozen=True)
class TrainConfig:
    """How the encoder is trained.

    Where a setting is a range, its values are drawn uniformly. Each positive is clean, noisy, reverberant or both, as
    drawn by the weights `clean`, `noise_only`, `reverb_only` and `noise_and_reverb`: at least 0, and not all 0.
    """

    steps: int = 2000
    """Number of optimiser steps; 0 leaves the encoder untrained."""

    batch_pairs: int = 128
    """Pairs of anchor and positive in a batch; at least 2, so that there is a negative."""

    lr: float = 1e-3
    """Peak learning rate, above 0."""

    lr_min: float = 1e-6
    """Lowest learning rate of the cosine and cyclic schedules, from 0 to `lr`."""

    warmup_steps: int = 100
    """Steps of linear rise to `lr`; 0 starts at `lr`. The cyclic schedule has no warm-up."""

    schedule: Literal["cosine", "cyclic", "constant"] = "cosine"
    """How the learning rate changes after the warm-up.

    `cosine` falls from `lr` to `lr_min`; `cyclic` goes up and down between the two in equal times; `constant` is `lr`.
    """

    optimiser: Literal["adam", "lamb"] = "adam"
    """Adam, or LAMB, which is meant for large batches."""

    weight_decay: float = 0.0
    """Weight decay of the optimiser; 0 means none."""

    loss: Literal["nt-xent", "nafp", "info-nce", "triplet", "semi-hard-triplet", "multi-positive"] = "nt-xent"
    """The loss on pairs of unit vectors; docs/training.md compares them, with their sources."""

    temperature: float = 0.05
    """Temperature of the cross entropies (nt-xent, nafp, info-nce, multi-positive), above 0."""

    margin: float = 0.4
    """Margin of the triplet losses, at least 0: of a distance for `triplet`, of its square for `semi-hard-triplet`."""

    offset_ms: float = 50.0
    """How far from its anchor a positive may begin, in ms either way, from 0 to 500."""

    offset_power: float = 1.0
    """Shape of the draw of that offset, offset_ms x u^offset_power with u uniform, from 0 to 10.

    1 is uniform; below 1 draws more offsets near the edge, where the next database vector is nearly as close.
    """

    snr_db: tuple[float, float] = (0.0, 20.0)
    """Range of the signal-to-noise ratio of a positive that gets noise, in dB."""

    clean: float = 0.0
    """Weight of positives with neither noise nor reverberation."""

    noise_only: float = 1.0
    """Weight of positives with noise alone."""

    reverb_only: float = 1.0
    """Weight of positives with reverberation alone."""

    noise_and_reverb: float = 1.0
    """Weight of positives with both."""

    t60_s: tuple[float, float] = field(default=(0.2, 1.0), metadata=ADDED_LATER)
    """Range of the reverberation times of the simulated training rooms, in s, between 0.15 and 2."""

    max_rir_s: float = 0.5
    """Length to which impulse responses are cut, in s, from 0.05 to 2; 0 keeps them whole."""

    past_s: float = field(default=0.0, metadata=ADDED_LATER)
    """Audio before a segment that is read with it, in s, at most 2, so that a room still rings with what came before.

    0 reads `max_rir_s` of it, or 1 s, as the test does, where responses are kept whole.
    """

    gain_db: tuple[float, float] = (0.0, 0.0)
    """Range of a positive's peak level, in dB relative to full scale, at most 0."""

    transforms: Transforms = field(default_factory=Transforms)
    """Transforms of the positives' waveforms."""

    mixture: Mixture = field(default_factory=Mixture)
    """How several sources make one pair."""

    mask_count: int = 1
    """Stripes hidden on each axis of a positive's features (SpecAugment, Park et al. 2019); 0 hides none."""

    mask_fraction: float = 0.1
    """Largest width of a stripe, as a share of its axis, from 0 to below 1."""

    segments_per_track: int = 1
    """Number of segments that a batch has of each of its tracks, at least 1.

    The first lies anywhere, followed by neighbours and hard negatives of it (below); the others lie anywhere.
    """

    neighbours_per_track: int = 0
    """Number of segments at distinct multiples of `neighbour_ms` from a track's first; 0 to `segments_per_track` - 1.

    They are as close together as the vectors of a database, and teach the encoder to tell these apart.
    """

    neighbour_ms: float = 100.0
    """Step of the grid of neighbours, in ms, from 1 to 10,000."""

    neighbour_reach: int = 0
    """Largest distance of a neighbour, in multiples of `neighbour_ms`; 0 means `segments_per_track` of them.

    Otherwise from half of `neighbours_per_track`, as neighbours lie on both sides, to 1,000.
    """

    hard_negatives_per_track: int = 0
    """Number of segments where the track sounds most like its first one, such as the next turn of a loop.

    From 0 to what `segments_per_track` leaves beside the first segment and its neighbours.
    """

    pairs_per_moment: int = 1
    """Number of pairs made of each segment, degraded differently; from 1 to below `batch_pairs`.

    Above 1 is for the loss `multi-positive`, which needs several.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the network's forward pass: float32, or bfloat16 by autocast."""

    val_every_steps: int = 250
    """Steps from one validation to the next, at least 1; the best weights so far are kept."""

    val_queries: int = 256
    """Number of degraded queries in a validation, at least 2."""

    patience: int = 0
    """Training stops after this many validations without a new best one; 0 never stops early."""

    checkpoint_every_steps: int = 50
    """Steps from one checkpoint to the next, at least 1: a run that is killed repeats at most as many."""

    def __post_init__(self) -> None:
        self._check_optimisation()
        self._check_degradation()
        self._check_batch()
        self._check_validation()

    def _check_optimisation(self) -> None:
        require(self.steps >= 0, "train.steps must be >= 0", self.steps)
        require(self.batch_pairs >= 2, "train.batch_pairs must be >= 2 (a negative is needed)", self.batch_pairs)
        require(self.lr > 0, "train.lr must be > 0", self.lr)
        require(0 <= self.lr_min <= self.lr, "train.lr_min must be between 0 and train.lr", self.lr_min)
        require(self.warmup_steps >= 0, "train.warmup_steps must be >= 0", self.warmup_steps)
        require(self.weight_decay >= 0, "train.weight_decay must be >= 0", self.weight_decay)
        require(self.temperature > 0, "train.temperature must be > 0", self.temperature)
        require(self.margin >= 0, "train.margin must be >= 0", self.margin)

    def _check_degradation(self) -> None:
        require(0 <= self.offset_ms <= 500, "train.offset_ms must be between 0 and 500", self.offset_ms)
        require(0 <= self.offset_power <= 10, "train.offset_power must be between 0 and 10", self.offset_power)
        require(self.snr_db[0] <= self.snr_db[1], "train.snr_db must be (low, high)", self.snr_db)
        weights = (self.clean, self.noise_only, self.reverb_only, self.noise_and_reverb)
        require(min(weights) >= 0 < max(weights), "train degradation weights must be >= 0, not all 0", weights)
        rule = "train.t60_s must be (low, high) between 0.15 and 2"
        require(0.15 <= self.t60_s[0] <= self.t60_s[1] <= 2, rule, self.t60_s)
        rule = "train.max_rir_s must be between 0.05 and 2, or 0 for whole responses"
        require(self.max_rir_s == 0 or 0.05 <= self.max_rir_s <= 2, rule, self.max_rir_s)
        require(0 <= self.past_s <= 2, "train.past_s must be between 0 and 2", self.past_s)
        require(self.gain_db[0] <= self.gain_db[1] <= 0, "train.gain_db must be (low, high), at most 0", self.gain_db)
        require(self.mask_count >= 0, "train.mask_count must be >= 0", self.mask_count)
        require(0 <= self.mask_fraction < 1, "train.mask_fraction must be in [0, 1)", self.mask_fraction)

    def _check_batch(self) -> None:
        segments, neighbours = self.segments_per_track, self.neighbours_per_track
        require(segments >= 1, "train.segments_per_track must be >= 1", segments)
        rule = f"train.neighbours_per_track must be between 0 and segments_per_track - 1 = {segments - 1}"
        require(0 <= neighbours < segments, rule, neighbours)
        require(1 <= self.neighbour_ms <= 10_000, "train.neighbour_ms must be between 1 and 10000", self.neighbour_ms)
        fewest = -(-neighbours // 2)
        rule = f"train.neighbour_reach must be 0, or from half of neighbours_per_track, so {fewest}, to 1000"
        require(self.neighbour_reach == 0 or fewest <= self.neighbour_reach <= 1_000, rule, self.neighbour_reach)
        left = segments - 1 - neighbours
        rule = "train.hard_negatives_per_track must be between 0 and segments_per_track - 1 - neighbours_per_track"
        require(0 <= self.hard_negatives_per_track <= left, f"{rule} = {left}", self.hard_negatives_per_track)
        rule = f"train.pairs_per_moment must be from 1 to below train.batch_pairs = {self.batch_pairs} (for a negative)"
        require(1 <= self.pairs_per_moment < self.batch_pairs, rule, self.pairs_per_moment)

    def _check_validation(self) -> None:
        require(self.val_every_steps >= 1, "train.val_every_steps must be >= 1", self.val_every_steps)
        require(self.val_queries >= 2, "train.val_queries must be >= 2", self.val_queries)
        require(self.patience >= 0, "train.patience must be >= 0 (0 never stops early)", self.patience)
        every = self.checkpoint_every_steps
        require(every >= 1, "train.checkpoint_every_steps must be >= 1", every)


@dataclass(frozen=True)
class GridV2:
    """The conditions of `fma-segment/v2`, which `v1` has no use for; an empty list leaves out its cells.

    Two levels of what `v1` has five of, and a few of each other kind, so that a test of all takes minutes.
    docs/metrics.md, "What `v2` fixes", says why each value is what it is.
    """

    snr_db: tuple[float, ...] = (0.0, 10.0)
    """Signal-to-noise ratios of the noisy cells, in dB, and of the loudspeaker heard in a room."""

    t60_s: tuple[float, ...] = (0.4, 0.8)
    """Reverberation times of the reverberant cells, in s, from 0.15 to 2."""

    noise_reverb_t60_s: float = 0.5
    """Reverberation time of the rooms with noise, and of the loudspeaker's, in s, from 0.15 to 2."""

    direct_to_reverberant_db: float = 0.0
    """Energy of the direct sound of the simulated test rooms to that of all later sound, in dB, from -20 to 20."""

    speeds: tuple[float, ...] = (0.98, 0.99, 0.995, 1.005, 1.01, 1.02)
    """Speeds at which the music plays, its pitch along with it, as multiples of its own; from 0.5 to 2, but not 1."""

    tempos: tuple[float, ...] = (0.96, 1.04)
    """Speeds at which the music plays at its own pitch; from 0.5 to 2, but not 1."""

    pitch_cents: tuple[float, ...] = (-50.0, 50.0)
    """Shifts of the pitch at the music's own tempo, in hundredths of a semitone, from -1,200 to 1,200, but not 0."""

    codecs: tuple[str, ...] = ("mp3-16", "mp3-32", "opus-16")
    """Lossy codecs and their bit rates in kbit/s: `mp3` at one of its constant rates, `opus` from 6.5 to 64."""

    clip_db: tuple[float, ...] = (12.0,)
    """How far below its peak the music is cut off, in dB, above 0 and at most 60."""

    compression_ratios: tuple[float, ...] = (8.0,)
    """Ratios of a dynamic compressor above its threshold, above 1 and at most 100."""

    devices: tuple[Literal["telephone", "loudspeaker"], ...] = ("telephone", "loudspeaker")
    """Devices that the music passes.

    `telephone` is a line of 300 to 3,400 Hz with 8-bit mu-law at 8 kHz; `loudspeaker` a small loudspeaker, a room with
    noise, and the microphone of a phone.
    """

    def __post_init__(self) -> None:
        for name in (
            "snr_db", "t60_s", "speeds", "tempos", "pitch_cents", "codecs", "clip_db", "compression_ratios", "devices",
        ):  # fmt: skip
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"eval.v2.{name} must not name anything twice", values)
        both_s, ratio_db = self.noise_reverb_t60_s, self.direct_to_reverberant_db
        require(all(0.15 <= t <= 2 for t in self.t60_s), "eval.v2.t60_s must be between 0.15 and 2", self.t60_s)
        require(0.15 <= both_s <= 2, "eval.v2.noise_reverb_t60_s must be between 0.15 and 2", both_s)
        require(-20 <= ratio_db <= 20, "eval.v2.direct_to_reverberant_db must be between -20 and 20", ratio_db)
        for name in ("speeds", "tempos"):
            values = getattr(self, name)
            rule = f"eval.v2.{name} must be between 0.5 and 2, and not 1, which changes nothing"
            require(all(0.5 <= value <= 2 and value != 1 for value in values), rule, values)
        cents = self.pitch_cents
        rule = "eval.v2.pitch_cents must be between -1200 and 1200, and not 0, which changes nothing"
        require(all(-1200 <= shift <= 1200 and shift != 0 for shift in cents), rule, cents)
        require(all(0 < depth <= 60 for depth in self.clip_db), "eval.v2.clip_db must be in (0, 60]", self.clip_db)
        ratios = self.compression_ratios
        require(all(1 < ratio <= 100 for ratio in ratios), "eval.v2.compression_ratios must be in (1, 100]", ratios)
        for codec in self.codecs:
            _check_codec(codec)
        has_noise = bool(self.snr_db) or "loudspeaker" not in self.devices
        rule = "eval.v2.devices with loudspeaker needs levels of the noise in eval.v2.snr_db; give one, or leave it out"
        require(has_noise, rule, self.snr_db)

    @property
    def fastest(self) -> float:
        """Return the highest speed or tempo, at least 1: how much of its track a query covers, in its own lengths."""
        return max((1.0, *self.speeds, *self.tempos))


def _check_codec(codec: str) -> None:
    name, _, rate = codec.partition("-")
    known = {"mp3": [str(kbps) for kbps in MP3_KBPS], "opus": None}
    rule = "eval.v2.codecs must name mp3 or opus with a rate in kbit/s, such as mp3-16 or opus-16"
    require(name in known, rule, repr(codec))
    try:
        kbps = float(rate)
    except ValueError as error:
        raise ConfigError(f"{rule}, got {codec!r}") from error
    if name == "mp3":
        require(rate in (known["mp3"] or []), f"the rate of mp3 at 16 kHz must be one of {MP3_KBPS}", repr(codec))
    else:
        require(6.5 <= kbps <= 64, "the rate of opus must be between 6.5 and 64", repr(codec))


@dataclass(frozen=True)
class EvalConfig:
    """What is tested, and how it is searched. The defaults are those of `fma-segment/v1`.

    Another value of any setting from `snr_db` to `measured_t60_s` names the benchmark `custom`; the others, which say
    how it is searched, leave the name as it is. With `version = "v2"`, the group `v2` says what `snr_db`, `t60_s` and
    `noise_reverb_t60_s` say in `v1`.
    """

    snr_db: tuple[float, ...] = (0.0, 5.0, 10.0, 15.0, 20.0)
    """Signal-to-noise ratios of the noisy cells, in dB; an empty list leaves out every noisy cell."""

    t60_s: tuple[float, ...] = (0.2, 0.4, 0.5, 0.7, 0.8)
    """Reverberation times of the reverberant cells, in s, from 0.15 to 2; an empty list leaves these cells out."""

    noise_reverb_t60_s: float = 0.5
    """Reverberation time of the cells with both noise and reverberation, in s, from 0.15 to 2."""

    lengths_s: tuple[float, ...] = (0.96, 2.0, 3.0, 5.0)
    """Query lengths in s, above 0 and at most 30; tracks shorter than the longest give no query."""

    max_queries: int = 10_000
    """Largest number of queries in a cell, one from each test track; at least 1."""

    rooms_per_t60: int = 8
    """Simulated test rooms for each reverberation time, at least 1."""

    hop_ms: float = STANDARD_HOP_MS
    """Time from one vector of the database to the next, in ms, from 10 to 1,000."""

    tolerance_ms: float = 50.0
    """A hit is at most this many ms from the true start, above 0."""

    measured_rooms: str = field(default="", metadata=ADDED_LATER)
    """Measured impulse responses to test in beside simulated rooms: a data-set plug-in such as `air`, or a folder.

    Empty tests in simulated rooms alone. Training uses none of the rooms that are tested in.
    """

    measured_t60_s: tuple[float, ...] = field(default=(0.2, 0.4, 0.5, 0.7, 0.8), metadata=ADDED_LATER)
    """Reverberation times of the cells in measured rooms, in s, from 0.05 to 2; a room belongs to the nearest one."""

    version: Literal["v1", "v2"] = field(default="v1", metadata=ADDED_LATER)
    """The benchmark: `v1`, or `v2` with changes of speed, codecs, devices and rooms with more direct sound."""

    v2: GridV2 = field(default_factory=GridV2, metadata=ADDED_LATER)
    """The conditions of `v2`."""

    indexes: tuple[str, ...] = ("exact", "falconn")
    """Index plug-ins that are searched, at least one, each perhaps with a preset after a colon: `faiss:hnsw32`.

    The headline is of the first.
    """

    sequences: tuple[str, ...] = ("vote", "vote-50", "rescore", "interpolate", "verify")
    """How the neighbours of a query's segments become a ranking; docs/metrics.md defines each.

    Any of SEQUENCES; `rescore`, the headline, is always one of them.
    """

    top_k: int = 20
    """Neighbours that an index returns for each segment, and places ranked for each query; from 1 to 1,000."""

    verify_candidates: int = field(default=1000, metadata=ADDED_LATER)
    """Neighbours of a query that `verify` compares with its wave, divided among its segments; from 1 to 1,000.

    A segment has at least `top_k` of them, and as many places as it has neighbours are compared.
    """

    verify_speed: float = field(default=0.0, metadata=ADDED_LATER)
    """Largest change of speed that `verify` tries, as a share, from 0 (none) to 0.02; each speed costs a transform."""

    ceiling_queries: int = field(default=40, metadata=ADDED_LATER)
    """Queries of each cell that are compared with every place of every track, for the ceiling of all fingerprints.

    0 leaves it out: it takes a third of a second of a core for each hour of the database, query and cell, once for all
    encoders. Without `verify` among the sequence searches there is no ceiling either.
    """

    distractors: tuple[int, ...] = field(default=(), metadata=ADDED_LATER)
    """Numbers of synthetic fingerprints that the database is enlarged by, ascending, each at least 1; empty for none.

    Top-1 of the shortest queries is then also told for each of these sizes. It needs `diagonal` in `eval.sequences`,
    whose answers are compared with the best distractor.
    """

    real_distractors: bool = field(default=False, metadata=ADDED_LATER)
    """Also enlarge the database by real tracks, held-out ones first and then those of training, to check the others.

    Their sizes are those of `eval.distractors` that they reach, and the numbers of fingerprints that there are.
    """

    cost_queries: int = 50
    """Queries of each length that are answered one at a time to measure what an answer costs; 0 measures no costs."""

    recall_at: tuple[int, ...] = (3, 10)
    """The k of recall among the first k places, and among the first k tracks; each from 1.

    No more than `top_k` places are ranked, so that a larger k finds no more.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the network that makes the fingerprints: float32, or bfloat16 by autocast."""

    def __post_init__(self) -> None:
        for name in ("snr_db", "t60_s", "lengths_s", "measured_t60_s", "indexes", "sequences", "recall_at"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"eval.{name} must not name anything twice", values)
        self._check_task()
        self._check_search()

    def _check_task(self) -> None:
        lengths_s = self.lengths_s
        require(len(lengths_s) > 0 and min(lengths_s) > 0, "eval.lengths_s must hold lengths > 0", lengths_s)
        require(max(lengths_s) <= 30, "eval.lengths_s must be at most 30 s", lengths_s)
        require(self.max_queries >= 1, "eval.max_queries must be >= 1", self.max_queries)
        require(self.rooms_per_t60 >= 1, "eval.rooms_per_t60 must be >= 1", self.rooms_per_t60)
        both_s = self.noise_reverb_t60_s
        require(all(0.15 <= t <= 2 for t in self.t60_s), "eval.t60_s must be between 0.15 and 2", self.t60_s)
        require(0.15 <= both_s <= 2, "eval.noise_reverb_t60_s must be between 0.15 and 2", both_s)
        require(10 <= self.hop_ms <= 1000, "eval.hop_ms must be between 10 and 1000", self.hop_ms)
        require(self.tolerance_ms > 0, "eval.tolerance_ms must be > 0", self.tolerance_ms)
        measured = self.measured_t60_s
        require(all(0.05 <= t <= 2 for t in measured), "eval.measured_t60_s must be between 0.05 and 2", measured)

    def _check_search(self) -> None:
        require(len(self.indexes) > 0, "eval.indexes must name at least one index", self.indexes)
        known = set(self.sequences) <= set(SEQUENCES) and "rescore" in self.sequences
        require(known, f"eval.sequences must hold 'rescore' (the headline) and any of {SEQUENCES}", self.sequences)
        require(all(k >= 1 for k in self.recall_at), "eval.recall_at must hold numbers >= 1", self.recall_at)
        require(0 <= self.cost_queries <= 10_000, "eval.cost_queries must be between 0 and 10000", self.cost_queries)
        require(1 <= self.top_k <= 1000, "eval.top_k must be between 1 and 1000", self.top_k)
        candidates = self.verify_candidates
        require(1 <= candidates <= 1000, "eval.verify_candidates must be between 1 and 1000", candidates)
        ceiling = self.ceiling_queries
        require(0 <= ceiling <= 10_000, "eval.ceiling_queries must be between 0 and 10000", ceiling)
        sizes = self.distractors
        rule = "eval.distractors must be numbers of fingerprints >= 1, ascending"
        require(all(size >= 1 for size in sizes) and list(sizes) == sorted(set(sizes)), rule, sizes)
        rule = "eval.distractors needs diagonal in eval.sequences, whose answers they compete with; add it"
        require(not sizes or "diagonal" in self.sequences, rule, self.sequences)
        rule = "eval.real_distractors needs sizes in eval.distractors to be compared with"
        require(bool(sizes) or not self.real_distractors, rule, sizes)
        require(0 <= self.verify_speed <= 0.02, "eval.verify_speed must be between 0 and 0.02", self.verify_speed)


@dataclass(frozen=True)
class AlignConfig:
    """Which pairs of recordings are aligned, and by what.

    The defaults are those of `aru-sim-align/v1`; other sets, other settings of a set or another split name the
    benchmark `custom-align`.
    """

    sets: tuple[str, ...] = ("aru-sim",)
    """Data sets of pairs of recordings, by plug-in name."""

    split: str = "test"
    """The split of each set that is aligned."""

    aligners: tuple[str, ...] = ("nosync", "fingerprint-median", "fingerprint-path")
    """Aligner plug-ins, at least one, each perhaps with a preset after a colon: `gcc-phat:aru`."""

    def __post_init__(self) -> None:
        require(len(self.aligners) > 0, "align.aligners must name at least one aligner", self.aligners)
        for name in ("sets", "aligners"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"align.{name} must not name anything twice", values)


@dataclass(frozen=True)
class RunConfig:
    """Every setting of one run."""

    encoder: str
    """Name of the encoder plug-in, chosen by --model; empty in the run of a matcher."""

    model: Any
    """The Config of the encoder or the matcher."""

    music: Any
    """The Config of the data-set plug-in `data.dataset`."""

    index: dict[str, Any] = field(default_factory=dict)
    """The Config of each index of `eval.indexes`, by its name: `index.falconn.probes`."""

    pairs: dict[str, Any] = field(default_factory=dict)
    """The Config of each data set of `align.sets`, by its name: `pairs.aru-sim.duration_s`."""

    aligner: dict[str, Any] = field(default_factory=dict)
    """The Config of each aligner of `align.aligners`, by its name: `aligner.fingerprint-path.hop_ms`."""

    matcher: str = ""
    """Name of the matcher plug-in with its preset, chosen by --matcher; empty in the run of an encoder."""

    preset: str = "small"
    """Name of the preset that the settings start from, chosen by --preset."""

    seed: int = 0
    """Seed of the weights and of all draws of training, at least 0."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; `auto` takes the GPU if there is one."""

    data: DataConfig = field(default_factory=DataConfig)
    """Which audio."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """How the encoder is trained."""

    eval: EvalConfig = field(default_factory=EvalConfig)
    """What is tested."""

    align: AlignConfig = field(default_factory=AlignConfig)
    """Which recordings are aligned."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed must be >= 0", self.seed)

    @property
    def kind(self) -> Literal["encoder", "matcher"]:
        """Return what kind of plug-in is tested."""
        return "matcher" if self.matcher else "encoder"

    @property
    def system(self) -> str:
        """Return the name of what is tested, the encoder or the matcher."""
        return self.encoder or self.matcher
