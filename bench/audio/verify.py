"""Checks of a prepared data set, as a table with one row for every problem of a track."""

from __future__ import annotations

import hashlib

import pandas as pd

from bench.audio.manifest import NEAR_DUPLICATE
from bench.audio.pcm import Corpus
from bench.values import Progress, Source, no_progress

PROBLEMS = (
    "missing", "unreadable", "format", "short", "silent", "duplicate", "near-duplicate", "cut-off", "mended", "corrupt"
)  # fmt: skip


def verify(source: Source, corpus: Corpus, progress: Progress = no_progress) -> pd.DataFrame:
    """Return (id, path, problem, detail) of every problem, in the order of the manifest.

    Problems: missing (also: gone since it was prepared), unreadable, short, silent, duplicate,
    near-duplicate (of a test track, hence not trained on), format (to be converted first), cut-off and
    mended (used, but the end of its file is missing, or its header was wrong), corrupt (its samples in
    the store no longer match their digest). Cost: reads all samples in the store once; decodes nothing.
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
        progress("verify", number + 1, len(corpus.tracks))
    order = {str(name): position for position, name in enumerate(corpus.manifest["id"])}
    rows = sorted(problems, key=lambda row: order[row[0]])
    return pd.DataFrame(rows, columns=["id", "path", "problem", "detail"], dtype=str)


def _sha256(corpus: Corpus, track: int) -> str:
    return hashlib.sha256(corpus.read(track, 0, corpus.num_samples(track)).astype("<i2").tobytes()).hexdigest()
