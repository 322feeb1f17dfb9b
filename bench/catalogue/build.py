"""Builds a catalogue, and calibrates the thresholds above which its answers are accepted.

Shape legend: Q queries, T samples, M segments of a query, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from bench.audio.crop import read_looped
from bench.audio.pcm import Corpus
from bench.catalogue.folder import (
    SAME_LINE,
    Catalogue,
    Limit,
    Limits,
    check_free,
    read_catalogue,
    write_catalogue,
)
from bench.catalogue.lines import MOST_PROPOSED
from bench.catalogue.wave import CERTAIN, HeardLine, find_line, hear
from bench.config import format_plugin_name, load_plugin
from bench.data import prepare_corpora
from bench.degrade.mix import noise_gain, normalise_peak
from bench.degrade.queries import draw_audible_start, draw_noise_start, hop_samples
from bench.errors import DataError, PluginError
from bench.fingerprint import Embedder, fingerprint_queries, fingerprint_tracks, num_segments
from bench.runs import FinishedRun
from bench.score.threshold import FALSE_ACCEPTS, threshold
from bench.search.cached import build_or_load
from bench.search.diagonal import search_diagonals
from bench.search.parts import best_part_scores
from bench.search.sign_bits import SignBits, prepare_sign_bits
from bench.settings import RunConfig
from bench.store import Store
from bench.values import INT16_SCALE, RATE_HZ, Fingerprints, Floats, Ints, Progress, no_progress

# Impostors are excerpts of the catalogue's tracks, clean or with noise, searched everywhere but in their track.
NUM_CALIBRATION = 2_000  # degraded fingerprints that are kept to tune an index with
EXCERPTS = 400  # at one false accept in a hundred, four of them may pass
SOUNDS_PER_EXCERPT = 0.3  # sounds that are no music: one in 120 may then be accepted, about as promised
LENGTHS_S = (1.0, 2.0, 3.0, 5.0, 10.0)  # of the excerpts
PARTS_S = (2.0, 5.0)  # of the parts of the longest excerpts
PAIR_S = 5.0  # of each of two neighbouring parts
# Of the false accepts, so that all rules together keep the promise.
WHOLE_SHARE, PART_SHARE, PAIR_SHARE = 0.5, 0.125, 0.25
WAVE_SHARE = 0.25  # taken from that of whole excerpts, where there are sign bits
# Where there are too few works to see a share of false accepts, how far above the best impostor the wave has to be.
FEW_WORKS = 1.5
# How far a threshold may be from the best impostor, on the way to a perfect match, if there are few works. A part is
# one of a hundred of a window, and is meant for jingles as they are.
WHOLE_REACH, PART_REACH = 0.25, 0.5
SNR_DB = (0.0, 5.0, 10.0, 15.0, 20.0, None)  # of the excerpts in turn; None is clean
FEWEST_TRACKS = 2
FEWEST_UNSEEN = 8  # tracks the encoder was not trained on; fewer are too few to set thresholds with
BATCH = 16  # excerpts embedded at once

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Excerpts:
    """What thresholds are calibrated with: degraded excerpts of the catalogue's tracks, and sounds without music."""

    waves: Sequence[Floats]
    vectors_QMD: Floats

    rows: Ints
    """The row of each excerpt's track (Q,)."""

    groups: Ints
    """The group of each track of the database; tracks that share audio are in one."""

    sounds: Sequence[Floats]
    sounds_QMD: Floats

    def cut(self, num_samples: int, segments: int) -> _Excerpts:
        """Return the beginnings of all, of so many samples and segments."""
        waves, sounds = ([wave_T[:num_samples] for wave_T in each] for each in (self.waves, self.sounds))
        vectors_QMD, sounds_QMD = (each[:, :segments] for each in (self.vectors_QMD, self.sounds_QMD))
        return _Excerpts(waves, vectors_QMD, self.rows, self.groups, sounds, sounds_QMD)


def catalogue_config(
    run: FinishedRun, index: str, dataset: str | None, model: str | None, overrides: Sequence[str]
) -> RunConfig:
    """Return a run's settings with another index, and with another data set if one is given.

    `model` is the path of the encoder's file, for an encoder of the user's; `overrides` are strings as `--set` takes
    them.
    Raises: ConfigError or PluginError if there is no such index, data set or setting.
    """
    changes = {"eval.indexes": [index]} | ({"data.dataset": dataset} if dataset is not None else {})
    # Aligners and pairs are not needed; those of the run may not be installed here.
    without = ("index", "aligner", "align", "pairs", *(("music",) if dataset is not None else ()))
    return run.restore_config(run.load_plugin(model), without=without, changes=changes, overrides=overrides)


def build_catalogue(
    folder: Path,
    config: RunConfig,
    embedder: Embedder,
    weights: Path,
    root: Path | None,
    store: Store,
    *,
    model: str | None = None,
    test_side: bool = False,
    false_accepts: float = FALSE_ACCEPTS,
    trained_on: str = "",
    with_bits: bool = False,
    progress: Progress = no_progress,
) -> Catalogue:
    """Build a catalogue of all usable tracks of a data set, or of its test side only, and return it.

    `embedder` holds the encoder whose weights are in the file `weights`; `config` names the data set, the settings
    and, as the first of `eval.indexes`, the index. `model` is as in `catalogue_config`. Fingerprints and index are
    taken from the store if they are there.

    `false_accepts` is the share of impostors that may be accepted. Impostors are excerpts of the catalogue's tracks
    that are searched outside their track and its copies. If a catalogue has several recordings of one work, some
    excerpts are found in another recording, and a small share then needs a threshold that noisy queries do not reach.
    `trained_on` is the digest of the music of the encoder's training. If that is the catalogue's own, the excerpts are
    of its test side, where that has enough tracks: an encoder tells apart what it was trained on better than other
    music, and thresholds that were set with it would accept too much.
    `with_bits` adds one bit for each sample of the tracks at 8 kHz, 1 kB/s, by which `identify` tells times to the
    sample, and accepts what the wave confirms.
    Raises: ConfigError if the folder exists; DataError if no track can be fingerprinted.
    """
    check_free(folder)
    music, noise = (corpus for _name, _source, corpus in prepare_corpora(config, root, store, progress))
    is_trained_on = music.digest == trained_on
    music = music.with_near_duplicates()  # a catalogue is no test: no track of it can leak into one
    tracks, left_out = _choose_tracks(music, embedder, test_side)
    database = fingerprint_tracks(store, embedder, music, tracks, hop_samples(config.eval), progress)
    name = config.eval.indexes[0]
    index = build_or_load(
        store, load_plugin("index", name)[0], config.index[format_plugin_name(name)], database.vectors, database.key
    )
    unseen = np.isin(tracks, music.numbers("test")) if is_trained_on else np.ones(len(tracks), dtype=bool)
    bits = prepare_sign_bits(store, music, tracks, progress) if with_bits else None
    limits, calibration_QD = calibrate(embedder, music, noise, database, progress, false_accepts, unseen, bits)
    rows = music.tracks.iloc[tracks]
    seconds = rows["num_samples"].to_numpy() / RATE_HZ
    named_tracks = rows[["id", "path", "label"]].assign(seconds=seconds).reset_index(drop=True)
    write_catalogue(
        folder, config, weights, embedder, named_tracks, left_out, database, index, limits, calibration_QD, bits
    )
    return read_catalogue(folder, model, embedder.device, trust=True, index=name.partition(":")[0])


def _choose_tracks(music: Corpus, embedder: Embedder, test_side: bool) -> tuple[Ints, pd.DataFrame]:
    """Return the numbers of the tracks of a catalogue, and those left out of it: path and reason.

    Raises: DataError if no track is as long as a segment.
    """
    wanted = music.numbers("test") if test_side else np.arange(len(music.tracks), dtype=np.int64)
    fits = music.lengths[wanted] >= embedder.segment_samples
    shortest_s = embedder.encoder.segment_s
    if not fits.any():
        raise DataError(f"none of {len(wanted)} tracks is as long as the encoder's segment ({shortest_s} s)")
    short = music.tracks.iloc[wanted[~fits]]
    short = short.assign(status="short", reason=f"shorter than the encoder's segment ({shortest_s} s)")
    unusable = music.select_unusable()
    rows = pd.concat([unusable[unusable["split"] == "test"] if test_side else unusable, short])
    names = rows["path"].where(rows["path"] != "", rows["id"])
    return wanted[fits], pd.DataFrame({"path": names, "reason": rows["status"] + ": " + rows["reason"]}, dtype=str)


def calibrate(
    embedder: Embedder,
    music: Corpus,
    noise: Corpus,
    database: Fingerprints,
    progress: Progress,
    false_accepts: float = FALSE_ACCEPTS,
    unseen: npt.NDArray[np.bool_] | None = None,
    bits: SignBits | None = None,
) -> tuple[Limits, Floats]:
    """Return a catalogue's thresholds, at several query lengths, and fingerprints (Q, D) of the degraded excerpts.

    Both are empty if fewer than two tracks are long enough. `unseen` says which of the database's tracks the encoder
    was not trained on: the excerpts are of those, if they are at least FEWEST_UNSEEN.

    Sounds that are no music are impostors too; each threshold is the higher of that for music and that for sounds.

    Each excerpt is searched exactly, once outside its own track and the tracks that share audio with it (the impostor)
    and once inside it. An excerpt of 10 s
    is embedded once; its beginnings are the shorter excerpts. Cost: 520 x 91 segments embedded, and compared with
    the whole database once per length. With sign bits of the tracks there are thresholds by the wave too, for which
    each excerpt is searched twice more.
    """
    # 1. Embed excerpts of the longest length that enough tracks have.
    usable_s = [length_s for length_s in LENGTHS_S if length_s >= embedder.segment_samples / RATE_HZ]
    length_s = _longest(music, database, usable_s)
    if length_s is None:
        return Limits(), np.zeros((0, database.vectors.shape[1]), dtype=np.float32)
    rows, waves = _excerpts(music, noise, database, round(length_s * RATE_HZ), progress, unseen)
    batches = (np.stack(waves[start : start + BATCH]) for start in range(0, len(waves), BATCH))
    vectors_QMD = fingerprint_queries(embedder, _report_progress(batches, len(waves), progress), database.hop_samples)
    sounds = _draw_sounds(noise, round(length_s * RATE_HZ))
    batches = (np.stack(sounds[start : start + BATCH]) for start in range(0, len(sounds), BATCH))
    sounds_QMD = fingerprint_queries(embedder, batches, database.hop_samples)
    # 2. A threshold for each length: the first segments of an excerpt are the shorter excerpt.
    limits, wave_limits = [], []
    groups = music.group_copies(database.tracks, database.tracks[np.unique(rows)])
    whole = _Excerpts(waves, vectors_QMD, rows, groups, sounds, sounds_QMD)
    lengths_s = [length for length in usable_s if length <= length_s]
    for done, length in enumerate(lengths_s):
        progress("calibration: search", done, len(lengths_s))
        num_samples = round(length * RATE_HZ)
        segments = num_segments(num_samples, embedder.segment_samples, database.hop_samples)
        excerpts = whole.cut(num_samples, segments)
        share = (WHOLE_SHARE if bits is None else WHOLE_SHARE - WAVE_SHARE) * false_accepts
        limit, passed_Q, is_right_Q = _limit(excerpts, database, embedder.device, share, false_accepts)
        if bits is not None:
            judged_by = excerpts, database, bits, passed_Q, is_right_Q, embedder.device, false_accepts
            wave_limits.append(_wave_limit(*judged_by))
            limit = replace(limit, false_reject=wave_limits[-1].false_reject)
        limits.append(limit)
    # 3. Thresholds for parts of the longest excerpts, wherever they begin, and for halves that agree.
    count = [
        num_segments(round(part_s * RATE_HZ), embedder.segment_samples, database.hop_samples) for part_s in PARTS_S
    ]
    parts = _part_limits(vectors_QMD, sounds_QMD, rows, groups, database, count, false_accepts)
    pairs = _pair_limits(vectors_QMD, rows, groups, database, count[-1], embedder.device, false_accepts)
    progress("calibration: search", len(lengths_s), len(lengths_s))
    flat_QD = vectors_QMD.reshape(-1, vectors_QMD.shape[2])
    return Limits(tuple(limits), parts, pairs, tuple(wave_limits)), flat_QD[
        np.random.default_rng(0).permutation(len(flat_QD))[:NUM_CALIBRATION]
    ]


def _longest(music: Corpus, database: Fingerprints, lengths_s: Sequence[float]) -> float | None:
    """Return the longest of these lengths that half of the tracks, and at least two, have; None if there is none."""
    seconds = music.lengths[database.tracks] / RATE_HZ
    fits = [length for length in lengths_s if (seconds >= length).sum() >= max(FEWEST_TRACKS, len(seconds) / 2)]
    return max(fits, default=None)


def _excerpts(
    music: Corpus,
    noise: Corpus,
    database: Fingerprints,
    num_samples: int,
    progress: Progress,
    unseen: npt.NDArray[np.bool_] | None = None,
) -> tuple[Ints, list[Floats]]:
    """Return excerpts of the database's tracks: the row of each excerpt's track, and its audio (T,) with peak 1."""
    draw = np.random.default_rng(0)
    long_enough = np.flatnonzero(music.lengths[database.tracks] >= num_samples)
    new = long_enough if unseen is None else long_enough[unseen[long_enough]]
    long_enough = new if len(new) >= FEWEST_UNSEEN else long_enough
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
        raise PluginError("all excerpts of the catalogue's tracks are silent")
    return np.array(rows), waves


def _draw_sounds(noise: Corpus, num_samples: int) -> list[Floats]:
    """Return sounds (T,) that are no music, with peak 1: noise of the data, hiss of many colours, and steady tones.

    An encoder of music has not learnt to tell them from quiet or noisy passages; without them, thresholds that held for
    other music accepted 30 % of coloured noise (docs/experiments.md).
    """
    draw = np.random.default_rng(1)
    sounds = []
    for i in range(round(SOUNDS_PER_EXCERPT * EXCERPTS)):
        hiss_T = _draw_hiss(num_samples, draw)
        if i % 3 == 0:
            track = int(draw.choice(len(noise.tracks)))
            sound_T = read_looped(noise, track, draw_noise_start(noise, track, draw), num_samples) * INT16_SCALE
        elif i % 3 == 1:
            sound_T = hiss_T
        else:
            hz, level = draw.uniform(60, 4_000, size=3), draw.uniform(0, 1, size=3)
            tones_T = level @ np.sin(2 * np.pi * np.outer(hz, np.arange(num_samples)) / RATE_HZ)
            sound_T = tones_T + draw.uniform(0, 0.1) * hiss_T
        sounds.append(normalise_peak(sound_T.astype(np.float32)))
    return sounds


def _draw_hiss(num_samples: int, draw: np.random.Generator) -> Floats:
    """Return noise (T,) with peak 1, of a power that falls with 0 to 6 dB per octave."""
    spectrum_F = np.fft.rfft(draw.normal(0, 1, num_samples))
    coloured_F = spectrum_F / np.maximum(np.arange(len(spectrum_F)), 1) ** draw.uniform(0, 1)
    return normalise_peak(np.fft.irfft(coloured_F, num_samples))


def _add_noise(wave_T: Floats, noise: Corpus, snr_db: float | None, draw: np.random.Generator) -> Floats:
    if snr_db is None:
        return wave_T
    track = int(draw.choice(len(noise.tracks)))
    start = draw_noise_start(noise, track, draw)
    noise_T = read_looped(noise, track, start, len(wave_T)).astype(np.float32) * INT16_SCALE
    return wave_T + np.float32(noise_gain(wave_T, noise_T, snr_db)) * noise_T


def _report_progress(batches: Iterator[Floats], total: int, progress: Progress) -> Iterator[Floats]:
    done = 0
    for batch in batches:
        progress("calibration: embed", done, total)
        yield batch
        done += len(batch)
    progress("calibration: embed", total, total)


def _limit(
    excerpts: _Excerpts, database: Fingerprints, device: torch.device, share: float, false_accepts: float
) -> tuple[Limit, Bools, Bools]:
    """Return the threshold that this share of impostors and of sounds passes, and what it rejects.

    And which impostors pass it, and which excerpts pass it and are found in their own track, both (Q,).
    """
    vectors_QMD, rows, groups = excerpts.vectors_QMD, excerpts.rows, excerpts.groups
    impostor_Q = search_diagonals(vectors_QMD, database, 1, groups[rows], device, groups).scores_QR[:, 0]
    own_Q = np.array([_score_in_track(vectors_QMD[q], database, row) for q, row in enumerate(rows)])
    sound_Q = search_diagonals(excerpts.sounds_QMD, database, 1, device=device).scores_QR[:, 0]
    limit = _safe_threshold(impostor_Q, groups[rows], share, WHOLE_REACH)
    limit = max(limit, threshold(sound_Q, share))
    is_right_Q = (own_Q >= limit) & ~(impostor_Q > own_Q)
    told = Limit(vectors_QMD.shape[1], limit, len(rows), false_accepts, float(1 - is_right_Q.mean()))
    return told, impostor_Q >= limit, is_right_Q


def _wave_limit(
    excerpts: _Excerpts,
    database: Fingerprints,
    bits: SignBits,
    passed_Q: Bools,
    is_right_Q: Bools,
    device: torch.device,
    false_accepts: float,
) -> Limit:
    """Return the least score by the wave, and the share of excerpts that neither it nor fingerprints accept rightly.

    WAVE_SHARE of the impostors, beside those that passed by their fingerprints, and of the sounds pass it; chance does
    not. Impostors score high where works share loops, sample by sample.
    """
    vectors_QMD, rows, groups = excerpts.vectors_QMD, excerpts.rows, excerpts.groups
    impostors = search_diagonals(vectors_QMD, database, MOST_PROPOSED, groups[rows], device, groups).places_QR
    everywhere = search_diagonals(vectors_QMD, database, MOST_PROPOSED, device=device).places_QR
    near_sounds = search_diagonals(excerpts.sounds_QMD, database, MOST_PROPOSED, device=device).places_QR
    impostor_Q = _score_by_wave(_hear_lines(excerpts.waves, impostors, database, bits))
    sound_Q = _score_by_wave(_hear_lines(excerpts.sounds, near_sounds, database, bits))
    heard = _hear_lines(excerpts.waves, everywhere, database, bits)
    share = WAVE_SHARE * false_accepts
    limit = max(threshold(np.where(passed_Q, np.nan, impostor_Q), share), threshold(sound_Q, share), CERTAIN)
    if 0 < share < 1 / len(np.unique(groups[rows])):
        limit = max(limit, FEW_WORKS * max(CERTAIN, float(impostor_Q.max())))
    is_own_Q = [line is not None and groups[line.row] == groups[row] for line, row in zip(heard, rows, strict=True)]
    is_right_Q = is_right_Q | ((_score_by_wave(heard) >= limit) & np.array(is_own_Q))
    return Limit(vectors_QMD.shape[1], limit, len(rows), false_accepts, float(1 - is_right_Q.mean()))


def _hear_lines(
    waves: Sequence[Floats], places_QR: Ints, database: Fingerprints, bits: SignBits
) -> list[HeardLine | None]:
    """Return the line of each excerpt by the wave, near these places of the database; a place of -1 is none."""
    lines = []
    for wave_T, place_R in zip(waves, places_QR, strict=True):
        place_C = place_R[place_R >= 0]
        row_C = database.track_row_of(place_C)
        offset_C = (place_C - database.first_vector[row_C]) * database.hop_samples
        lines.append(find_line(hear(wave_T), bits, 0, len(wave_T), row_C, offset_C))
    return lines


def _score_by_wave(lines: Sequence[HeardLine | None]) -> Floats:
    """Return the score of each line; 0 if there is none."""
    return np.array([0.0 if line is None else line.score for line in lines], dtype=np.float32)


def _safe_threshold(impostor_Q: Floats, work_Q: Ints, share: float, reach: float) -> float:
    """Return the threshold that this share of impostors passes, also of music that is not among these works.

    Excerpts of one work are alike, so that a few works say little of a hundredth of all music, however many excerpts
    are taken. Below 1 / share works the tail is therefore extrapolated, by Student's t with one sample per work, to at
    most the share `reach` of the way from the best impostor to a perfect match.
    """
    limit, num_works = threshold(impostor_Q, share), len(np.unique(work_Q))
    known_Q = impostor_Q[np.isfinite(impostor_Q)]
    if not 0 < share < 1 / num_works or len(known_Q) < 2:
        return limit
    from scipy.stats import t

    deviation = float(known_Q.std(ddof=1)) * (1 + 1 / num_works) ** 0.5
    beyond = float(known_Q.mean()) + float(t.ppf(1 - share, max(1, num_works - 1))) * deviation
    best = float(known_Q.max())
    return float(max(limit, min(beyond, best + reach * (1 - best))))


def _part_limits(
    vectors_QMD: Floats,
    sounds_QMD: Floats,
    rows: Ints,
    groups: Ints,
    database: Fingerprints,
    part_segments: Sequence[int],
    share: float,
) -> tuple[Limit, ...]:
    """Return the thresholds that the best part of an impostor, of each length, passes in PART_SHARE of `share`."""
    lengths = [length for length in part_segments if length < vectors_QMD.shape[1]]
    impostor_QL = best_part_scores(vectors_QMD, database, lengths, groups[rows], groups)
    sound_QL = best_part_scores(sounds_QMD, database, lengths, np.full(len(sounds_QMD), -1), groups)
    own_QL = np.array([_part_scores_in_track(vectors_QMD[q], database, row, lengths) for q, row in enumerate(rows)])
    limits = []
    for i, length in enumerate(lengths):
        limit = _safe_threshold(impostor_QL[:, i], groups[rows], PART_SHARE * share, PART_REACH)
        limit = max(limit, threshold(sound_QL[:, i], PART_SHARE * share))
        limits.append(Limit(length, limit, len(rows), share, float((own_QL[:, i] < limit).mean())))
    return tuple(limits)


def _pair_limits(
    vectors_QMD: Floats,
    rows: Ints,
    groups: Ints,
    database: Fingerprints,
    segments: int,
    device: torch.device,
    share: float,
) -> tuple[Limit, ...]:
    """Return the thresholds for two neighbouring halves, and for two neighbouring whole excerpts; none if too short.

    Each is the threshold that impostors pass whose beginning and end have the same best line. It is not below the
    median of the impostors of the length of one part, most of which do not agree: a line must sound alike, too. Two
    excerpts of one impostor agree less often than its halves do, as each has to fit for twice as long.
    """
    between = vectors_QMD.shape[1] - segments
    if between < segments:
        return ()
    first, last = (
        search_diagonals(vectors_QMD[:, part], database, 1, groups[rows], device, groups)
        for part in (slice(0, segments), slice(between, None))
    )
    whole_Q = search_diagonals(vectors_QMD, database, 1, groups[rows], device, groups).scores_QR[:, 0]
    place_Q, other_Q = first.places_QR[:, 0], last.places_QR[:, 0]
    same_track_Q = database.track_row_of(place_Q) == database.track_row_of(other_Q)
    agrees_Q = (place_Q >= 0) & same_track_Q & (np.abs(other_Q - place_Q - between) <= SAME_LINE)
    score_Q = (first.scores_QR[:, 0] + last.scores_QR[:, 0]) / 2
    agreed = threshold(np.where(agrees_Q, score_Q, np.nan), PAIR_SHARE * share)
    own_Q = np.array([_score_in_track(vectors_QMD[q], database, row) for q, row in enumerate(rows)])
    limits = []
    for length, impostor_Q in ((segments, score_Q), (vectors_QMD.shape[1], whole_Q)):
        limit = max(agreed, float(np.nanmedian(impostor_Q)))
        limits.append(Limit(length, limit, len(rows), share, float((own_Q < limit).mean())))
    return tuple(limits)


def _part_scores_in_track(vectors_MD: Floats, database: Fingerprints, row: int, lengths: Sequence[int]) -> Floats:
    """Return the best score of a part of a query in one track, for each length."""
    one_track = _select_track(database, row)
    scores_QL = best_part_scores(vectors_MD[None], one_track, lengths, np.array([-1]), np.zeros(1, np.int64))
    score_L: Floats = scores_QL[0]
    return score_L


def _score_in_track(vectors_MD: Floats, database: Fingerprints, row: int) -> float:
    """Return the best score of a query in one track."""
    return float(search_diagonals(vectors_MD[None], _select_track(database, row), 1).scores_QR[0, 0])


def _select_track(database: Fingerprints, row: int) -> Fingerprints:
    """Return the fingerprints of one track."""
    first, last = database.first_vector[row], database.first_vector[row + 1]
    return Fingerprints(database.vectors[first:last], np.zeros(1, np.int64), np.array([0, last - first]), 1, "")
