"""Every setting of a run, as frozen dataclasses. A setting has one name everywhere: `train.lr`.

Later wins: defaults here, the preset in `bench/presets.toml`, the preset in the encoder's own TOML
file, the user's `--config` file, `--set path=value`. Types and unknown names are checked at this
boundary, before any work starts; ranges are checked where a value's rule is known (`__post_init__`).
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bench.errors import ConfigError
from bench.registry import format_unknown, load

SEQUENCES = ("vote", "rescore", "interpolate", "diagonal")
PRESETS = Path(__file__).with_name("presets.toml")


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


def resolve(
    encoder: str,
    plugin: ModuleType,
    preset: str,
    *,
    dataset: str | None = None,
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
) -> RunConfig:
    """Return the whole configuration of a run, every layer applied and checked.

    Raises: ConfigError naming the dotted path, the rule and the nearest right name.
    """
    own: dict[str, Any] = {}
    for layer in (*(_toml(f) for f in files), *(_override(o) for o in overrides)):
        own = _merge(own, layer)
    of_preset = _preset(preset, plugin)
    if isinstance(own.get("align"), dict) and "sets" in own["align"]:
        of_preset.pop("pairs", None)  # they are settings of the preset's own sets
    merged = _merge(of_preset, own)
    if dataset is not None:
        merged = _merge(merged, {"data": {"dataset": dataset}})
    return _build_config(encoder, plugin, preset, merged)


def _build_config(encoder: str, plugin: ModuleType, preset: str, merged: dict[str, Any]) -> RunConfig:
    sections = {f.name: f for f in dataclasses.fields(RunConfig)}
    for name in merged:
        if name not in sections or name in ("encoder", "preset"):
            raise ConfigError(format_unknown("setting", name, sorted(set(sections) - {"encoder", "preset"})))
    tests = parse_section("eval", EvalConfig, merged.pop("eval", {}))
    align = parse_section("align", AlignConfig, merged.pop("align", {}))
    data = parse_section("data", DataConfig, merged.pop("data", {}))
    music = load("dataset", data.dataset)
    require(music.KIND == "music", "data.dataset must hold music", f"{data.dataset!r}, which holds {music.KIND}")
    return RunConfig(
        encoder=encoder,
        preset=preset,
        model=parse_section("model", plugin.Config, merged.pop("model", {})),
        music=parse_section("music", music.Config, merged.pop("music", {})),
        data=data,
        train=parse_section("train", TrainConfig, merged.pop("train", {})),
        eval=tests,
        index=_build_plugin_configs("index", "eval.indexes", tests.indexes, merged.pop("index", {})),
        align=align,
        pairs=_build_plugin_configs("pairs", "align.sets", align.sets, merged.pop("pairs", {})),
        aligner=_build_plugin_configs("aligner", "align.aligners", align.aligners, merged.pop("aligner", {})),
        **{name: _value(name, sections[name], value) for name, value in merged.items()},
    )


def _build_plugin_configs(group: str, where: str, names: tuple[str, ...], values: object) -> dict[str, Any]:
    """Return the Config of each plug-in that `where` names, with its own preset where a colon adds one."""
    if not isinstance(values, dict):
        raise ConfigError(f"{group} is a group of settings, one for each name in {where}; set one of those")
    known = [format_plugin_name(name) for name in names]
    for name in values:
        if name not in (*known, *(each.partition(":")[0] for each in known)):
            raise ConfigError(format_unknown(f"{group} in {where}", name, known))
    return {
        format_plugin_name(name): _build_plugin_config(
            group,
            name,
            values.get(format_plugin_name(name), values.get(format_plugin_name(name.partition(":")[0]), {})),
        )
        for name in names
    }


def format_plugin_name(name: str) -> str:
    """Return how settings, tables and metrics call a plug-in: one given by its path by the name of its file."""
    plain, colon, preset = name.partition(":")
    short = Path(plain).stem.replace("_", "-") if plain.endswith(".py") else plain
    return f"{short}{colon}{preset}"


def _build_plugin_config(group: str, name: str, values: object) -> Any:
    plain, _, preset = name.partition(":")
    plugin = load("dataset" if group == "pairs" else group, plain)
    if group == "pairs":
        require(plugin.KIND == "pairs", "align.sets must hold pairs of recordings", f"{plain!r}, with {plugin.KIND}")
    if not preset:
        return parse_section(f"{group}.{name}", plugin.Config, values)
    presets = plugin.presets() if hasattr(plugin, "presets") else {}
    if preset not in presets:
        raise ConfigError(format_unknown(f"preset of the {group} {plain!r}", preset, list(presets)))
    _check_names(f"{group}.{plain}", plugin.Config, values)
    assert isinstance(values, dict)
    return parse_section(f"{group}.{plain}", plugin.Config, dataclasses.asdict(presets[preset]) | values)


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Return {dotted path: value} of a configuration, in the order of its fields."""
    if dataclasses.is_dataclass(config):
        config = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.")
    return flat


def presets() -> list[str]:
    """Return the names of the presets that every encoder has."""
    return list(_toml(PRESETS))


def _preset(name: str, plugin: ModuleType) -> dict[str, Any]:
    shared = _toml(PRESETS)
    beside = Path(str(plugin.__file__)).with_suffix(".toml")
    own = _toml(beside) if beside.is_file() else {}
    if name not in shared and name not in own:
        raise ConfigError(format_unknown("preset", name, sorted({*shared, *own})))
    return _merge(shared.get(name, {}), own.get(name, {}))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def format_setting(value: object) -> str:
    """Return a setting to be read: a sampler draws seventeen digits, of which three matter."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def assignment(path: str, value: object) -> str:
    """Return a setting as `--set` wants it: JSON's numbers, texts, truth values and lists are TOML's too."""
    return f"{path}={json.dumps(value)}"


def _override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set wants path=value such as train.lr=3e-4, got {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string, as in --set train.schedule=cyclic
    for part in reversed(path.split(".")):
        parsed = {part: parsed}
    assert isinstance(parsed, dict)
    return parsed


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def restore_config(
    encoder: str, plugin: ModuleType, flat: Mapping[str, Any], overrides: Iterable[str] = ()
) -> RunConfig:
    """Return the configuration whose `flatten` is given, with changes, checked anew: that of a run that was kept.

    Raises: ConfigError if this version has other settings than the one that kept it.
    """
    values: dict[str, Any] = {}
    for name, value in flat.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        values = _merge(values, value)
    for override in overrides:
        values = _merge(values, _override(override))
    preset = values.pop("preset")
    values.pop("encoder")
    return _build_config(encoder, plugin, preset, values)


def parse_section(section: str, kind: type, values: object) -> Any:
    """Return a section's dataclass from plain values. Raises: ConfigError naming the dotted path and the rule."""
    _check_names(section, kind, values)
    return _validate(section, kind, values)


def _check_names(section: str, kind: type, values: object) -> None:
    if not isinstance(values, dict):
        raise ConfigError(
            f"{section} is a group of settings; set one of them, such as {section}.{dataclasses.fields(kind)[0].name}"
        )
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise ConfigError(
                format_unknown("setting", f"{section}.{name}", [f"{section}.{known}" for known in fields])
            )
        inner = fields[name].default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            _check_names(f"{section}.{name}", inner, values[name])


def _value(name: str, item: dataclasses.Field[Any], value: object) -> Any:
    kinds: dict[str, Any] = {"seed": int, "device": Literal["auto", "cpu", "cuda"]}
    return _validate(name, kinds[name], value)


def _validate(path: str, kind: Any, value: object) -> Any:
    try:
        # As JSON, strictly: a list may be a tuple, but no text is a number and no truth value is one.
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str, allow_nan=False), strict=True)
    except ValueError as error:
        if not isinstance(error, ValidationError):
            raise ConfigError(f"a number in {path} is not finite: {_infinite(value)}") from error
        first = error.errors()[0]
        dotted = ".".join([path, *(str(part) for part in first["loc"])])
        raise ConfigError(f"{dotted}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}") from error


def _infinite(value: object) -> str:
    bad = {n: v for n, v in value.items() if str(v) in ("inf", "-inf", "nan")} if isinstance(value, dict) else {}
    return ", ".join(f"{name} = {number}" for name, number in bad.items()) or str(value)
