"""Draws snr-curves.png from `bench results --format csv` of some runs: python docs/images/snr_curves.py PNG CSV..."""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

PANELS = {"noise": ("snr_db", "SNR in dB"), "noise_reverb": ("snr_db", "SNR in dB"), "reverb": ("t60_s", "t60 in s")}
TITLES = {"noise": "noise", "noise_reverb": "noise + reverb, t60 0.5 s", "reverb": "reverb"}
CEILING = "matched-filter"
CONTROLS = ("random-projection", "shuffled-labels", CEILING)
SEARCHES = {"rescore": "", "interpolate": ", between places", "verify": ", by the wave"}


def main(picture: str, *tables: str) -> None:
    """Draw one panel a kind of condition, two lines a search: shortest and longest queries, with 95 % intervals."""
    runs = [pd.read_csv(table) for table in tables]
    rows = [run.query("metric == 'segment_top1' and index == 'exact' and sequence in @SEARCHES") for run in runs]
    own = pd.concat(run[~run["system"].isin(CONTROLS)] for run in rows)
    floor = rows[0].query("system == 'random-projection' and sequence == 'rescore'")
    ceiling = rows[0].query("system == @CEILING")
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 4.4), sharey=True, layout="constrained")
    for axis, (kind, (column, label)) in zip(axes, PANELS.items(), strict=True):
        searched = own[own["kind"] == kind].groupby(["system", "sequence"], sort=False)
        for number, ((system, sequence), lines) in enumerate(searched):
            for length_s, style in ((lines["length_s"].min(), "-"), (lines["length_s"].max(), "--")):
                line = lines[lines["length_s"] == length_s].sort_values(column)
                colour, name = f"C{number}", f"{system}, {length_s:g} s"
                axis.plot(
                    line[column],
                    100 * line["value"],
                    style,
                    c=colour,
                    marker="o",
                    markersize=3,
                    label=name + SEARCHES[sequence],
                )
                axis.fill_between(line[column], 100 * line["low"], 100 * line["high"], color=colour, alpha=0.12)
        line = floor[floor["kind"] == kind].sort_values(column)
        axis.plot(line[column], 100 * line["value"], "k:", label=f"random projection, {line['length_s'].iloc[0]:g} s")
        line = ceiling[ceiling["kind"] == kind].sort_values(column)
        axis.plot(line[column], 100 * line["value"], "D", c="0.45", markersize=4, label="matched filter, 40 queries")
        axis.set(title=TITLES[kind], xlabel=label, ylim=(0, 101))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("segment-level top-1, %")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=3)
    first = own.iloc[0]
    figure.suptitle(f"preset small, {first['benchmark']}, n = {first['n']} queries a point")
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
