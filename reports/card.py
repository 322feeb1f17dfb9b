"""Writes the model card of a registered encoder: its training and test data, its results, and its intended use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.degrade.cells import describe_distortion
from bench.results import Result, select_rows

KINDS = {
    "noise": "noise, {snr_db:g} dB",
    "reverb": "reverb, t60 {t60_s:g} s",
    "measured_reverb": "measured rooms, t60 {t60_s:g} s",
    "noise_reverb": "noise and reverb, {snr_db:g} dB",
}
SHOWN_SETTINGS = (
    "model.",
    "train.lr",
    "train.steps",
    "train.batch_pairs",
    "train.temperature",
    "train.loss",
    "train.snr_db",
)


def render(result: Result, settings: Mapping[str, Any], origin: str) -> str:
    """Return the card as Markdown; `origin` is a sentence on how the settings were chosen."""
    summary = result.summary
    dataset = settings["data.dataset"]
    rows = "\n".join(
        f"| `{name}` | {value} |" for name, value in settings.items() if str(name).startswith(SHOWN_SETTINGS)
    )
    return f"""# {summary["system"]} {summary["run"][:6]}

An encoder with {summary["parameters"]:,} parameters. It computes audio fingerprints of {summary["dim"]} dimensions \
from segments of {summary["segment_s"]:g} s of mono audio. {origin}

## Evaluation

{summary["benchmark"]}: segment-level top-1 (right track, within 50 ms) in per cent, with 95 % intervals; \
n = {summary["queries_per_cell"]} queries per condition; {summary["database_vectors"]:,} fingerprints of \
{summary["database_tracks"]} tracks; index: {summary["index"]}, sequence search: {summary["sequence"]}.

{_format_grid(result)}

Controls: {100 * summary["headline"]["control/identity"]:.1f} % for clean excerpts aligned with database segments, \
{100 * summary["headline"]["control/random_projection"]:.1f} % for a random projection (untrained) of the degraded \
queries.

## Training

Trained on the training side of `{dataset}`, with noise `{settings["data.noise"]}` and impulse responses \
`{settings["data.rir"]}`. No test track, and no duplicate of one, was used in training. The licences of the tracks are \
in the manifest of the data set.

| setting | value |
| --- | --- |
{rows}

## Intended use and limits

    bench run --checkpoint models:/NAME@champion --dataset folder --data-root YOUR_MUSIC
    vectors = mlflow.pyfunc.load_model("models:/NAME@champion").predict({{"segments": waves}})

The encoder identifies recordings, not musical works: a cover or another performance counts as another track. A match \
proves neither ownership nor identity, and the results above hold only for music, noise and rooms like those of the \
test.
"""


def _format_grid(result: Result) -> str:
    grid = select_rows(result.rows, result.summary["system"], result.summary["index"], result.summary["sequence"])
    grid = grid[grid["metric"] == "segment_top1"]
    lengths = sorted(grid["length_s"].unique())
    head = "| condition | " + " | ".join(f"{length_s:g} s" for length_s in lengths) + " |"
    lines = [head, "| --- |" + " ---: |" * len(lengths)]
    for _cell, rows in grid[grid["kind"] != "identity"].groupby("cell", sort=False):
        first = rows.iloc[0]
        condition = KINDS.get(first["kind"], "clean").format(snr_db=first["snr_db"], t60_s=first["t60_s"])
        if isinstance(distortion := first.get("distortion"), str):
            level = f", {first['snr_db']:g} dB" if first["snr_db"] == first["snr_db"] else ""  # NaN is none
            condition = describe_distortion(distortion) + level
        values = (_value(rows[rows["length_s"] == length_s]) for length_s in lengths)
        lines.append(f"| {condition} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _value(rows: Any) -> str:
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    return f"{100 * row['value']:.1f} [{100 * row['low']:.0f}-{100 * row['high']:.0f}]"
