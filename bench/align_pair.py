"""Aligning one pair of recordings (`bench align`): offset and drift, keypoints, and the second recording resampled.

Shape legend: T samples, C channels, K keypoints, N vectors, L lags.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.align.clock import warp_blocks
from bench.align.contract import SPACING_S, Aligner, Jump, Pair, PairEmbedder, Seconds, TimeMap
from bench.align.lags import lags_of, most_lag, robust_z_scores, segment_starts, subtract_mean
from bench.align.pair_embedder import CachedPairEmbedder
from bench.align.pairs import COLUMNS
from bench.audio.decode import Recording
from bench.config import load_plugin
from bench.device import usable_device
from bench.errors import DataError
from bench.fingerprint import build_random_projection
from bench.runs import FinishedRun, find_latest_loadable, find_run, list_runs
from bench.store import Store, create_array
from bench.values import Floats, Progress

NO_ENCODER = "the random projection"
NO_RUN = f"{NO_ENCODER}, as the store has no run"
DOUBTFUL = 0.5  # confidence below which the recordings may not be of the same scene
BLOCK_FRAMES = 1 << 18  # decoded at once
PICTURE_HOP_S = 0.1
PICTURE_WINDOW_S = 5.0
LEAST_WEIGHT = 1e-6  # added to confidences that are weights, so that they never sum to 0
DRIFT_FROM_S = 20.0  # over a shorter time, an error of 1 ms at one end is more than 50 ppm


@dataclass(frozen=True, eq=False)
class Alignment:
    """The alignment of a pair.

    Its numbers describe a straight line through the lags of all keypoints, weighted by confidence, with jumps taken
    out. Keypoints that lie in one channel only, or that channel 1 lost, do not count.
    """

    pair: Pair
    time_map: TimeMap

    offset_s: float
    """The lag at the start of channel 0; a line that is too short for a drift is extended by its own length at most."""

    drift_ppm: float
    """The slope of the line."""

    bend_s: float
    """The largest distance of a lag from the line."""

    confidence: float
    """The mean confidence."""

    @property
    def jumps(self) -> tuple[Jump, ...]:
        """Return where the lag jumps, as a recorder lost or inserted samples."""
        return self.time_map.jumps

    @property
    def has_drift(self) -> bool:
        """Return whether what the recordings share is long enough for a drift to be measured."""
        return _reach_s(_keypoints_in_both(self.pair, self.time_map)) >= DRIFT_FROM_S

    @property
    def is_reversed(self) -> bool:
        """Return whether one channel has the opposite polarity of the other."""
        return self.time_map.polarity < 0

    @property
    def is_doubtful(self) -> bool:
        """Return whether the recordings may share no sound, or none within the lags that were searched."""
        return self.confidence < DOUBTFUL

    def off_line(self) -> tuple[Seconds, Seconds]:
        """Return the keypoints in both channels (K,), and how far each lag is from a line, with jumps taken out."""
        time0_K = _keypoints_in_both(self.pair, self.time_map)
        lag_K, line_K, _slope = _fit_line(self.time_map, time0_K)
        return time0_K, lag_K - line_K

    def keypoints(self) -> pd.DataFrame:
        """Return one row per second: the times in both channels, and the confidence.

        A time that channel 1 does not have is its nearest end, at a confidence of 0.
        """
        time0_K = self.pair.keypoints
        time1_K = self.time_map.at(time0_K)
        clipped_K = np.clip(time1_K, 0.0, self.pair.durations_s[1])
        confidence_K = np.where(clipped_K == time1_K, self.time_map.confidence_at(time0_K), 0.0)
        columns = (time0_K, clipped_K, confidence_K)
        return pd.DataFrame(dict(zip((*COLUMNS[1:], "Confidence"), columns, strict=True)))


@dataclass(frozen=True, eq=False)
class SimilarityMatrix:
    """The similarity of both channels at each keypoint and lag (K, L), in deviations over the whole recording."""

    lag_s_L: np.ndarray
    score_KL: Floats


def load_pair_embedder(
    store: Store, run: str | None, model: str | None, progress: Progress
) -> tuple[CachedPairEmbedder, str]:
    """Return what embeds a pair with the encoder of a finished run, and a description of that encoder.

    `run` is the beginning of a run's key, None the latest run whose encoder is installed, or in the file `model`. A
    store without such a run gives the random projection, which needs no training.
    Raises: ConfigError if there is no such run or its weights are missing.
    """
    finished = find_latest_loadable(store, model) if run is None else find_run(store, run)
    passed_over = _format_passed_over(store, finished) if run is None and model is None else ""
    if finished is None:
        projection = build_random_projection(usable_device("auto"))
        return CachedPairEmbedder(projection, progress), f"{NO_ENCODER}{passed_over}" if passed_over else NO_RUN
    embedder = finished.embedder(model=model)
    name = f"{finished.encoder} of the run {finished.key[:6]}"
    return CachedPairEmbedder(embedder, progress), f"{name}{passed_over}"


def _format_passed_over(store: Store, finished: FinishedRun | None) -> str:
    """Return why the latest run was not taken; empty if it was, or if there is no run."""
    keys = list_runs(store)
    if not keys or (finished is not None and finished.key == keys[-1]):
        return ""
    latest = find_run(store, keys[-1])
    return (
        f" (the latest run, {latest.key[:6]}, is of {latest.encoder!r}, not installed here: give its file as --model)"
    )


def load_aligner(name: str) -> tuple[ModuleType, Any]:
    """Return the plug-in of a name, with a preset after a colon if there is one, and its settings.

    Raises: PluginError or ConfigError if there is no such aligner or preset.
    """
    return load_plugin("aligner", name)


def align_one(pair: Pair, aligner: Aligner, embedder: PairEmbedder | None, progress: Progress) -> Alignment:
    """Return a pair's alignment by an aligner."""
    time_map = aligner.align(pair, embedder, progress)
    time0_K = _keypoints_in_both(pair, time_map)
    lag_K, line_K, slope = _fit_line(time_map, time0_K)
    confidence_K = time_map.confidence_at(time0_K)
    intercept_s = float(line_K[0] - slope * time0_K[0])
    bend_s = float(np.abs(lag_K - line_K).max())
    # A line through a few seconds is not extended over minutes: the error of its slope would be many ms.
    extended_s = np.inf if _reach_s(time0_K) >= DRIFT_FROM_S else _reach_s(time0_K)
    offset_s = intercept_s + slope * float(max(pair.keypoints[0], time0_K[0] - extended_s))
    return Alignment(pair, time_map, offset_s, 1e6 * slope, bend_s, float(confidence_K.mean()))


def _fit_line(time_map: TimeMap, time0_K: Seconds) -> tuple[Seconds, Seconds, float]:
    """Return the lags (K,) without their jumps, the line (K,) through them, weighted by confidence, and its slope."""
    lag_K = time_map.at(time0_K) - time0_K - _jumped_s(time_map, time0_K)
    weight_K = time_map.confidence_at(time0_K) + LEAST_WEIGHT
    slope = float(np.polyfit(time0_K, lag_K, 1, w=np.sqrt(weight_K))[0]) if len(time0_K) > 1 else 0.0
    return lag_K, slope * time0_K + float(np.average(lag_K - slope * time0_K, weights=weight_K)), slope


def _keypoints_in_both(pair: Pair, time_map: TimeMap) -> Seconds:
    """Return the keypoints that lie in both channels, shape (K,); all of them if none does."""
    time0_K = pair.keypoints
    time1_K = time_map.at(time0_K)
    both_K = (time1_K > 0) & (time1_K < pair.durations_s[1]) & ~is_lost(time_map, time0_K)
    return time0_K[both_K] if both_K.any() else time0_K


def _reach_s(time0_K: Seconds) -> float:
    return float(time0_K[-1] - time0_K[0]) + SPACING_S


def _jumped_s(time_map: TimeMap, time0_K: Seconds) -> Seconds:
    """Return by how much the lag has jumped up to these times, shape (K,)."""
    jumped_K = np.zeros(len(time0_K))
    for jump in time_map.jumps:
        jumped_K[time0_K > jump.time0_s] += jump.size_s
    return jumped_K


def similarity_matrix(pair: Pair, embedder: PairEmbedder) -> SimilarityMatrix:
    """Return the matrix behind the path in the picture. Raises: DataError if a channel is shorter than a segment."""
    vectors0_ND, vectors1_ND = (subtract_mean(vectors_ND) for vectors_ND in embedder(pair, PICTURE_HOP_S))
    if not min(len(vectors0_ND), len(vectors1_ND)):
        raise DataError(f"{pair.name} is shorter than a segment of {embedder.segment_s:g} s; there is nothing to draw")
    most = most_lag(pair.max_lag_s, PICTURE_HOP_S)
    start_K = segment_starts(pair, len(vectors0_ND), PICTURE_HOP_S, embedder.segment_s)
    score_KL = robust_z_scores(vectors0_ND, vectors1_ND, most, PICTURE_HOP_S, start_K, PICTURE_WINDOW_S)
    return SimilarityMatrix(lags_of(most) * PICTURE_HOP_S, score_KL)


def check_writable(path: Path | None, inputs: Sequence[Path] = (), *, overwrite: bool = False) -> None:
    """Check that a file can be written, before any work.

    Raises: DataError if it exists and must not be overwritten, if it is one of the inputs, which are never overwritten,
    or if its folder does not exist.
    """
    if path is not None and path.exists():
        if any(each.exists() and path.samefile(each) for each in inputs):
            raise DataError(f"{path} is one of the recordings, which are never overwritten; name another file")
        if not overwrite or not path.is_file():
            remedy = ", or give --overwrite" if path.is_file() else ""
            raise DataError(f"{path} exists already; name another file{remedy}")
    if path is not None and not path.parent.is_dir():
        raise DataError(f"there is no folder {path.parent} to write {path.name} into; make it first")


def write_aligned(
    alignment: Alignment, path: Path, channels: Sequence[int] | None, to: Path, progress: Progress
) -> None:
    """Write a recording (all or some of its channels) on the clock of channel 0, as long as channel 0.

    The recording keeps its sample rate. Works in blocks, so that memory does not grow with the length; meanwhile a
    copy of 4 bytes per sample lies beside `to`.
    Raises: DataError if the suffix of `to` names no format that can be written.
    """
    import soundfile

    if to.suffix.lower().lstrip(".").upper() not in soundfile.available_formats():
        raise DataError(f"{to} names no format of audio that can be written; use .wav or .flac")
    partial = to.with_name(f".{to.stem}.{os.getpid()}{to.suffix}")
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(TemporaryDirectory(dir=to.parent)))
        source = opened.enter_context(Recording(path))
        chosen = list(range(source.num_channels)) if channels is None else list(channels)
        waves = _decode_channels(source, chosen, scratch)
        rate_hz, num_samples = source.rate_hz, round(alignment.pair.durations_s[0] * source.rate_hz)
        # A lossy encoding is not written again: libsndfile names mp3 as one for .wav, and then refuses it.
        keeps = source.subtype.startswith(("PCM", "FLOAT", "DOUBLE"))
        keeps = keeps and soundfile.check_format(to.suffix[1:].upper(), source.subtype)
        subtype = source.subtype if keeps else None
        opened.callback(partial.unlink, missing_ok=True)
        with soundfile.SoundFile(partial, "w", rate_hz, len(chosen), subtype) as file:
            blocks = [warp_blocks(wave_T, alignment.time_map.at, num_samples, rate_hz) for wave_T in waves]
            done = 0
            for block_CT in zip(*blocks, strict=True):
                progress("writing", done, num_samples)
                block_TC = np.clip(np.stack(block_CT, axis=1), -1, 1)
                block_TC[is_lost(alignment.time_map, (done + np.arange(len(block_TC))) / rate_hz)] = 0
                file.write(block_TC)
                done += len(block_TC)
        progress("writing", num_samples, num_samples)
        os.replace(partial, to)


def is_lost(time_map: TimeMap, time0: Seconds) -> npt.NDArray[np.bool_]:
    """Return which times of channel 0 have no partner, as channel 1 lost it."""
    is_lost = np.zeros(len(time0), dtype=bool)
    for jump in time_map.jumps:
        is_lost |= (time0 > jump.time0_s) & (time0 < jump.time0_s - jump.size_s)
    return is_lost


def _decode_channels(source: Recording, channels: Sequence[int], scratch: Path) -> list[Floats]:
    """Return the channels of a file, memory-mapped."""
    waves = [create_array(scratch / f"{i}.npy", (source.most_frames,)) for i in range(len(channels))]
    start = 0
    for block_TC in source.blocks(BLOCK_FRAMES):
        for wave_T, channel in zip(waves, channels, strict=True):
            wave_T[start : start + len(block_TC)] = block_TC[:, channel]
        start += len(block_TC)
    return [wave_T[:start] for wave_T in waves]
