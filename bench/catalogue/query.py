"""Searches a catalogue: identifies the track of each window of a recording, or finds the nearest fingerprints.

Shape legend: Q queries, T samples, M segments of a query, D dimensions, R ranked database vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bench.catalogue.folder import Catalogue
from bench.degrade.mix import ZERO_POWER, normalise_peak
from bench.errors import BenchError, DataError
from bench.fingerprint import SHORTEST_QUERY, fingerprint_queries
from bench.search.sequence import Ranking, interpolate, rescore
from bench.store import read_array
from bench.values import RATE_HZ, Fingerprints, Floats, Progress, no_progress

WINDOW_S = 10.0  # a recording is identified in windows of this length
TOP_K = 20  # nearest fingerprints of each segment


@dataclass(frozen=True)
class Match:
    """A track that a window of a recording may be from."""

    id: str
    path: str
    label: str

    start_s: float
    """Where the window begins in the track."""

    score: float

    accepted: bool
    """Whether the score reaches the threshold."""


@dataclass(frozen=True)
class Answer:
    """The tracks found for one window of a recording."""

    from_s: float
    to_s: float

    threshold: float | None
    """The least accepted score, None if the catalogue was not calibrated or the window not searched."""

    matches: tuple[Match, ...]
    """Best first."""

    why: str = ""
    """Why there is no match; empty if there is one."""


def identify(
    catalogue: Catalogue, wave_T: Floats, *, top: int = 5, window_s: float = WINDOW_S, progress: Progress = no_progress
) -> Iterator[Answer]:
    """Yield an answer for each window of a recording (T,) at 16 kHz.

    A remainder shorter than a segment belongs to the last window. An answer names each track once, at its best start.
    Raises: DataError if the recording is shorter than the shortest query of the encoder.
    """
    size = catalogue.embedder.segment_samples
    shortest = round(SHORTEST_QUERY * size)
    if len(wave_T) < shortest:
        raise DataError(
            f"the recording is {len(wave_T) / RATE_HZ:.2f} s long; this catalogue's encoder needs "
            f"{shortest / RATE_HZ:.2f} s, give a longer one"
        )
    step = max(size, round(window_s * RATE_HZ))
    starts = [start for start in range(0, len(wave_T), step) if start == 0 or len(wave_T) - start >= size]
    for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(wave_T)], strict=True)):
        progress("identify", i, len(starts))
        yield _answer(catalogue, wave_T[start:end], start, top)
    progress("identify", len(starts), len(starts))


def _answer(catalogue: Catalogue, wave_T: Floats, start: int, top: int) -> Answer:
    span_s = (start / RATE_HZ, (start + len(wave_T)) / RATE_HZ)
    if float(np.mean(np.square(wave_T, dtype=np.float64))) < ZERO_POWER:
        return Answer(*span_s, None, (), "silent")
    database = catalogue.database
    vectors_QMD = fingerprint_queries(catalogue.embedder, iter([normalise_peak(wave_T)[None]]), database.hop_samples)
    count = vectors_QMD.shape[1]
    neighbours_MK = catalogue.index.neighbours(vectors_QMD[0], TOP_K)
    ranking = rescore(vectors_QMD, neighbours_MK[None], database, TOP_K * count)
    ranking = interpolate(_best_per_track(ranking, database, top), vectors_QMD, database)
    limit = catalogue.threshold(count)
    matches = _matches(catalogue, ranking, limit)
    return Answer(*span_s, limit, matches, "" if matches else "longer than any track of the catalogue")


def _best_per_track(ranking: Ranking, database: Fingerprints, top: int) -> Ranking:
    """Return the ranking of one query with the best place of each of the first `top` tracks only."""
    place_R = ranking.places_QR[0, ranking.places_QR[0] >= 0]
    _, first = np.unique(database.track_row_of(place_R), return_index=True)
    chosen = np.sort(first)[:top]
    return Ranking(ranking.places_QR[:, chosen], ranking.scores_QR[:, chosen])


def _matches(catalogue: Catalogue, ranking: Ranking, limit: float | None) -> tuple[Match, ...]:
    database = catalogue.database
    track_R = database.track_row_of(ranking.places_QR[0])
    matches = []
    columns = (track_R, ranking.starts(database)[0] / RATE_HZ, ranking.scores_QR[0])
    for track, start_s, score in zip(*(values.tolist() for values in columns), strict=True):
        row = catalogue.tracks.iloc[track]
        accepted = limit is not None and score >= limit
        matches.append(Match(row["id"], row["path"], row["label"], start_s, score, accepted))
    return tuple(matches)


def to_frame(answers: Sequence[Answer]) -> pd.DataFrame:
    """Return one row per match; an answer without a match is one row of rank 0."""
    rows = []
    for answer in answers:
        span = {"from_s": answer.from_s, "to_s": answer.to_s}
        for rank, match in enumerate(answer.matches, start=1):
            found = {"rank": rank, "accepted": match.accepted, "id": match.id, "start_s": match.start_s}
            rows.append(span | found | {"score": match.score, "threshold": answer.threshold, "path": match.path})
        if not answer.matches:
            rows.append(span | {"rank": 0, "accepted": False, "why": answer.why})
    return pd.DataFrame(rows)


def find_neighbours(catalogue: Catalogue, vectors_file: Path, top_k: int) -> pd.DataFrame:
    """Return the nearest fingerprints of each vector in a .npy file, one row each: query, rank, id, start, similarity.

    Raises: DataError if the file holds no (Q, D) float32 array, or vectors of another size.
    """
    try:
        queries_QD = read_array(vectors_file)
    except BenchError as error:
        raise DataError(f"{vectors_file} is not a .npy file of fingerprints ({error})") from error
    database = catalogue.database
    dim = database.vectors.shape[1]
    if queries_QD.ndim != 2 or queries_QD.shape[1] != dim or queries_QD.dtype != np.float32:
        array = f"{queries_QD.dtype} {queries_QD.shape}"
        raise DataError(f"{vectors_file} holds {array}; this catalogue needs float32 (Q, {dim})")
    found_QK = catalogue.index.neighbours(np.array(queries_QD), top_k)
    query_R, rank_R = np.nonzero(found_QK >= 0)
    vector_R = found_QK[query_R, rank_R]
    track_R = database.track_row_of(vector_R)
    start_R = (vector_R - database.first_vector[track_R]) * database.hop_samples
    similarity_R = np.einsum("rd,rd->r", database.vectors[vector_R], queries_QD[query_R])
    return pd.DataFrame(
        {
            "query": query_R,
            "rank": rank_R + 1,
            "id": catalogue.tracks["id"].to_numpy()[track_R],
            "start_s": start_R / RATE_HZ,
            "similarity": similarity_R,
        }
    )
