"""How far an aligner's confidence can be believed (`bench reliability`): it aligns random pairs whose truth is known.

Shape legend: T samples, K keypoints, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bench.align.contract import Aligner, PairEmbedder, TimeMap
from bench.align.random_pairs import RandomPair, draw_pair
from bench.audio.decode import decode
from bench.audio.files import find_audio
from bench.score.statistics import bootstrap_ratio
from bench.values import Floats, Progress, no_progress

EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the bins of confidence
CLOSE_S, FAR_S = 0.005, 0.02
SURE = 0.5
SAME_JUMP_S = 0.002
NO_PARTNER_S = np.inf  # error of a keypoint that channel 1 does not have


@dataclass(frozen=True, eq=False)
class Trial:
    """What an aligner answered for random pairs.

    `keypoints`: a row for each second that the answer or the truth places in channel 1: `seed`, `time0_s`,
    `confidence`, `error_s` (inf where channel 1 does not have that moment). `pairs`: a row for each pair: `seed`,
    `kind`, `length_s`, `snr_db`, `confidence` (the mean), `jump_s` (0 for none), `jumps` (how many were answered),
    `found_jump`, `is_reversed`, `found_reversed`.
    """

    keypoints: pd.DataFrame
    pairs: pd.DataFrame


@dataclass(frozen=True)
class Bin:
    """Keypoints of similar confidence.

    Intervals are over pairs, as the keypoints of one pair are right or wrong together.
    """

    low: float
    high: float
    num_keypoints: int
    num_pairs: int
    mean_confidence: float
    close: tuple[float, float, float]
    """The share within CLOSE_S, and its interval."""

    not_far: float
    """The share within FAR_S."""


def load_recordings(folder: Path, progress: Progress) -> list[Floats]:
    """Return the waves (T,) of all usable audio below a folder. Raises: DataError without any, or if one is damaged."""
    paths = [folder / name for name, problem in find_audio(folder).items() if not problem]
    recordings = []
    for number, path in enumerate(paths):
        progress("reading recordings", number, len(paths))
        recordings.append(decode(path))
    return recordings


def try_aligner(
    recordings: Sequence[Floats],
    aligner: Aligner,
    embedder: PairEmbedder | None,
    seeds: Iterable[int],
    progress: Progress,
) -> Trial:
    """Return what an aligner answers for the random pairs of these seeds."""
    keypoints, pairs = [], []
    seeds = list(seeds)
    for number, seed in enumerate(seeds):
        progress("aligning random pairs", number, len(seeds))
        drawn = draw_pair(recordings, seed)
        found = aligner.align(drawn.pair, embedder, no_progress)
        rows = _keypoint_rows(drawn, found)
        keypoints.append(rows.assign(seed=seed))
        pairs.append({"seed": seed} | _pair_row(drawn, found, rows))
    return Trial(pd.concat(keypoints, ignore_index=True), pd.DataFrame(pairs))


def _keypoint_rows(drawn: RandomPair, found: TimeMap) -> pd.DataFrame:
    time0_K, duration_s = drawn.pair.keypoints, drawn.pair.durations_s[1]
    answer_K = found.at(time0_K)
    is_told_K, exists_K = ((time_K > 0) & (time_K < duration_s) for time_K in (answer_K, drawn.time1_K))
    error_K = np.where(np.isnan(drawn.time1_K), NO_PARTNER_S, np.abs(answer_K - drawn.time1_K))
    rows = pd.DataFrame({"time0_s": time0_K, "confidence": found.confidence_at(time0_K), "error_s": error_K})
    return rows[is_told_K | exists_K]


def _pair_row(drawn: RandomPair, found: TimeMap, rows: pd.DataFrame) -> dict[str, object]:
    size_s = drawn.jump.size_s if drawn.jump else 0.0
    return {
        "kind": drawn.kind, "length_s": drawn.pair.durations_s[0], "snr_db": drawn.snr_db,
        "confidence": float(rows["confidence"].mean()) if len(rows) else 0.0,
        "jump_s": size_s, "jumps": len(found.jumps),
        "found_jump": any(abs(jump.size_s - size_s) < SAME_JUMP_S for jump in found.jumps),
        "is_reversed": drawn.polarity < 0, "found_reversed": found.polarity < 0,
    }  # fmt: skip


def bin_by_confidence(keypoints: pd.DataFrame) -> list[Bin]:
    """Return the bins that hold keypoints, from low to high confidence."""
    number = np.digitize(keypoints["confidence"], EDGES[1:-1])
    return [_bin(EDGES[i], EDGES[i + 1], keypoints[number == i]) for i in range(len(EDGES) - 1) if (number == i).any()]


def _bin(low: float, high: float, rows: pd.DataFrame) -> Bin:
    is_close = rows["error_s"] <= CLOSE_S
    by_pair = is_close.groupby(rows["seed"]).agg(["sum", "size"]).to_numpy(np.float64)
    return Bin(
        low, high, len(rows), len(by_pair), float(rows["confidence"].mean()),
        (float(is_close.mean()), *bootstrap_ratio(by_pair)), float((rows["error_s"] <= FAR_S).mean()),
    )  # fmt: skip


def find_wrong(trial: Trial) -> Iterator[pd.Series]:
    """Yield each pair with keypoints of SURE confidence or more that are off by over FAR_S; `wrong` is their number."""
    keypoints = trial.keypoints
    wrong = keypoints[(keypoints["confidence"] >= SURE) & (keypoints["error_s"] > FAR_S)]
    counts = wrong.groupby("seed").size()
    for _, pair in trial.pairs[trial.pairs["seed"].isin(counts.index)].iterrows():
        yield pd.concat([pair, pd.Series({"wrong": counts[pair["seed"]]})])
