"""Draws snr-curves.png from `bench results --format csv`: python docs/images/snr_curves.py rows.csv PNG."""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

PANELS = {"noise": ("snr_db", "SNR in dB"), "noise_reverb": ("snr_db", "SNR in dB"), "reverb": ("t60_s", "t60 in s")}
TITLES = {"noise": "noise", "noise_reverb": "noise + reverb, t60 0.5 s", "reverb": "reverb"}


def main(table: str, picture: str) -> None:
    """Draw one panel a kind of condition, one line a query length, with 95 % intervals."""
    rows = pd.read_csv(table).query("metric == 'segment_top1' and index == 'exact' and sequence == 'rescore'")
    floor = rows[rows["system"] == "random-projection"]
    own = rows[~rows["system"].isin(["random-projection", "shuffled-labels"])]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, (kind, (column, label)) in zip(axes, PANELS.items(), strict=True):
        for length_s, line in own[own["kind"] == kind].groupby("length_s"):
            line = line.sort_values(column)
            axis.plot(line[column], 100 * line["value"], marker="o", markersize=3, label=f"{length_s:g} s")
            axis.fill_between(line[column], 100 * line["low"], 100 * line["high"], alpha=0.15)
        line = floor[floor["kind"] == kind].sort_values(column)
        axis.plot(line[column], 100 * line["value"], "k:", label="random projection, 0.96 s")
        axis.set(title=TITLES[kind], xlabel=label, ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("segment-level top-1, %")
    axes[-1].legend(fontsize=8, loc="lower left")
    first = own.iloc[0]
    figure.suptitle(f"{first['system']}, preset small, {first['benchmark']}, n = {first['n']} queries a point")
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
