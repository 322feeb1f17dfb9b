"""bench reliability: the bins and their intervals, what counts as wrong, and the command on made-up recordings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from typer.testing import CliRunner

from bench.align.contract import Pair, PairEmbedder, TimeMap
from bench.align.random_pairs import draw_pair
from bench.cli import app
from bench.reliability import Trial, bin_by_confidence, find_wrong, load_recordings, try_aligner
from bench.values import RATE_HZ, Floats, Progress, no_progress

SEEDS = range(6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        wave = 0.1 * np.random.default_rng(i).standard_normal(10 * RATE_HZ)
        soundfile.write(tmp_path / f"{i}.wav", wave, RATE_HZ)
    return tmp_path


@dataclass(frozen=True)
class Knows:
    """An aligner that knows the truth of every seed, and adds an error to it."""

    recordings: list[Floats]
    error_s: float = 0.0

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        drawn = draw_pair(self.recordings, int(pair.name.rsplit(maxsplit=1)[1]))
        known = np.isfinite(drawn.time1_K)
        if not known.any():
            return TimeMap(np.array([0.0]), np.array([0.0]), np.array([0.0]))
        confidence = np.where(known, 1.0, 0.0)
        time1 = np.interp(pair.keypoints, pair.keypoints[known], drawn.time1_K[known])
        jumps = (drawn.jump,) if drawn.jump else ()
        return TimeMap.of_knots(pair.keypoints, time1 + self.error_s, confidence, jumps, drawn.polarity)


def test_who_knows_the_truth_is_never_wrong(folder: Path) -> None:
    recordings = load_recordings(folder, no_progress)
    trial = try_aligner(recordings, Knows(recordings), None, SEEDS, no_progress)
    sure = trial.keypoints[trial.keypoints["confidence"] > 0.9]
    assert list(trial.pairs["seed"]) == list(SEEDS) and len(sure) > 50 and sure["error_s"].max() < 1e-9
    assert not list(find_wrong(trial)) and (trial.pairs["found_reversed"] == trial.pairs["is_reversed"]).all()


def test_who_is_off_by_more_than_20_ms_is_wrong_in_every_related_pair(folder: Path) -> None:
    recordings = load_recordings(folder, no_progress)
    for error_s, count in ((0.019, 0), (0.021, None)):
        trial = try_aligner(recordings, Knows(recordings, error_s), None, SEEDS, no_progress)
        related = int((trial.pairs["kind"] != "unrelated").sum())
        assert len(list(find_wrong(trial))) == (related if count is None else count)


def keypoints(confidence: list[float], error_ms: list[float], seed: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"seed": seed, "confidence": confidence, "error_s": np.array(error_ms) / 1000})


def test_bins_count_what_is_within_5_and_within_20_ms() -> None:
    low, high = bin_by_confidence(
        keypoints([0.25, 0.21, 0.95, 1.0, 0.9, 0.91], [np.inf, 4, 5, 6, 20, 21], [1, 1, 1, 2, 2, 3])
    )
    assert (low.low, low.num_keypoints, low.num_pairs, low.close[0], low.not_far) == (0.2, 2, 1, 0.5, 0.5)
    assert (high.low, high.num_keypoints, high.num_pairs) == (0.9, 4, 3)
    assert high.close[0] == pytest.approx(1 / 4) and high.not_far == pytest.approx(3 / 4)
    assert high.mean_confidence == pytest.approx(0.94)


def test_the_interval_is_over_pairs() -> None:
    # 50 keypoints of one pair are right together: of two pairs, half of the draws have both halves.
    (one,) = bin_by_confidence(keypoints([0.95] * 100, [0.0] * 50 + [9.0] * 50, [1] * 50 + [2] * 50))
    assert one.close == (0.5, 0.0, 1.0)


def test_a_keypoint_that_is_unsure_is_not_wrong() -> None:
    pairs = pd.DataFrame({"seed": [1, 2], "kind": "plain"})
    (wrong,) = find_wrong(Trial(keypoints([0.49, 0.5, 0.9], [99, 21, 20], [1, 2, 2]), pairs))
    assert (wrong["seed"], wrong["wrong"]) == (2, 1)


def test_the_command_shows_the_table_and_writes_csv_and_plot(folder: Path, tmp_path: Path) -> None:
    csv, plot = tmp_path / "out.csv", tmp_path / "out.png"
    command = [
        "reliability",
        str(folder),
        "--aligner",
        "nosync",
        "--pairs",
        "2",
        "--csv",
        str(csv),
        "--plot",
        str(plot),
    ]
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert shown.exit_code == 0 and "2 pairs: 0 with a mean confidence of 0.5 or more" in shown.output
    assert set(pd.read_csv(csv).columns) == {"time0_s", "confidence", "error_s", "seed"} and plot.stat().st_size > 1_000
