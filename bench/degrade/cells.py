"""The grid of test conditions (cells), and the versioned name of a benchmark."""

from __future__ import annotations

from dataclasses import replace

from bench.settings import EvalConfig
from bench.store import digest
from bench.values import Cell

VERSION = "v1"
DEFINING = (
    "snr_db",
    "t60_s",
    "noise_reverb_t60_s",
    "lengths_s",
    "max_queries",
    "rooms_per_t60",
    "hop_ms",
    "tolerance_ms",
)


def list_cells(config: EvalConfig) -> list[Cell]:
    """Return the cells in the order of the tables: controls, noise, reverb, measured rooms, noise with reverb."""
    return [
        Cell("identity"),
        Cell("clean"),
        *(Cell("noise", snr_db=snr) for snr in config.snr_db),
        *(Cell("reverb", t60_s=t60) for t60 in config.t60_s),
        *(Cell("measured_reverb", t60_s=t60) for t60 in measured_classes(config)),
        *(Cell("noise_reverb", snr_db=snr, t60_s=config.noise_reverb_t60_s) for snr in config.snr_db),
    ]


def measured_classes(config: EvalConfig) -> tuple[float, ...]:
    """Return the t60 of each cell in measured rooms, in s; empty if none are tested in."""
    return config.measured_t60_s if config.measured_rooms else ()


def benchmark_name(dataset: str, config: EvalConfig, side: str = "segment") -> str:
    """Return the benchmark's name, such as `fma-segment/v1`; changed settings add `+custom-` and their digest.

    A definition is never edited. Results under different names are never compared.
    """
    settings, standard = ({name: getattr(c, name) for name in DEFINING} for c in (config, build_standard_config(side)))
    if classes := measured_classes(config):  # which rooms they are is in the key of the queries, not in the name
        settings |= {"measured_t60_s": classes}
    changed = "" if settings == standard else f"+custom-{digest(settings)[:6]}"
    return f"{dataset}-{side}/{VERSION}{changed}"


def build_standard_config(side: str) -> EvalConfig:
    """Return the settings that define the benchmark of a side, `segment` or `validation`."""
    return EvalConfig() if side == "segment" else validation_config(EvalConfig())


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
    )
    return replace(short, measured_t60_s=()) if config.measured_rooms else short
