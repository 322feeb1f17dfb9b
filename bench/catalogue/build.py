"""Which track is this? Building a catalogue, with thresholds from its own impostors, and asking it.

Shape legend: Q queries, T samples, M segments of a query, D dimensions, R ranked places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bench import registry
from bench.audio.crop import read_looped
from bench.audio.pcm import Corpus
from bench.catalogue.folder import Catalogue, Limit, check_free, read, write
from bench.catalogue.tune import Trial, run_trials
from bench.config import restore_config
from bench.data import prepare_corpora
from bench.degrade.mix import ZERO_POWER, noise_gain, normalise_peak
from bench.degrade.queries import draw_audible_start, draw_noise_start, hop_samples
from bench.errors import DataError, PluginError
from bench.fingerprint import SHORTEST_QUERY, Embedder, fingerprint_queries, fingerprint_tracks, num_segments
from bench.results import Weights, load_settings
from bench.score.threshold import FALSE_ACCEPTS, threshold
from bench.search.cached import build_or_load
from bench.search.diagonal import search_diagonals
from bench.search.sequence import Ranking, interpolate, rescore
from bench.settings import RunConfig
from bench.store import Store
from bench.train import checkpoint
from bench.values import INT16_SCALE, RATE_HZ, Fingerprints, Floats, Ints, Progress, no_progress

WINDOW_S = 10.0  # of a recording, answered at once
TOP_K = 20
# Impostors: excerpts of the catalogue's own tracks, clean or with noise, that are searched outside their track.
NUM_CALIBRATION = 2_000  # degraded fingerprints, to tune an index with
EXCERPTS = 400  # so that four of them may pass where one in a hundred is wanted
LENGTHS_S = (1.0, 2.0, 3.0, 5.0, 10.0)
SNR_DB = (0.0, 5.0, 10.0, 15.0, 20.0, None)
FEWEST_TRACKS = 2
BATCH = 16


@dataclass(frozen=True)
class Match:
    """A track that a piece of a recording may be. `start_s` is where the piece begins in the track."""

    id: str
    path: str
    label: str
    start_s: float
    score: float
    accepted: bool


@dataclass(frozen=True)
class Answer:
    """What was found in a piece of a recording, best first. `why` says why nothing was looked for, else empty."""

    from_s: float
    to_s: float
    threshold: float | None
    matches: tuple[Match, ...]
    why: str = ""


def settings_for(
    store: Store, run: str | None, index: str, dataset: str | None, model: str | None, overrides: Sequence[str]
) -> tuple[RunConfig, str]:
    """Return a kept run's settings with another index and perhaps other music, and the name of its encoder's plug-in.

    Raises: ConfigError or PluginError if there is no such run, index, data set or setting.
    """
    kept = load_settings(store, run)
    name = model or kept["encoder"]
    flat = {path: value for path, value in kept.items() if not path.startswith("index.")}
    if dataset is not None:
        flat = {path: value for path, value in flat.items() if not path.startswith("music.")}
        flat["data.dataset"] = dataset
    flat["eval.indexes"] = [index]
    return restore_config(kept["encoder"], registry.load("encoder", name), flat, overrides), name


def build(
    folder: Path,
    config: RunConfig,
    model: str,
    weights: Weights,
    root: Path | None,
    store: Store,
    *,
    test_side: bool = False,
    false_accepts: float = FALSE_ACCEPTS,
    progress: Progress = no_progress,
) -> Catalogue:
    """Build a catalogue of a data set and return it: all tracks that can be used, or its test side alone.

    `false_accepts` is the share of strangers that may be accepted. The strangers are excerpts without their own track:
    where a catalogue has several recordings of one work, some of them are known by another, and a small share then
    asks for a score that noise does not leave.

    Fingerprints and index come from the store where they are. `config` names data set, settings and, as the first of
    `eval.indexes`, the index; `model` the encoder's plug-in.
    Raises: ConfigError if the folder exists; DataError if nothing can be fingerprinted.
    """
    check_free(folder)
    encoder = registry.load("encoder", model).build(config.model)
    checkpoint.load_weights(encoder, weights.path)
    music, noise = (corpus for _name, _source, corpus in prepare_corpora(config, root, store, progress))
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    embedder = Embedder(encoder.to(device).eval(), device, config.eval.precision, weights.key)
    tracks = music.numbers("test") if test_side else np.arange(len(music.tracks), dtype=np.int64)
    database = fingerprint_tracks(store, embedder, music, tracks, hop_samples(config.eval), progress)
    if not len(database.vectors):
        raise DataError(f"none of {len(tracks)} tracks is as long as the encoder hears ({encoder.segment_s} s)")
    name = config.eval.indexes[0]
    index = build_or_load(store, registry.load("index", name), config.index[name], database.vectors, database.key)
    limits, calibration_QD = calibrate(embedder, music, noise, database, progress, false_accepts)
    rows = music.tracks.iloc[tracks]
    seconds = rows["num_samples"].to_numpy() / RATE_HZ
    named = rows[["id", "path", "label"]].assign(seconds=seconds).reset_index(drop=True)
    write(folder, config, weights.path, embedder, named, database, index, limits, calibration_QD)
    return read(folder, model, device, trust=True)


def calibrate(
    embedder: Embedder,
    music: Corpus,
    noise: Corpus,
    database: Fingerprints,
    progress: Progress,
    false_accepts: float = FALSE_ACCEPTS,
) -> tuple[tuple[Limit, ...], Floats]:
    """Return the thresholds of a catalogue at some lengths, and fingerprints (Q, D) of what was heard for that.

    None of either where it has fewer than two tracks long enough.

    Each excerpt is searched exactly, once outside its own track (the impostor) and once everywhere. An excerpt of
    10 s is embedded once, its beginnings are the shorter ones. Cost: 400 x 91 segments embedded, and compared with
    the whole database once for each length.
    """
    wanted = [length_s for length_s in LENGTHS_S if length_s >= embedder.segment_samples / RATE_HZ]
    length_s = _longest(music, database, wanted)
    if length_s is None:
        return (), np.zeros((0, database.vectors.shape[1]), dtype=np.float32)
    rows, waves = _excerpts(music, noise, database, round(length_s * RATE_HZ), progress)
    batches = (np.stack(waves[start : start + BATCH]) for start in range(0, len(waves), BATCH))
    vectors_QMD = fingerprint_queries(embedder, _report_progress(batches, len(waves), progress), database.hop_samples)
    limits = []
    usable = [length for length in wanted if length <= length_s]
    for done, length in enumerate(usable):
        progress("calibration: search", done, len(usable))
        segments = num_segments(round(length * RATE_HZ), embedder.segment_samples, database.hop_samples)
        limits.append(_limit(vectors_QMD[:, :segments], rows, database, embedder.device, false_accepts))
    progress("calibration: search", len(usable), len(usable))
    flat_QD = vectors_QMD.reshape(-1, vectors_QMD.shape[2])
    return tuple(limits), flat_QD[np.random.default_rng(0).permutation(len(flat_QD))[:NUM_CALIBRATION]]


def tune_index(catalogue: Catalogue, index: str, recall: float, progress: Progress) -> list[Trial]:
    """Return what trials of an index on the catalogue's fingerprints found, asked with those heard for calibration.

    Raises: ConfigError if the index has nothing to tune; DataError if the catalogue was not calibrated.
    """
    plugin = registry.load("index", index)
    queries_QD, vectors_ND = np.array(catalogue.calibration_QD), catalogue.database.vectors
    if not len(queries_QD):
        raise DataError(f"{catalogue.folder} has no degraded fingerprints to ask with; it needs two tracks at least")
    exact = registry.load("index", "exact")
    truth_Q = exact.build(exact.Config(), vectors_ND).neighbours(queries_QD, 1)[:, 0]
    trials = []
    for trial in run_trials(plugin, plugin.Config(), vectors_ND, queries_QD, truth_Q, recall):
        trials.append(trial)
        progress("trials", len(trials), len(trials) + 1)
    progress("trials", len(trials), len(trials))
    return trials


def identify(
    catalogue: Catalogue, wave_T: Floats, *, top: int = 5, window_s: float = WINDOW_S, progress: Progress = no_progress
) -> Iterator[Answer]:
    """Yield what a recording (T,) at 16 kHz is, a window at a time.

    A rest too short to hear belongs to the last window. Each track is named once in an answer, at its best place.
    Raises: DataError if the recording is shorter than what the encoder hears.
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
    found = rescore(vectors_QMD, neighbours_MK[None], database, TOP_K * count)
    ranking = interpolate(_one_a_track(found, database, top), vectors_QMD, database)
    limit = catalogue.threshold(count)
    matches = _matches(catalogue, ranking, limit)
    return Answer(*span_s, limit, matches, "" if matches else "longer than any track of the catalogue")


def _one_a_track(ranking: Ranking, database: Fingerprints, top: int) -> Ranking:
    """Return the ranking of one query with each of the first `top` tracks at its best place alone."""
    place_R = ranking.places_QR[0, ranking.places_QR[0] >= 0]
    _, first = np.unique(database.track_row_of(place_R), return_index=True)
    kept = np.sort(first)[:top]
    return Ranking(ranking.places_QR[:, kept], ranking.scores_QR[:, kept])


def _matches(catalogue: Catalogue, ranking: Ranking, limit: float | None) -> tuple[Match, ...]:
    database = catalogue.database
    track_R = database.track_row_of(ranking.places_QR[0])
    matches = []
    found = (track_R, ranking.starts(database)[0] / RATE_HZ, ranking.scores_QR[0])
    for track, start_s, score in zip(*(values.tolist() for values in found), strict=True):
        row = catalogue.tracks.iloc[track]
        accepted = limit is not None and score >= limit
        matches.append(Match(row["id"], row["path"], row["label"], start_s, score, accepted))
    return tuple(matches)


def _longest(music: Corpus, database: Fingerprints, lengths_s: Sequence[float]) -> float | None:
    """Return the longest of these lengths that half of the tracks have, and at least two; None if there is none."""
    seconds = music.lengths[database.tracks] / RATE_HZ
    fits = [length for length in lengths_s if (seconds >= length).sum() >= max(FEWEST_TRACKS, len(seconds) / 2)]
    return max(fits, default=None)


def _excerpts(
    music: Corpus, noise: Corpus, database: Fingerprints, num_samples: int, progress: Progress
) -> tuple[Ints, list[Floats]]:
    """Return excerpts of the database's tracks: the row of each one's track, and their audio (T,) with peak 1."""
    draw = np.random.default_rng(0)
    long_enough = np.flatnonzero(music.lengths[database.tracks] >= num_samples)
    rows, waves = [], []
    for i in range(EXCERPTS):
        progress("calibration: excerpts", i, EXCERPTS)
        row = int(draw.choice(long_enough))
        track = int(database.tracks[row])
        start = draw_audible_start(music, track, music.num_samples(track) - num_samples, draw)
        if start is None:
            continue
        wave_T = music.read(track, start, num_samples).astype(np.float32) * INT16_SCALE
        rows.append(row)
        waves.append(normalise_peak(_add_noise(wave_T, noise, SNR_DB[i % len(SNR_DB)], draw)))
    progress("calibration: excerpts", EXCERPTS, EXCERPTS)
    if not rows:
        raise PluginError("no excerpt of the catalogue's tracks can be heard")
    return np.array(rows), waves


def _add_noise(wave_T: Floats, noise: Corpus, snr_db: float | None, draw: np.random.Generator) -> Floats:
    if snr_db is None:
        return wave_T
    track = int(draw.choice(len(noise.tracks)))
    noise_T = (
        read_looped(noise, track, draw_noise_start(noise, track, draw), len(wave_T)).astype(np.float32) * INT16_SCALE
    )
    return wave_T + np.float32(noise_gain(wave_T, noise_T, snr_db)) * noise_T


def _report_progress(batches: Iterator[Floats], total: int, progress: Progress) -> Iterator[Floats]:
    done = 0
    for batch in batches:
        progress("calibration: embed", done, total)
        yield batch
        done += len(batch)
    progress("calibration: embed", total, total)


def _limit(
    vectors_QMD: Floats, rows: Ints, database: Fingerprints, device: torch.device, false_accepts: float
) -> Limit:
    impostor_Q = search_diagonals(vectors_QMD, database, 1, rows, device).scores_QR[:, 0]
    own_Q = np.array([_score_in_track(vectors_QMD[q], database, row) for q, row in enumerate(rows)])
    limit = threshold(impostor_Q, false_accepts)
    right = (own_Q >= limit) & ~(impostor_Q > own_Q)
    return Limit(vectors_QMD.shape[1], limit, len(rows), false_accepts, float(1 - right.mean()))


def _score_in_track(vectors_MD: Floats, database: Fingerprints, row: int) -> float:
    """Return the best score of a query in one track."""
    first, last = database.first_vector[row], database.first_vector[row + 1]
    alone = Fingerprints(database.vectors[first:last], np.zeros(1, np.int64), np.array([0, last - first]), 1, "")
    return float(search_diagonals(vectors_MD[None], alone, 1).scores_QR[0, 0])


def frame(answers: Sequence[Answer]) -> pd.DataFrame:
    """Return answers as rows, one a match; an answer without any is a row of its own."""
    rows = []
    for answer in answers:
        span = {"from_s": answer.from_s, "to_s": answer.to_s}
        for rank, match in enumerate(answer.matches, start=1):
            told = {"rank": rank, "accepted": match.accepted, "id": match.id, "start_s": match.start_s}
            rows.append(span | told | {"score": match.score, "threshold": answer.threshold, "path": match.path})
        if not answer.matches:
            rows.append(span | {"rank": 0, "accepted": False, "why": answer.why})
    return pd.DataFrame(rows)
