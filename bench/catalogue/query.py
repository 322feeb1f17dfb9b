"""Searches a catalogue: identifies the tracks in a recording, or finds the nearest fingerprints.

Shape legend: T samples, M segments of a recording, W segments of a block, Q queries, D dimensions, R ranked vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.audio.silence import is_silent
from bench.catalogue.folder import Catalogue
from bench.catalogue.lines import Line, Recording, find_stretches, offset_samples, rank_tracks, window_segments
from bench.catalogue.wave import HeardSigns, refine_offset
from bench.degrade.mix import normalise_peak
from bench.errors import BenchError, DataError
from bench.fingerprint import SHORTEST_QUERY, cut_segments, fingerprint_queries, num_segments
from bench.search.sign_bits import SignBits, make_sign_bits
from bench.store import read_array
from bench.values import RATE_HZ, Floats, Ints, Progress, no_progress

WINDOW_S = 10.0  # what is not identified is answered in windows of this length
TOP_K = 20  # nearest fingerprints of each segment
BLOCK_SAMPLES = 60 * RATE_HZ


@dataclass(frozen=True)
class Match:
    """A track that a part of a recording may be from."""

    id: str
    path: str
    label: str

    start_s: float
    """Where in the track the part begins."""

    score: float

    accepted: bool
    """Whether the score reaches the threshold, or the wave confirms the track."""

    verified: bool = False
    """Whether the wave itself confirms the track; `start_s` is then right to a sample, else to some ten ms."""

    wave_score: float | None = None
    """What the wave scored, if that alone is why the answer is accepted: `score` may be below the threshold then."""


@dataclass(frozen=True)
class Answer:
    """The tracks found for one part of a recording."""

    from_s: float
    to_s: float

    threshold: float | None
    """The least accepted score, None if the catalogue was not calibrated or the part not searched."""

    matches: tuple[Match, ...]
    """Best first."""

    why: str = ""
    """Why there is no match; empty if there is one."""

    false_accept: float | None = None
    """How often an answer about music that is not in the catalogue is accepted, as promised; None as `threshold`."""

    false_reject: float | None = None
    """How often an excerpt of this length, clean or noisy, is not accepted or given another track; None likewise."""

    excerpts: int | None = None
    """The number of excerpts that was measured on; None likewise."""


def identify(
    catalogue: Catalogue, wave_T: Floats, *, top: int = 5, window_s: float = WINDOW_S, progress: Progress = no_progress
) -> Iterator[Answer]:
    """Yield an answer for each part of a recording (T,) at 16 kHz, in order of time; as `listen` and `answer_parts`."""

    def cut() -> Iterator[Floats]:
        for start in range(0, len(wave_T), BLOCK_SAMPLES):
            progress("identify", start, len(wave_T))
            yield wave_T[start : start + BLOCK_SAMPLES]

    yield from answer_parts(catalogue, listen(catalogue, cut()), top=top, window_s=window_s)


def answer_parts(
    catalogue: Catalogue, recording: Recording, *, top: int = 5, window_s: float = WINDOW_S
) -> Iterator[Answer]:
    """Yield an answer for each part of a recording, in order of time.

    A part in which a track is accepted is as long as the track is heard. What lies between is answered in windows of
    `window_s`, with the tracks that come nearest. An answer names each track once, at its best start.
    """
    heard = find_stretches(catalogue, recording)
    known = sorted((_name_stretch(catalogue, recording, line, top) for line in heard), key=lambda each: each.from_s)
    done_s = 0.0
    for answer in known:
        yield from _unknown_answers(catalogue, recording, done_s, answer.from_s, window_s, top)
        yield answer
        done_s = max(done_s, answer.to_s)
    yield from _unknown_answers(catalogue, recording, done_s, recording.num_samples / RATE_HZ, window_s, top)


def listen(catalogue: Catalogue, blocks: Iterable[Floats], name: str = "the recording") -> Recording:
    """Return the fingerprints of a recording, given in blocks (T,) at 16 kHz, and their neighbours.

    The samples are not kept: an hour takes about 24 MB.
    Raises: DataError, with the recording's `name`, if it is shorter than the shortest query of the encoder.
    """
    size, hop = catalogue.embedder.segment_samples, catalogue.database.hop_samples
    step = window_segments(catalogue) * hop
    vectors: list[Floats] = []
    neighbours: list[Ints] = []
    silent: list[list[bool]] = []
    signs: list[npt.NDArray[np.uint8]] = []
    counts: list[int] = []
    num_samples = 0
    for window_T in _cut_windows(blocks, step - hop + size, step):
        num_samples = len(vectors) * step + len(window_T)
        if catalogue.bits is not None:
            packed, num_signs = make_sign_bits(window_T)
            signs.append(packed)
            counts.append(num_signs)
        count = num_segments(len(window_T), size, hop)
        if not vectors:
            _check_length(len(window_T), size, name)
            count = max(1, count)
        if count:
            used_T = window_T[: (count - 1) * hop + size]
            vectors_WD = fingerprint_queries(catalogue.embedder, iter([normalise_peak(used_T)[None]]), hop)[0]
            vectors.append(vectors_WD)
            neighbours.append(catalogue.index.neighbours(vectors_WD, TOP_K))
            segment_WT = cut_segments(used_T, size, hop) if len(used_T) >= size else used_T[None]
            silent.append([is_silent(each_T) for each_T in segment_WT])
    heard = None
    if catalogue.bits is not None:
        heard = HeardSigns(SignBits(np.concatenate(signs), np.array(counts), name), step)
    return Recording(np.concatenate(vectors), np.concatenate(neighbours), np.concatenate(silent), num_samples, heard)


def _check_length(num_samples: int, segment_samples: int, name: str) -> None:
    shortest = round(SHORTEST_QUERY * segment_samples)
    if num_samples < shortest:
        raise DataError(
            f"{name} is {num_samples / RATE_HZ:.2f} s long; this catalogue's encoder needs "
            f"{shortest / RATE_HZ:.2f} s, give a longer one"
        )


def _cut_windows(blocks: Iterable[Floats], length: int, step: int) -> Iterator[Floats]:
    """Yield all windows of a length, one every `step` samples, and what is left behind the last step."""
    waiting_T = np.zeros(0, dtype=np.float32)
    for block_T in blocks:
        waiting_T = np.concatenate([waiting_T, block_T])
        while len(waiting_T) >= length:
            yield waiting_T[:length]
            waiting_T = waiting_T[step:]
    yield waiting_T


def _name_stretch(catalogue: Catalogue, recording: Recording, line: Line, top: int) -> Answer:
    """Return the answer for a stretch in which a track is accepted, with the nearest of the other tracks."""
    from_s, to_s = _span(catalogue, recording, line)
    best = _match(catalogue, recording, line, from_s, accepted=True)
    others = []
    if top > 1:
        end = min(line.end, line.begin + window_segments(catalogue))
        ranked = rank_tracks(catalogue, recording, line.begin, end, top + 1)
        others = [_match(catalogue, recording, each, from_s) for each in ranked if each.row != line.row]
    return Answer(from_s, to_s, line.threshold, (best, *others[: top - 1]), "", *_rates(catalogue, line))


def _span(catalogue: Catalogue, recording: Recording, line: Line) -> tuple[float, float]:
    """Return from when to when a stretch lasts.

    Where the track or the recording begins or ends in it, this is exact. Elsewhere the first and the last segment
    that match do so by half.
    """
    database, size = catalogue.database, catalogue.embedder.segment_samples
    hop, last = database.hop_samples, len(recording.vectors_MD)
    offset = offset_samples(database, recording, line)
    track_end = round(float(catalogue.tracks["seconds"].iloc[line.row]) * RATE_HZ) - offset
    begins = line.place + line.begin <= database.first_vector[line.row]
    ends = line.place + line.end >= database.first_vector[line.row + 1]
    start = -offset if begins else 0 if line.begin == 0 else line.begin * hop + size // 2
    stop = track_end if ends else recording.num_samples if line.end == last else (line.end - 1) * hop + size // 2
    start, stop = max(0, start), min(recording.num_samples, stop)
    return start / RATE_HZ, max(stop, start + hop) / RATE_HZ


def _match(catalogue: Catalogue, recording: Recording, line: Line, from_s: float, accepted: bool = False) -> Match:
    row = catalogue.tracks.iloc[line.row]
    told = offset_samples(catalogue.database, recording, line)
    refined = _refine(catalogue, recording, line, told) if accepted else None
    start_s = max(0.0, from_s + (told if refined is None else refined) / RATE_HZ)
    confirmed = refined is not None
    return Match(row["id"], row["path"], row["label"], start_s, line.score, accepted, confirmed, line.wave_score)


def _refine(catalogue: Catalogue, recording: Recording, line: Line, told: int) -> int | None:
    if catalogue.bits is None or recording.signs is None:
        return None
    size, hop = catalogue.embedder.segment_samples, catalogue.database.hop_samples
    span = line.begin * hop, min(recording.num_samples, (line.end - 1) * hop + size)
    return refine_offset(recording.signs, catalogue.bits, line.row, told, *span)


def _unknown_answers(
    catalogue: Catalogue, recording: Recording, from_s: float, to_s: float, window_s: float, top: int
) -> Iterator[Answer]:
    """Yield answers without an accepted track for a part of a recording, window by window.

    Windows begin at multiples of their length in the recording. A remainder shorter than a segment belongs to the
    window before it; between two tracks it is not worth an answer.
    """
    segment_s = catalogue.embedder.segment_samples / RATE_HZ
    if to_s - from_s < SHORTEST_QUERY * segment_s:
        return
    step_s = max(window_s, segment_s)
    inner_s = np.arange(int(from_s / step_s) + 1, np.ceil(to_s / step_s)) * step_s
    edges_s = [from_s, *(edge for edge in inner_s.tolist() if min(edge - from_s, to_s - edge) >= segment_s), to_s]
    for begin_s, end_s in pairwise(edges_s):
        yield _unknown(catalogue, recording, begin_s, end_s, top)


def _unknown(catalogue: Catalogue, recording: Recording, from_s: float, to_s: float, top: int) -> Answer:
    size, hop = catalogue.embedder.segment_samples, catalogue.database.hop_samples
    last = len(recording.vectors_MD)
    begin = min(last - 1, int(np.ceil(round(from_s * RATE_HZ) / hop)))
    end = min(last, max(begin + 1, (round(to_s * RATE_HZ) - size) // hop + 1))
    silent_W = recording.silent_M[begin:end]
    # Segments that lie half in silence are of what was before or after it.
    if silent_W.all() or (silent_W.any() and int((~silent_W).sum()) <= size // hop):
        return Answer(from_s, to_s, None, (), "silent")
    ranked = rank_tracks(catalogue, recording, begin, end, top)
    matches = tuple(_match(catalogue, recording, line, from_s) for line in ranked)
    if not ranked:
        return Answer(from_s, to_s, None, (), "no track of the catalogue is near")
    return Answer(from_s, to_s, ranked[0].threshold, matches, "", *_rates(catalogue, ranked[0]))


def _rates(catalogue: Catalogue, line: Line) -> tuple[float, float, int] | tuple[None, None, None]:
    limit = catalogue.find_limit(line.end - line.begin)
    return (limit.false_accept, limit.false_reject, limit.impostors) if limit else (None, None, None)


def to_frame(answers: Sequence[Answer]) -> pd.DataFrame:
    """Return one row per match; an answer without a match is one row of rank 0."""
    rows = []
    for answer in answers:
        span = {"from_s": answer.from_s, "to_s": answer.to_s}
        for rank, match in enumerate(answer.matches, start=1):
            found = {"rank": rank, "accepted": match.accepted, "id": match.id, "start_s": match.start_s}
            judged = {"score": match.score, "threshold": answer.threshold, "path": match.path}
            rates = {name: getattr(answer, name) for name in ("false_accept", "false_reject", "excerpts")}
            found |= {"verified": match.verified, "wave_score": match.wave_score}
            rows.append(span | found | judged | rates | {"end_s": match.start_s + answer.to_s - answer.from_s})
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
