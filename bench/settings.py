"""Every setting of a run, as frozen dataclasses. A setting has one name everywhere: `train.lr`.

A class checks the ranges of its settings when it is made; `bench.config` reads their values and checks names and types.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bench.errors import ConfigError

SEQUENCES = ("vote", "rescore", "interpolate", "diagonal")


def require(holds: bool, rule: str, got: object) -> None:
    """Raise ConfigError with the rule and the offending value unless the rule holds."""
    if not holds:
        raise ConfigError(f"{rule}, got {got}")


@dataclass(frozen=True)
class DataConfig:
    """Which music, noise and impulse responses, by plug-in name or, for noise and rir, by folder.

    `auto`: noise is the folder `noise` of the data root, or made up where there is none; rir is the folder
    `rir` beside simulated rooms for training, where there is one. Tests always use simulated rooms.
    """

    dataset: str = "synth"
    noise: str = "auto"
    rir: str = "auto"
    min_track_s: float = 1.0

    def __post_init__(self) -> None:
        require(self.min_track_s >= 1.0, "data.min_track_s must be >= 1 (the longest segment)", self.min_track_s)


@dataclass(frozen=True)
class Transforms:
    """How likely each transform is, and the ranges it is drawn from.

    `stretch_rate` is the tempo at the same pitch, `jitter` the change of speed up or down, as a share, of
    tempo and pitch together; `tanh_amount` runs from 0 (clean) to 1; `colour_snr_db` is that of pink or brown
    noise, each as likely, over the whole segment.
    Source: the BioDCASE report, where it gives ranges; else the defaults of audiomentations.
    """

    time_stretch: float = 0.0
    resample_jitter: float = 0.0
    tanh: float = 0.0
    coloured_noise: float = 0.0
    stretch_rate: tuple[float, float] = (0.95, 1.05)
    jitter: tuple[float, float] = (0.01, 0.03)
    tanh_amount: tuple[float, float] = (0.01, 0.7)
    colour_snr_db: tuple[float, float] = (5.0, 40.0)

    def __post_init__(self) -> None:
        for name in ("time_stretch", "resample_jitter", "tanh", "coloured_noise"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"train.transforms.{name} is a probability: between 0 and 1", share)
        for name, least, most in (
            ("stretch_rate", 0.5, 2), ("jitter", 1e-3, 0.49), ("tanh_amount", 0, 1), ("colour_snr_db", -100, 100),
        ):  # fmt: skip
            low, high = getattr(self, name)
            rule = f"train.transforms.{name} must be (low, high) between {least} and {most}"
            require(least <= low <= high <= most, rule, (low, high))

    @property
    def is_idle(self) -> bool:
        """Return whether no transform is ever applied."""
        return max(self.time_stretch, self.resample_jitter, self.tanh, self.coloured_noise) == 0


@dataclass(frozen=True)
class Mixture:
    """How many sources sound at once in a training pair, and their gains as factors of amplitude.

    The anchor is the sum of K sources, each times a gain; the positive has the same sources with new gains, of
    which 0 to K - 1 are muted, each up to `train.offset_ms` away by itself. With (1, 1) nothing is mixed.
    Source: the BioDCASE report, equation 1 and table 1. It gives neither K nor how many are muted.
    """

    sources: tuple[int, int] = (1, 1)
    gain: tuple[float, float] = (0.2, 5.0)

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
    """How the encoder is trained. Times in ms, levels in dB; pairs of numbers are ranges.

    A batch has `segments_per_track` segments of each of its tracks: one anywhere, `neighbours_per_track` at
    distinct multiples of `neighbour_ms` from it, as close as places in a database are and at most `neighbour_reach`
    multiples away (0: as many as `segments_per_track`), `hard_negatives_per_track` where the track sounds most like it, the
    others anywhere.
    Each place gives `pairs_per_moment` pairs, degraded differently (several are for the loss multi-positive).
    `mixture` makes a pair of several such places, of any tracks, heard at once.
    A positive begins up to `offset_ms` from its anchor, offset_ms x u^`offset_power` with u uniform: 1 is uniform,
    below 1 draws more of them near the edge, where the next place of the database is nearly as close.
    Positives are degraded in one of four ways, drawn by the weights `clean` to `noise_and_reverb`; `gain_db`
    is the range of their level, and `transforms` change their waveform before, in worker processes. `temperature`
    is that of the cross entropies, `margin` that of the triplets.
    Training ends early after `patience` validations without a better one (0: never).
    """

    steps: int = 2000
    batch_pairs: int = 128
    lr: float = 1e-3
    lr_min: float = 1e-6
    warmup_steps: int = 100
    schedule: Literal["cosine", "cyclic", "constant"] = "cosine"
    optimiser: Literal["adam", "lamb"] = "adam"
    weight_decay: float = 0.0
    loss: Literal["nt-xent", "nafp", "info-nce", "triplet", "semi-hard-triplet", "multi-positive"] = "nt-xent"
    temperature: float = 0.05
    margin: float = 0.4
    offset_ms: float = 50.0
    offset_power: float = 1.0
    snr_db: tuple[float, float] = (0.0, 20.0)
    clean: float = 0.0
    noise_only: float = 1.0
    reverb_only: float = 1.0
    noise_and_reverb: float = 1.0
    max_rir_s: float = 0.5
    gain_db: tuple[float, float] = (0.0, 0.0)
    transforms: Transforms = field(default_factory=Transforms)
    mixture: Mixture = field(default_factory=Mixture)
    mask_count: int = 1
    mask_fraction: float = 0.1
    segments_per_track: int = 1
    neighbours_per_track: int = 0
    neighbour_ms: float = 100.0
    neighbour_reach: int = 0
    hard_negatives_per_track: int = 0
    pairs_per_moment: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    val_every_steps: int = 250
    val_queries: int = 256
    patience: int = 0
    checkpoint_every_steps: int = 50

    def __post_init__(self) -> None:
        require(self.steps >= 0, "train.steps must be >= 0", self.steps)
        require(self.batch_pairs >= 2, "train.batch_pairs must be >= 2 (a negative is needed)", self.batch_pairs)
        require(self.lr > 0, "train.lr must be > 0", self.lr)
        require(0 <= self.lr_min <= self.lr, "train.lr_min must be between 0 and train.lr", self.lr_min)
        require(self.warmup_steps >= 0, "train.warmup_steps must be >= 0", self.warmup_steps)
        require(self.weight_decay >= 0, "train.weight_decay must be >= 0", self.weight_decay)
        require(self.temperature > 0, "train.temperature must be > 0", self.temperature)
        require(self.margin >= 0, "train.margin must be >= 0", self.margin)
        require(self.gain_db[0] <= self.gain_db[1] <= 0, "train.gain_db must be (low, high), at most 0", self.gain_db)
        require(0 <= self.offset_ms <= 500, "train.offset_ms must be between 0 and 500", self.offset_ms)
        require(0 <= self.offset_power <= 10, "train.offset_power must be between 0 and 10", self.offset_power)
        require(self.snr_db[0] <= self.snr_db[1], "train.snr_db must be (low, high)", self.snr_db)
        weights = (self.clean, self.noise_only, self.reverb_only, self.noise_and_reverb)
        require(min(weights) >= 0 < max(weights), "train degradation weights must be >= 0, not all 0", weights)
        require(0.05 <= self.max_rir_s <= 2, "train.max_rir_s must be between 0.05 and 2", self.max_rir_s)
        require(0 <= self.mask_fraction < 1, "train.mask_fraction must be in [0, 1)", self.mask_fraction)
        require(self.mask_count >= 0, "train.mask_count must be >= 0", self.mask_count)
        require(1 <= self.neighbour_ms <= 10_000, "train.neighbour_ms must be between 1 and 10000", self.neighbour_ms)
        require(self.segments_per_track >= 1, "train.segments_per_track must be >= 1", self.segments_per_track)
        fit = f"train.neighbours_per_track must be between 0 and segments_per_track - 1 = {self.segments_per_track - 1}"
        require(0 <= self.neighbours_per_track < self.segments_per_track, fit, self.neighbours_per_track)
        fewest = -(-self.neighbours_per_track // 2)
        reach = f"train.neighbour_reach must be 0, or from half of neighbours_per_track, so {fewest}, to 1000"
        require(self.neighbour_reach == 0 or fewest <= self.neighbour_reach <= 1_000, reach, self.neighbour_reach)
        left = self.segments_per_track - 1 - self.neighbours_per_track
        beside = f"train.hard_negatives_per_track must be between 0 and segments_per_track - 1 - neighbours_per_track = {left}"
        require(0 <= self.hard_negatives_per_track <= left, beside, self.hard_negatives_per_track)
        most = f"train.pairs_per_moment must be from 1 to below train.batch_pairs = {self.batch_pairs} (for a negative)"
        require(1 <= self.pairs_per_moment < self.batch_pairs, most, self.pairs_per_moment)
        require(self.val_every_steps >= 1, "train.val_every_steps must be >= 1", self.val_every_steps)
        require(self.patience >= 0, "train.patience must be >= 0 (0 never stops early)", self.patience)
        require(self.val_queries >= 2, "train.val_queries must be >= 2", self.val_queries)
        require(
            self.checkpoint_every_steps >= 1, "train.checkpoint_every_steps must be >= 1", self.checkpoint_every_steps
        )


@dataclass(frozen=True)
class EvalConfig:
    """What is tested. The defaults are `fma-segment/v1`; any change names the benchmark `custom`."""

    snr_db: tuple[float, ...] = (0.0, 5.0, 10.0, 15.0, 20.0)
    t60_s: tuple[float, ...] = (0.2, 0.4, 0.5, 0.7, 0.8)
    noise_reverb_t60_s: float = 0.5
    lengths_s: tuple[float, ...] = (0.96, 2.0, 3.0, 5.0)
    max_queries: int = 10_000
    rooms_per_t60: int = 8
    hop_ms: float = 100.0
    tolerance_ms: float = 50.0
    indexes: tuple[str, ...] = ("exact", "falconn")
    sequences: tuple[str, ...] = ("vote", "rescore", "interpolate")
    top_k: int = 20
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        require(
            len(self.lengths_s) > 0 and min(self.lengths_s) > 0, "eval.lengths_s must hold lengths > 0", self.lengths_s
        )
        require(max(self.lengths_s) <= 30, "eval.lengths_s must be at most 30 s", self.lengths_s)
        for name in ("snr_db", "t60_s", "lengths_s", "indexes", "sequences"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"eval.{name} must not name anything twice", values)
        require(self.max_queries >= 1, "eval.max_queries must be >= 1", self.max_queries)
        require(self.rooms_per_t60 >= 1, "eval.rooms_per_t60 must be >= 1", self.rooms_per_t60)
        require(
            all(0.15 <= t <= 2 for t in (*self.t60_s, self.noise_reverb_t60_s)),
            "eval.t60_s must be between 0.15 and 2",
            self.t60_s,
        )
        require(10 <= self.hop_ms <= 1000, "eval.hop_ms must be between 10 and 1000", self.hop_ms)
        require(self.tolerance_ms > 0, "eval.tolerance_ms must be > 0", self.tolerance_ms)
        require(len(self.indexes) > 0, "eval.indexes must name at least one index", self.indexes)
        known = set(self.sequences) <= set(SEQUENCES) and "rescore" in self.sequences
        require(known, f"eval.sequences must hold 'rescore' (the headline) and any of {SEQUENCES}", self.sequences)
        require(1 <= self.top_k <= 1000, "eval.top_k must be between 1 and 1000", self.top_k)


@dataclass(frozen=True)
class AlignConfig:
    """Which recorders are aligned, and how. The defaults are `aru-sim-align/v1`; other sets or a split name another.

    `sets` are data sets of pairs of recordings; `aligners` are plug-ins, or one with a preset: `gcc-phat:aru`.
    """

    sets: tuple[str, ...] = ("aru-sim",)
    split: str = "test"
    aligners: tuple[str, ...] = ("nosync", "fingerprint-median", "fingerprint-path")

    def __post_init__(self) -> None:
        require(len(self.aligners) > 0, "align.aligners must name at least one aligner", self.aligners)
        for name in ("sets", "aligners"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"align.{name} must not name anything twice", values)


@dataclass(frozen=True)
class RunConfig:
    """One whole run. `model` is the encoder plug-in's own Config, `music` the data-set plug-in's.

    `index` holds the Config of each index of `eval.indexes` by its name, `index.falconn.probes`; so do `pairs` for
    `align.sets` and `aligner` for `align.aligners`: `aligner.fingerprint-path.hop_ms`.
    """

    encoder: str
    model: Any
    music: Any
    index: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, Any] = field(default_factory=dict)
    aligner: dict[str, Any] = field(default_factory=dict)
    preset: str = "small"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    align: AlignConfig = field(default_factory=AlignConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed must be >= 0", self.seed)
