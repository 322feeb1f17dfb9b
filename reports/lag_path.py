"""Shows the lag between two recordings: its numbers in the terminal, and a plot of it over their similarity matrix.

Shape legend: K keypoints, L lags.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from bench.align_pair import DRIFT_FROM_S, Alignment, SimilarityMatrix, is_lost

DPI = 150
ROWS = 12  # number of keypoints shown in the terminal
PPM_TO_MS_PER_HOUR = 3.6
DARKEST_SCORE = 10  # similarity, in standard deviations, drawn black


def render(alignment: Alignment) -> RenderableType:
    """Return the numbers of the clocks, followed by some of the keypoints."""
    pair = alignment.pair
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=pair.name, title_justify="left")
    seconds = " and ".join(f"{duration_s:,.1f}" for duration_s in pair.durations_s)
    later = "second" if alignment.offset_s >= 0 else "first"
    facts.add_row("length", f"{seconds} s")
    facts.add_row("offset", f"{alignment.offset_s:+.4f} s at the start: a sound is later in the {later} channel")
    drift_ms = PPM_TO_MS_PER_HOUR * abs(alignment.drift_ppm)
    drift = f"{alignment.drift_ppm:+.1f} ppm, {drift_ms:,.0f} ms in an hour"
    facts.add_row("drift", drift if alignment.has_drift else f"not measurable in less than {DRIFT_FROM_S:g} s")
    facts.add_row("bend", f"{1000 * alignment.bend_s:.1f} ms at most from a straight line")
    for jump in alignment.jumps:
        what = "lost" if jump.size_s < 0 else "has inserted"
        where = f"{jump.size_s:+.4f} s near {jump.time0_s:.0f} s"
        facts.add_row("jump", f"{where}: the second channel {what} samples there")
    if alignment.is_reversed:
        facts.add_row("polarity", "reversed between the channels")
    facts.add_row("confidence", f"{alignment.confidence:.2f}, from 0 (a guess) to 1")
    return Group(facts, _keypoints(alignment))


def _keypoints(alignment: Alignment) -> Table:
    table = Table(box=SIMPLE, padding=(0, 2, 0, 0))
    for name in ("first, s", "second, s", "lag, ms", "confidence"):
        table.add_column(name, justify="right")
    rows = alignment.keypoints()
    is_beyond = rows["Time Channel 1"].isin((0.0, alignment.pair.durations_s[1]))  # the second recording lacks them
    nothing_common = bool(is_beyond.all())
    # Most of a long recording has no partner in a short one: the moments that have one are shown.
    shown = rows if nothing_common else rows[~is_beyond]
    for row in np.unique(np.linspace(0, len(shown) - 1, ROWS).round().astype(int)):
        time0, time1, confidence = shown.iloc[row]
        time_and_lag = ("-", "-") if nothing_common else (f"{time1:.4f}", f"{1000 * (time1 - time0):+.1f}")
        table.add_row(f"{time0:.1f}", *time_and_lag, f"{confidence:.2f}")
    return table


def draw(alignment: Alignment, similarity: SimilarityMatrix, path: Path) -> None:
    """Write a plot: above, the lag over the similarity of both channels; below, the lag minus its straight line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    time0_K = alignment.pair.keypoints
    lag_K = alignment.time_map.at(time0_K) - time0_K
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained", height_ratios=(2, 1))
    # Upper panel: the lag over the similarity matrix.
    lag_s_L = similarity.lag_s_L
    step_s, first_s, last_s = lag_s_L[1] - lag_s_L[0], lag_s_L[0], lag_s_L[-1]
    extent = (0.0, float(len(similarity.score_KL)), first_s - step_s / 2, last_s + step_s / 2)
    image = above.imshow(
        similarity.score_KL.T, origin="lower", aspect="auto", extent=extent, cmap="Greys", vmin=0, vmax=DARKEST_SCORE,
        interpolation="nearest",
    )  # fmt: skip
    told_K = np.where(is_lost(alignment.time_map, time0_K), np.nan, lag_K)  # no line where there is no partner
    above.plot(time0_K, told_K, color="tab:red", linewidth=1, label="estimated lag")
    above.set_ylabel("lag of the second channel, s")
    above.set_title(
        f"{alignment.pair.name}: {alignment.offset_s:+.3f} s, {alignment.drift_ppm:+.0f} ppm, "
        f"confidence {alignment.confidence:.2f}", fontsize=10,
    )  # fmt: skip
    above.legend(loc="lower right" if lag_K.mean() > 0 else "upper right", fontsize=8)
    figure.colorbar(image, ax=above, label="similarity, standard deviations")
    # Lower panel: what a constant clock drift and jumps do not explain.
    both_K, off_line_K = alignment.off_line()
    confidence_K = alignment.time_map.confidence_at(both_K)
    below.axhline(0, color="grey", linewidth=0.5)
    points = below.scatter(both_K, 1000 * off_line_K, c=confidence_K, s=9, cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(points, ax=below, label="confidence")
    below.set_ylabel("lag minus line, ms")
    below.set_xlabel("time in the first channel, s")
    below.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
