"""Finds tracks in the fingerprints of a recording: which track, from when to when, and where in the track it begins.

A line is a track and a place of the database at which the recording's first segment would lie, so that segment m lies
at place line + m. A recording of a track follows one line. It matches only while the track is heard, and only places
of that track count: a track may begin or end at any time in the recording.

A line is accepted by one of three rules, each with a threshold of its own (`bench.catalogue.build.calibrate`): its mean
similarity over a whole window, or over a part of one, or that two neighbouring halves of a window, or windows, have the
same best line. Where the catalogue has sign bits, the wave is the fourth, asked where no line of a window is accepted.

Shape legend: M segments of the recording, W segments of a window, P lines, K neighbours, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bench.catalogue.folder import SAME_LINE, Catalogue
from bench.catalogue.wave import HeardSigns, find_line
from bench.parabola import vertex
from bench.values import RATE_HZ, Fingerprints, Floats, Ints

BLOCK_BYTES = 1 << 22  # of vectors gathered at once
WINDOW_S = 10.0  # the longest length at which thresholds are calibrated
SMOOTH = 11  # segments over which similarities are averaged to find where a track begins and ends
NEAR_LINE = 5  # hops: the lines beside a matching one match too, as segments overlap
NUM_UNRELATED = 256  # vectors of the database that tell how similar unrelated ones are
MOST_LINES = 32  # of one window that are followed
MOST_PROPOSED = 300  # lines of a window that the wave is compared with, where no fingerprint is sure
NEIGHBOURS_OF_WINDOW = 1000  # that propose them, divided among its segments
MERGE_S = 10.0  # two stretches of a line with no other track and at most so much time between them are one


@dataclass(frozen=True)
class Recording:
    """The fingerprints of a recording, one every hop."""

    vectors_MD: Floats
    neighbours_MK: Ints
    silent_M: npt.NDArray[np.bool_]
    num_samples: int

    signs: HeardSigns | None = None
    """Its sign bits, if the catalogue has those of its tracks."""


@dataclass(frozen=True)
class Line:
    """A track along a part of a recording."""

    row: int
    """The row of the track in the database."""

    place: int
    """The place of the recording's first segment; outside the track if it begins later in the recording."""

    begin: int
    end: int
    """The segments along which the line was scored, or in which the track is heard."""

    score: float
    threshold: float | None
    """By which it was accepted, or would be."""

    wave_score: float | None = None
    """Its score by the wave, if that alone is why it was accepted."""


def find_stretches(catalogue: Catalogue, recording: Recording) -> list[Line]:
    """Return the stretches of the recording in which a track is accepted, in order of time and without overlap."""
    found: list[tuple[float, Line]] = []
    best: list[tuple[Line | None, float]] = []

    def add(line: Line, background: float) -> None:
        stretch = _follow(catalogue.database, recording, line, background)
        found.append((_evidence(catalogue.database, recording, stretch, background), stretch))

    done = 0
    for begin, end in windows(catalogue, len(recording.vectors_MD)):
        scored = _score_lines(catalogue, recording, begin, end)
        accepted = list(_accepted_lines(catalogue, scored))
        for line in accepted:
            add(line, scored.background)
        heard = None if accepted else _find_by_wave(catalogue, recording, begin, end)
        if heard is not None:
            found.append((_evidence(catalogue.database, recording, heard, scored.background), heard))
        # The last window overlaps the one before it: what is new in it is judged with that one.
        best.append((_best_line(scored, max(begin, done), end), scored.background))
        done = end
    for (one, background), (other, _background) in pairwise(best):
        joined = _join_pair(catalogue, one, other)
        if joined is not None:
            add(joined, background)
    taken_M = np.zeros(len(recording.vectors_MD), dtype=bool)
    chosen = []
    for _surely, stretch in sorted(found, key=lambda pair: (-pair[0], pair[1].begin, pair[1].place)):
        free = _longest_free(taken_M, stretch)
        if free is not None:
            taken_M[free.begin : free.end] = True
            chosen.append(free)
    return _merge(sorted(chosen, key=lambda line: line.begin), catalogue.database.hop_samples)


def windows(catalogue: Catalogue, num_segments: int) -> list[tuple[int, int]]:
    """Return begin and end of each window: one after another, the last as long as the others."""
    size = window_segments(catalogue)
    begins = range(0, max(1, num_segments - size + 1), size)
    spans = [(begin, min(begin + size, num_segments)) for begin in begins]
    if spans[-1][1] < num_segments:
        spans.append((max(0, num_segments - size), num_segments))
    return spans


def window_segments(catalogue: Catalogue) -> int:
    """Return how many segments begin in a window."""
    return max(1, round(WINDOW_S * RATE_HZ / catalogue.database.hop_samples))


def rank_tracks(catalogue: Catalogue, recording: Recording, begin: int, end: int, top: int) -> list[Line]:
    """Return the best line of each track along these segments, best first, at most `top`.

    A line counts if half of the segments, or the whole track, lie on it; its score is the mean over those that do.
    """
    database = catalogue.database
    row_P, place_P = _candidate_lines(recording, database, begin, end)
    similarity_PW = _similarities(recording, database, row_P, place_P, begin, end)
    overlap_P = np.isfinite(similarity_PW).sum(axis=1)
    whole_P = database.first_vector[row_P + 1] - database.first_vector[row_P]
    counts_P = overlap_P >= np.minimum(whole_P, (end - begin + 1) // 2)
    score_P = np.nansum(similarity_PW, axis=1) / np.maximum(overlap_P, 1)
    order = np.lexsort((place_P, -score_P))
    order = order[counts_P[order]]
    _, first = np.unique(row_P[order], return_index=True)
    best = order[np.sort(first)[:top]]
    limits = [part_threshold(catalogue, int(overlap_P[p])) for p in best]
    lines = zip(best, limits, strict=True)
    return [Line(int(row_P[p]), int(place_P[p]), begin, end, float(score_P[p]), limit) for p, limit in lines]


def part_threshold(catalogue: Catalogue, num_segments: int) -> float | None:
    """Return the least score at which so many segments of a longer recording are accepted; None if uncalibrated.

    As `Catalogue.threshold`, raised by as much as the thresholds of parts are above those of whole recordings.
    """
    limit = catalogue.threshold(num_segments)
    if limit is None or not catalogue.part_limits:
        return limit
    raised = [part.threshold - (catalogue.threshold(part.segments) or 0.0) for part in catalogue.part_limits]
    window = window_segments(catalogue)
    if num_segments >= catalogue.limits[-1].segments:
        return limit
    lengths = np.log([*(part.segments for part in catalogue.part_limits), window])
    return limit + max(0.0, float(np.interp(np.log(num_segments), lengths, [*raised, 0.0])))


def offset_samples(database: Fingerprints, recording: Recording, line: Line) -> int:
    """Return where in its track the recording's first sample lies; negative if the track begins later.

    It is told between two places by a parabola through the scores of the line and of those beside it.
    """
    here = (line.place - int(database.first_vector[line.row])) * database.hop_samples
    places = np.array([line.place - 1, line.place, line.place + 1])
    similarity_PW = _similarities(recording, database, np.full(3, line.row), places, line.begin, line.end)
    shared_W = np.isfinite(similarity_PW).all(axis=0)
    if not shared_W.any():
        return here
    before, middle, after = similarity_PW[:, shared_W].mean(axis=1)
    if middle < max(before, after):
        return here
    return here + round(float(vertex(before, middle, after)) * database.hop_samples)


@dataclass(frozen=True)
class _Scored:
    """A window, and the similarity of its segments on all lines that may be in it."""

    begin: int
    end: int

    start: int
    """The first segment of the similarities: before the window, so that a part may lie across two."""

    row_P: Ints
    place_P: Ints
    similarity_PW: Floats

    background: float
    """The similarity of unrelated vectors here."""


def _score_lines(catalogue: Catalogue, recording: Recording, begin: int, end: int) -> _Scored:
    longest = max((limit.segments for limit in catalogue.part_limits), default=1)
    start = max(0, begin - longest + 1)
    row_P, place_P = _candidate_lines(recording, catalogue.database, start, end)
    heard_WD = recording.vectors_MD[start:end][~recording.silent_M[start:end]]
    background = _background(catalogue.database, heard_WD) if len(row_P) else 0.0
    similarity_PW = _similarities(recording, catalogue.database, row_P, place_P, start, end)
    return _Scored(begin, end, start, row_P, place_P, similarity_PW, background)


def _accepted_lines(catalogue: Catalogue, scored: _Scored) -> Iterator[Line]:
    """Yield each accepted line of a window, the surest first."""
    kept: list[Line] = []
    for p, first, last, score, threshold in _passing(catalogue, scored):
        row, place = int(scored.row_P[p]), int(scored.place_P[p])
        line = Line(row, place, scored.start + first, scored.start + last, score, threshold)
        if len(kept) < MOST_LINES and not any(_is_beside(line, other) for other in kept):
            kept.append(line)
            yield line


def _best_line(scored: _Scored, begin: int, end: int) -> Line | None:
    """Return the line with the highest mean similarity along these segments; None if none lies along all of them."""
    if not len(scored.row_P):
        return None
    score_P = scored.similarity_PW[:, begin - scored.start : end - scored.start].mean(axis=1)
    best = int(np.argmax(np.where(np.isnan(score_P), -np.inf, score_P)))
    if not np.isfinite(score_P[best]):
        return None
    return Line(int(scored.row_P[best]), int(scored.place_P[best]), begin, end, float(score_P[best]), None)


def _join_pair(catalogue: Catalogue, one: Line | None, other: Line | None) -> Line | None:
    """Return two neighbouring lines as one if they are the same line, and their mean score reaches the threshold."""
    if one is None or other is None or one.row != other.row or abs(one.place - other.place) > SAME_LINE:
        return None
    threshold = catalogue.pair_threshold(min(one.end - one.begin, other.end - other.begin))
    score = (one.score + other.score) / 2
    if threshold is None or score < threshold:
        return None
    surer = max(one, other, key=lambda line: line.score)
    return replace(surer, begin=one.begin, end=other.end, score=score, threshold=threshold)


def _find_by_wave(catalogue: Catalogue, recording: Recording, begin: int, end: int) -> Line | None:
    """Return the line of these segments that the wave confirms, of those that their neighbours propose; None if none.

    Its score is that of the fingerprints.
    """
    if recording.signs is None or catalogue.bits is None:
        return None
    threshold = catalogue.wave_threshold(end - begin)
    if threshold is None:
        return None
    database, hop = catalogue.database, catalogue.database.hop_samples
    row_P, place_P = _propose_lines(catalogue, recording, begin, end)
    span = begin * hop, min(recording.num_samples, (end - 1) * hop + catalogue.embedder.segment_samples)
    offset_P = (place_P - database.first_vector[row_P]) * hop
    heard = find_line(recording.signs, catalogue.bits, *span, row_P, offset_P)
    if heard is None or heard.score < threshold:
        return None
    first, last = database.first_vector[heard.row], database.first_vector[heard.row + 1]
    place = int(first) + round(heard.offset_samples / hop)
    begin, end = max(begin, int(first) - place), min(end, int(last) - place)
    if begin >= end:
        return None
    similarity_PW = _similarities(recording, database, np.array([heard.row]), np.array([place]), begin, end)
    score = float(np.nanmean(similarity_PW)) if np.isfinite(similarity_PW).any() else 0.0
    return Line(heard.row, place, begin, end, score, catalogue.threshold(end - begin), heard.score)


def _propose_lines(catalogue: Catalogue, recording: Recording, begin: int, end: int) -> tuple[Ints, Ints]:
    """Return track rows and places of the most similar lines among many neighbours of these segments."""
    count = min(-(-NEIGHBOURS_OF_WINDOW // (end - begin)), len(catalogue.database.vectors))
    some = recording
    if count > recording.neighbours_MK.shape[1]:
        neighbours_MK = np.full((end, count), -1, dtype=np.int64)
        neighbours_MK[begin:end] = catalogue.index.neighbours(recording.vectors_MD[begin:end], count)
        some = replace(recording, neighbours_MK=neighbours_MK)
    row_P, place_P = _candidate_lines(some, catalogue.database, begin, end)
    similarity_PW = _similarities(recording, catalogue.database, row_P, place_P, begin, end)
    score_P = np.nansum(similarity_PW, axis=1)
    best = np.lexsort((place_P, -score_P))[:MOST_PROPOSED]
    return row_P[best], place_P[best]


def _is_beside(line: Line, other: Line) -> bool:
    overlaps = line.begin < other.end and other.begin < line.end
    return line.row == other.row and abs(line.place - other.place) <= NEAR_LINE and overlaps


def _background(database: Fingerprints, vectors_WD: Floats) -> float:
    """Return the similarity of unrelated vectors: the median over some of the database, evenly spaced."""
    some = np.linspace(0, len(database.vectors) - 1, NUM_UNRELATED).astype(np.int64)
    return float(np.median(vectors_WD @ database.vectors[some].T))


def _passing(catalogue: Catalogue, scored: _Scored) -> list[tuple[int, int, int, float, float]]:
    """Return line, begin, end, score and threshold of what passes a rule, the furthest above its threshold first.

    Begin and end count from `scored.start`.
    """
    similarity_PW, begin = scored.similarity_PW, scored.begin - scored.start
    width = similarity_PW.shape[1]
    whole = catalogue.threshold(width - begin)
    spans = [] if whole is None else [(begin, width, whole)]
    for part in catalogue.part_limits:
        spans += [(first, first + part.segments, part.threshold) for first in range(width - part.segments + 1)]
    total_PW = np.pad(np.nancumsum(similarity_PW, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    missing_PW = np.pad(np.cumsum(np.isnan(similarity_PW), axis=1), ((0, 0), (1, 0)))
    passed = []
    for first, last, threshold in spans:
        mean_P = (total_PW[:, last] - total_PW[:, first]) / (last - first)
        score_P = np.where(missing_PW[:, last] == missing_PW[:, first], mean_P, -np.inf)
        passed += [(int(p), first, last, float(score_P[p]), threshold) for p in np.flatnonzero(score_P >= threshold)]
    half = (width - begin) // 2
    halves = ((scored.begin, scored.begin + half), (scored.end - half, scored.end))
    pair = _join_pair(catalogue, *(_best_line(scored, *each) for each in halves)) if half else None
    if pair is not None and pair.threshold is not None:
        is_it_P = (scored.row_P == pair.row) & (scored.place_P == pair.place)
        passed.append((int(np.argmax(is_it_P)), begin, width, pair.score, pair.threshold))
    return sorted(passed, key=lambda entry: (entry[4] - entry[3], entry[0]))


def _evidence(database: Fingerprints, recording: Recording, line: Line, background: float) -> float:
    """Return how much speaks for a stretch: by how much its similarity exceeds that of unrelated vectors, summed."""
    similarity_PW = _similarities(
        recording, database, np.array([line.row]), np.array([line.place]), line.begin, line.end
    )
    return float(np.nansum(similarity_PW - background))


def _follow(database: Fingerprints, recording: Recording, line: Line, background: float) -> Line:
    """Return the line along all segments in which its track is heard.

    A track is heard while the similarity is above the middle between that of the line and that of unrelated vectors.
    """
    first = max(0, int(database.first_vector[line.row]) - line.place)
    last = min(len(recording.vectors_MD), int(database.first_vector[line.row + 1]) - line.place)
    similarity_W = _similarities(recording, database, np.array([line.row]), np.array([line.place]), first, last)[0]
    core = slice(line.begin - first, line.end - first)
    cut = (float(np.nanpercentile(similarity_W[core], 75)) + background) / 2
    smooth_W = _smooth(similarity_W)
    heard = np.flatnonzero(smooth_W >= cut)
    peak = core.start + int(np.argmax(smooth_W[core]))
    run = next(run for run in np.split(heard, np.flatnonzero(np.diff(heard) > SMOOTH) + 1) if peak in run)
    begin, end = int(run[0]), int(run[-1]) + 1
    # What is left of the track, or of the recording, is shorter than half a segment: it belongs to the stretch.
    begin, end = (0 if begin <= SMOOTH // 2 else begin), (last - first if last - first - end <= SMOOTH // 2 else end)
    return replace(line, begin=first + begin, end=first + end)


def _smooth(similarity_W: Floats) -> Floats:
    """Return the mean over SMOOTH neighbours, without those that are NaN."""
    window = np.ones(SMOOTH)
    known_W = np.isfinite(similarity_W).astype(np.float64)
    padded = (np.pad(values, SMOOTH // 2) for values in (np.nan_to_num(similarity_W), known_W))
    total_W, count_W = (np.convolve(values, window, "valid") for values in padded)
    smooth_W: Floats = np.where(count_W > 0, total_W / np.maximum(count_W, 1), -np.inf)
    return smooth_W


def _longest_free(taken_M: npt.NDArray[np.bool_], line: Line) -> Line | None:
    """Return the longest part of a stretch that is not taken; None if it is shorter than a part that can be judged."""
    free = np.flatnonzero(~taken_M[line.begin : line.end])
    if not len(free):
        return None
    run = max(np.split(free, np.flatnonzero(np.diff(free) > 1) + 1), key=len)
    if len(run) < min(SMOOTH, line.end - line.begin):
        return None
    return replace(line, begin=line.begin + int(run[0]), end=line.begin + int(run[-1]) + 1)


def _merge(lines: list[Line], hop_samples: int) -> list[Line]:
    """Return the stretches, in order of time, with neighbours on the same line made one."""
    merged: list[Line] = []
    for line in lines:
        last = merged[-1] if merged else None
        near = last is not None and (line.begin - last.end) * hop_samples <= MERGE_S * RATE_HZ
        if last is None or not near or line.row != last.row or abs(line.place - last.place) > SAME_LINE:
            merged.append(line)
            continue
        surest = max(last, line, key=lambda each: each.score - (each.threshold or 0.0))
        by_wave = None if None in (last.wave_score, line.wave_score) else surest.wave_score
        merged[-1] = replace(last, end=line.end, score=surest.score, threshold=surest.threshold, wave_score=by_wave)
    return merged


def _candidate_lines(recording: Recording, database: Fingerprints, begin: int, end: int) -> tuple[Ints, Ints]:
    """Return track rows and places of all lines that the neighbours of these segments lie on."""
    neighbours_WK = recording.neighbours_MK[begin:end]
    used_WK = (neighbours_WK >= 0) & ~recording.silent_M[begin:end, None]
    segment_P = np.broadcast_to(np.arange(begin, end)[:, None], neighbours_WK.shape)[used_WK]
    neighbour_P = neighbours_WK[used_WK]
    pairs = np.stack([database.track_row_of(neighbour_P), neighbour_P - segment_P], axis=1)
    row_P, place_P = np.unique(pairs, axis=0).T
    return row_P, place_P


def _similarities(
    recording: Recording, database: Fingerprints, row_P: Ints, place_P: Ints, begin: int, end: int
) -> Floats:
    """Return the similarity of each segment on each line (P, W); NaN outside the track and where it is silent."""
    vectors_WD = recording.vectors_MD[begin:end]
    place_PW = place_P[:, None] + np.arange(begin, end)
    first = database.first_vector
    inside_PW = (place_PW >= first[row_P][:, None]) & (place_PW < first[row_P + 1][:, None])
    inside_PW &= ~recording.silent_M[begin:end]
    similarity_PW = np.full(place_PW.shape, np.nan, dtype=np.float32)
    block = max(1, BLOCK_BYTES // max(1, vectors_WD.nbytes))
    for start in range(0, len(place_P), block):
        rows = slice(start, start + block)
        line_R, segment_R = np.nonzero(inside_PW[rows])
        vector_RD = database.vectors[place_PW[rows][line_R, segment_R]]
        similarity_PW[rows][line_R, segment_R] = np.einsum("rd,rd->r", vector_RD, vectors_WD[segment_R])
    return similarity_PW
