"""The grid of test conditions (cells), and the versioned name of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from bench.settings import EvalConfig
from bench.store import digest
from bench.values import Cell, CellKind

LEVELS = ("snr_db", "t60_s", "noise_reverb_t60_s")  # of v1 alone: v2 has its own
DEFINING = (*LEVELS, "lengths_s", "max_queries", "rooms_per_t60", "hop_ms", "tolerance_ms")
LOUDSPEAKER = "loudspeaker"


def list_cells(config: EvalConfig) -> list[Cell]:
    """Return the cells in the order of the tables.

    Controls, noise, reverb, measured rooms, noise with reverb; in `v2` the distortions follow.
    """
    snr_db, t60_s, both_s = noise_levels(config), reverb_times(config), noise_reverb_time(config)
    return [
        Cell("identity"),
        Cell("clean"),
        *(Cell("noise", snr_db=snr) for snr in snr_db),
        *(Cell("reverb", t60_s=t60) for t60 in t60_s),
        *(Cell("measured_reverb", t60_s=t60) for t60 in measured_classes(config)),
        *(Cell("noise_reverb", snr_db=snr, t60_s=both_s) for snr in snr_db),
        *(Cell(kind, distortion=name) for name, kind in list_distortions(config).items() if name != LOUDSPEAKER),
        *(
            Cell("device", snr_db=snr, t60_s=both_s, distortion=LOUDSPEAKER)
            for snr in snr_db
            if LOUDSPEAKER in list_distortions(config)
        ),
    ]


def list_distortions(config: EvalConfig) -> dict[str, CellKind]:
    """Return the kind of the cell of each distortion, by the distortion's name; none in `v1`."""
    if config.version == "v1":
        return {}
    grid = config.v2
    names: dict[CellKind, list[str]] = {
        "speed": [f"speed_{speed:g}" for speed in grid.speeds],
        "tempo": [f"tempo_{tempo:g}" for tempo in grid.tempos],
        "pitch": [f"pitch_{cents:+g}" for cents in grid.pitch_cents],
        "codec": [codec.replace("-", "_") for codec in grid.codecs],
        "dynamics": [
            *(f"clip_{depth_db:g}" for depth_db in grid.clip_db),
            *(f"compress_{ratio:g}" for ratio in grid.compression_ratios),
        ],
        "device": [*grid.devices],
    }
    return {name: kind for kind, of_kind in names.items() for name in of_kind}


def describe_distortion(name: str) -> str:
    """Return a distortion's name for a reader, such as `speed +1 %` for `speed_1.01`."""
    kind, _, value = name.partition("_")
    if kind in ("speed", "tempo"):
        return f"{kind} {100 * (float(value) - 1):+.3g} %"
    patterns = {"pitch": "pitch {} cents", "mp3": "MP3 {} kbit/s", "opus": "Opus {} kbit/s", "clip": "clipped by {} dB",
                "compress": "compressed {}:1"}  # fmt: skip
    return patterns[kind].format(value) if kind in patterns else name


def noise_levels(config: EvalConfig) -> tuple[float, ...]:
    """Return the SNR of each level of noise, in dB."""
    return config.snr_db if config.version == "v1" else config.v2.snr_db


def reverb_times(config: EvalConfig) -> tuple[float, ...]:
    """Return the t60 of each cell of `reverb`, in s."""
    return config.t60_s if config.version == "v1" else config.v2.t60_s


def noise_reverb_time(config: EvalConfig) -> float:
    """Return the t60 of the rooms with noise, in s."""
    return config.noise_reverb_t60_s if config.version == "v1" else config.v2.noise_reverb_t60_s


def measured_classes(config: EvalConfig) -> tuple[float, ...]:
    """Return the t60 of each cell in measured rooms, in s; empty if none are tested in."""
    return config.measured_t60_s if config.measured_rooms else ()


def list_ignored_levels(config: EvalConfig) -> list[str]:
    """Return the names of the settings of LEVELS that were changed, although the version has levels of its own."""
    if config.version == "v1":
        return []
    return [f"eval.{name}" for name in LEVELS if getattr(config, name) != getattr(EvalConfig(), name)]


def benchmark_name(dataset: str, config: EvalConfig, side: str = "segment") -> str:
    """Return the benchmark's name, such as `fma-segment/v1`; changed settings add `+custom-` and their digest.

    A definition is never edited. Results under different names are never compared.
    """
    settings, standard = (_definition(c) for c in (config, build_standard_config(side, config.version)))
    if classes := measured_classes(config):  # which rooms they are is in the key of the queries, not in the name
        settings = {**settings, "measured_t60_s": classes}
    changed = "" if settings == standard else f"+custom-{digest(settings)[:6]}"
    return f"{dataset}-{side}/{config.version}{changed}"


def _definition(config: EvalConfig) -> Mapping[str, Any]:
    """Return the settings that define a benchmark."""
    if config.version == "v1":
        return {name: getattr(config, name) for name in DEFINING}
    return {name: getattr(config, name) for name in DEFINING if name not in LEVELS} | asdict(config.v2)


def build_standard_config(side: str, version: str = "v1") -> EvalConfig:
    """Return the settings that define a version of the benchmark of a side, `segment` or `validation`."""
    standard = EvalConfig() if version == "v1" else EvalConfig(version="v2")
    return standard if side == "segment" else validation_config(standard)


def validation_config(config: EvalConfig) -> EvalConfig:
    """Return the evaluation that a sweep optimises: every cell at the shortest length only, by exact search.

    Why not more: longer queries cost forty times as much to embed, and rank encoders as the short ones do. There is no
    cell in measured rooms: they belong to the test, and stay out of training alike.
    """
    short = replace(
        config,
        lengths_s=(min(config.lengths_s),),
        indexes=("exact",),
        sequences=("rescore",),
        cost_queries=0,
        ceiling_queries=0,
        distractors=(),
        real_distractors=False,
    )
    return replace(short, measured_t60_s=()) if config.measured_rooms else short
