"""Shows how far an aligner's confidence can be believed: a table by confidence, and a plot of it."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from bench.reliability import CLOSE_S, FAR_S, SURE, Trial, bin_by_confidence, find_wrong

DPI = 150


def render(trial: Trial) -> RenderableType:
    """Return the table by confidence, and sentences about pairs, jumps and polarity."""
    table = Table(box=SIMPLE, padding=(0, 2, 0, 0))
    for name in ("confidence", "keypoints", "pairs", f"within {1000 * CLOSE_S:g} ms", "95 %",
                 f"within {1000 * FAR_S:g} ms"):  # fmt: skip
        table.add_column(name, justify="right")
    for each in bin_by_confidence(trial.keypoints):
        share, low, high = each.close
        table.add_row(
            f"{each.low:.1f} to {each.high:.1f}", f"{each.num_keypoints:,}", f"{each.num_pairs:,}", f"{share:.1%}",
            f"{100 * low:.1f}-{100 * high:.1f}", f"{each.not_far:.1%}",
        )  # fmt: skip
    return Group(table, "\n".join(_sentences(trial)))


def _sentences(trial: Trial) -> list[str]:
    pairs, wrong = trial.pairs, list(find_wrong(trial))
    is_sure = pairs["confidence"] >= SURE
    is_related, has_jump = pairs["kind"] != "unrelated", pairs["jump_s"] != 0
    is_reversed, found_reversed = pairs["is_reversed"][is_sure], pairs["found_reversed"][is_sure]
    sentences = [
        f"{len(pairs)} pairs: {is_sure.sum()} with a mean confidence of {SURE:g} or more; of {(~is_related).sum()} "
        f"unrelated ones {(is_sure & ~is_related).sum()}.",
        f"Pairs with a keypoint of {SURE:g} or more that is off by over {1000 * FAR_S:g} ms: {len(wrong)}"
        + "".join(
            f"\n  seed {pair['seed']}: {pair['kind']}, {pair['length_s']:g} s, {pair['snr_db']:g} dB, "
            f"{pair['wrong']} keypoints" for pair in wrong
        )
        + ("" if wrong else "."),
        f"Jumps: {pairs['found_jump'][has_jump].sum()} of {has_jump.sum()} found with their size; "
        f"{(pairs['jumps'][~has_jump] > 0).sum()} of {(~has_jump).sum()} other pairs were given one.",
        f"Polarity: {(is_reversed & found_reversed).sum()} of {is_reversed.sum()} reversed pairs were told as such; "
        f"{(found_reversed & ~is_reversed).sum()} of {(~is_reversed).sum()} others were.",
    ]  # fmt: skip
    return sentences


def draw(trial: Trial, title: str, path: Path) -> None:
    """Write the reliability plot: the share of keypoints within 5 ms by confidence, over how many there are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bins = bin_by_confidence(trial.keypoints)
    figure, (above, below) = plt.subplots(2, 1, figsize=(6, 6), sharex=True, layout="constrained", height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--", label="as told")
    confidence = [each.mean_confidence for each in bins]
    share = [each.close[0] for each in bins]
    reach = [[each.close[0] - each.close[1] for each in bins], [each.close[2] - each.close[0] for each in bins]]
    above.errorbar(confidence, share, yerr=reach, marker="o", capsize=3, label=f"within {1000 * CLOSE_S:g} ms")
    above.set_ylabel("share of keypoints that are right")
    above.set_title(title, fontsize=10)
    above.legend(loc="upper left")
    above.grid(alpha=0.3)
    below.bar([(each.low + each.high) / 2 for each in bins], [each.num_keypoints for each in bins], width=0.09)
    below.set_yscale("log")
    below.set_ylabel("keypoints")
    below.set_xlabel("confidence")
    below.set_xlim(-0.02, 1.02)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
