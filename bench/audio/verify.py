"""Checks of a prepared data set, as a table with one row for every problem of a track."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.audio.manifest import NEAR_DUPLICATE
from bench.audio.pcm import Corpus
from bench.values import RATE_HZ, Progress, Source, no_progress

PROBLEMS = (
    "missing", "unreadable", "format", "short", "silent", "duplicate", "near-duplicate", "cut-off", "mended", "corrupt",
    "repetition",
)  # fmt: skip
PROBES, PROBE_S = 16, 0.5  # excerpts of a track that are looked for in the rest of it
MIN_REPEATED = 0.5  # share of the excerpts that occur again in a track that is called repetitive


def verify(source: Source, corpus: Corpus, progress: Progress = no_progress) -> pd.DataFrame:
    """Return (id, path, problem, detail) of every problem, in the order of the manifest.

    Problems: missing (also: gone since it was prepared), unreadable, short, silent, duplicate,
    near-duplicate (of a test track, hence not trained on), format (to be converted first), cut-off and
    mended (used, but the end of its file is missing, or its header was wrong), corrupt (its samples in
    the store no longer match their digest), repetition (the track repeats itself to the sample, as a loop does: which
    of the equal places was found cannot be told, and all count as hits). Cost: reads all samples in the store once;
    decodes nothing.
    """
    listed = {track.id: track.problem for track in source.tracks()}
    problems: list[tuple[str, str, str, str]] = []
    for row in corpus.select_unusable().itertuples():
        problem = "near-duplicate" if str(row.reason).startswith(NEAR_DUPLICATE) else str(row.status)
        problems.append((str(row.id), str(row.path), problem, str(row.reason)))
    for number, row in enumerate(corpus.tracks.itertuples()):
        if row.reason:
            problem = "cut-off" if "cut off" in str(row.reason) else "mended"
            problems.append((str(row.id), str(row.path), problem, str(row.reason)))
        problem = listed.get(str(row.id), "no longer listed")
        if problem:
            problems.append((str(row.id), str(row.path), "missing", f"{problem} since it was prepared"))
        if _sha256(corpus, number) != row.sha256:
            detail = f"samples in the store are damaged; delete {corpus.folder} and prepare again"
            problems.append((str(row.id), str(row.path), "corrupt", detail))
        share, lag_s = find_repetition(corpus.read(number, 0, corpus.num_samples(number)))
        if share >= MIN_REPEATED:
            detail = f"{share:.0%} of it occurs again to the sample, {lag_s:.2f} s later or earlier"
            problems.append((str(row.id), str(row.path), "repetition", detail))
        progress("verify", number + 1, len(corpus.tracks))
    order = {str(name): position for position, name in enumerate(corpus.manifest["id"])}
    rows = sorted(problems, key=lambda row: order[row[0]])
    return pd.DataFrame(rows, columns=["id", "path", "problem", "detail"], dtype=str)


def find_repetition(pcm_T: npt.NDArray[np.int16]) -> tuple[float, float]:
    """Return the share of a track's excerpts that occur in it again to the sample, and after how many seconds first.

    Silence does not count.
    """
    size = round(PROBE_S * RATE_HZ)
    data = pcm_T.astype("<i2").tobytes()
    starts = np.linspace(0, max(0, len(pcm_T) - size), PROBES).astype(np.int64).tolist()
    lags = []
    for start in starts:
        probe_T = pcm_T[start : start + size]
        if np.ptp(probe_T) > 0:
            lags.append(_find_again(data, probe_T.astype("<i2").tobytes(), start))
    found = [lag for lag in lags if lag is not None]
    return (len(found) / len(lags), min(found) / RATE_HZ) if found else (0.0, 0.0)


def _find_again(data: bytes, probe: bytes, start: int) -> int | None:
    """Return the least distance in samples to another occurrence of a probe that begins at sample `start`."""
    places = []
    for begin, end in ((2 * start + 2, len(data)), (0, 2 * start + len(probe) - 2)):
        found = data.find(probe, begin, end)
        while found % 2 == 1 and found >= 0:  # between two samples
            found = data.find(probe, found + 1, end)
        places += [abs(found // 2 - start)] if found >= 0 else []
    return min(places, default=None)


def _sha256(corpus: Corpus, track: int) -> str:
    return hashlib.sha256(corpus.read(track, 0, corpus.num_samples(track)).astype("<i2").tobytes()).hexdigest()
