"""A model card: what a registered encoder is, what it was trained and tested on, and what to expect of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.results import Result, select_rows

KINDS = {"noise": "noise, {snr_db:g} dB", "reverb": "reverb, t60 {t60_s:g} s", "noise_reverb": "both, {snr_db:g} dB"}
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
    """Return the card as Markdown; `origin` is a sentence on how the settings were found."""
    summary = result.summary
    dataset = settings["data.dataset"]
    rows = "\n".join(
        f"| `{name}` | {value} |" for name, value in settings.items() if str(name).startswith(SHOWN_SETTINGS)
    )
    return f"""# {summary["encoder"]} {summary["run"][:6]}

An audio fingerprint of {summary["dim"]} dimensions for segments of {summary["segment_s"]:g} s of mono audio, \
{summary["parameters"]:,} parameters. {origin}

## Tested

{summary["benchmark"]}, segment-level top-1 (right track, within 50 ms) and its 95 % interval, per cent; \
n = {summary["queries_per_cell"]} queries a cell, {summary["database_vectors"]:,} fingerprints of \
{summary["database_tracks"]} tracks, {summary["index"]} search, {summary["sequence"]}.

{_format_grid(result)}

Controls: clean queries on the grid {100 * summary["headline"]["control/identity"]:.1f} %, random projection of the \
same queries {100 * summary["headline"]["control/random_projection"]:.1f} %.

## Trained

On the training side of `{dataset}`, with noise `{settings["data.noise"]}` and impulse responses \
`{settings["data.rir"]}`. No track of the test, nor a duplicate of one, was heard in training. The licences of the \
tracks are in the manifest of the data set.

| setting | value |
| --- | --- |
{rows}

## Use it, and do not

    bench run --checkpoint models:/NAME@champion --dataset folder --data-root YOUR_MUSIC
    vectors = mlflow.pyfunc.load_model("models:/NAME@champion").predict({{"segments": waves}})

It says which recording is heard, not which work: a cover or another performance is another track. It is not a test of \
ownership or identity, and the numbers hold for music, noise and rooms like those of the test.
"""


def _format_grid(result: Result) -> str:
    own = select_rows(result.rows, result.summary["encoder"], result.summary["index"], result.summary["sequence"])
    own = own[own["metric"] == "segment_top1"]
    lengths = sorted(own["length_s"].unique())
    head = "| condition | " + " | ".join(f"{length_s:g} s" for length_s in lengths) + " |"
    lines = [head, "| --- |" + " ---: |" * len(lengths)]
    for _cell, rows in own[own["kind"].isin(["clean", *KINDS])].groupby("cell", sort=False):
        first = rows.iloc[0]
        told = KINDS.get(first["kind"], "clean").format(snr_db=first["snr_db"], t60_s=first["t60_s"])
        values = (_value(rows[rows["length_s"] == length_s]) for length_s in lengths)
        lines.append(f"| {told} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _value(rows: Any) -> str:
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    return f"{100 * row['value']:.1f} [{100 * row['low']:.0f}-{100 * row['high']:.0f}]"
