"""Draws conditions.png from `bench results --format csv` of a run of `v2`: python docs/images/conditions.py PNG CSV."""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from bench.degrade.cells import describe_distortion

SEARCHES = {
    "rescore": "fingerprints, grid position",
    "interpolate": "fingerprints, between places",
    "verify": "the wave decides",
}
CEILING = "matched-filter"


def main(picture: str, table: str) -> None:
    """Draw one line a condition, one dot a search, at the shortest length, with 95 % intervals."""
    rows = pd.read_csv(table).query("metric == 'segment_top1' and index == 'exact'")
    rows = rows[rows["length_s"] == rows["length_s"].min()]
    system = next(name for name in rows["system"] if name not in (CEILING, "random-projection", "shuffled-labels"))
    rows = rows.assign(condition=[_describe(row) for row in rows.to_dict("records")])
    own = rows[rows["system"] == system]
    order = own["condition"].drop_duplicates().tolist()
    figure, axis = plt.subplots(figsize=(9, 0.28 * len(order) + 1.4), layout="constrained")
    for number, (sequence, label) in enumerate(SEARCHES.items()):
        _draw(axis, own[own["sequence"] == sequence], order, 0.16 * (1 - number), f"C{number}", "o", label)
    ceiling = rows[rows["system"] == CEILING]
    _draw(axis, ceiling, order, -0.32, "0.45", "D", f"matched filter, {ceiling['n'].iloc[0]} queries")
    axis.set(xlim=(0, 101), xlabel="segment-level top-1, %", yticks=range(len(order)), yticklabels=order)
    axis.set_ylim(len(order) - 0.5, -0.5)
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    first = own.iloc[0]
    axis.set_title(f"{system}, {first['benchmark']}, {first['length_s']:g} s, n = {first['n']}", fontsize=10)
    figure.savefig(picture, dpi=110)


def _draw(
    axis: plt.Axes, rows: pd.DataFrame, order: list[str], shift: float, colour: str, marker: str, label: str
) -> None:
    y = [order.index(condition) - shift for condition in rows["condition"]]
    axis.hlines(y, 100 * rows["low"], 100 * rows["high"], color=colour, alpha=0.5, linewidth=1.5)
    axis.plot(100 * rows["value"], y, marker, color=colour, markersize=4, label=label)


def _describe(row: dict[str, object]) -> str:
    """Return a condition's name, as the printed tables have it."""
    kind, parts = str(row["kind"]), []
    if isinstance(row["distortion"], str):
        parts.append(describe_distortion(row["distortion"]))
    else:
        parts.append({"identity": "on the grid", "noise_reverb": "noise + reverb"}.get(kind, kind.replace("_", " ")))
    parts += [f"{row['snr_db']:g} dB"] if pd.notna(row["snr_db"]) else []
    parts += [f"t60 {row['t60_s']:g} s"] if pd.notna(row["t60_s"]) else []
    return ", ".join(parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
