"""The check of a matcher plug-in.

Shape legend: B queries, R ranked answers, T samples.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import StoreError
from bench.match.contract import Matcher
from bench.testing._common import SEED, check_module, expect
from bench.values import INT16_PEAK, INT16_SCALE, RATE_HZ, Floats, Found, Ints

Tracks = Sequence[npt.NDArray[np.int16]]

NUM_TRACKS, TRACK_S = 8, 16.0
QUERY_S = 5.0  # every published system is tested at this length
NUM_QUERIES = 40
ANSWERS = 6
SHORT_TRACK_S = 0.1  # a track may be shorter than any query
TOO_SHORT = 10  # samples in which nothing can be heard
LEAST_FOUND = 0.95  # of clean queries: matchers have grids of their own, and may miss one
TOLERANCE_S = 0.05  # of half of the starts: the benchmark's


def check_matcher(plugin: ModuleType, config: Any = None) -> None:
    """Check a matcher plug-in, built with its default config if none is given.

    Rules: the module has its parts, and a matcher its sizes; answers are int64 rows and starts and float32 scores,
    (B, R), best first, equal ones by row and then by start, -1 and NaN only at the end, starts at 0 or later, none
    twice; any number of queries works, 0 included; each query is answered alone, and always alike; fewer answers are
    the first of more; a track to leave out is never answered; read-only waves are accepted and left as they are. Of
    clean cuts of 5 s of made-up music 19 in 20 are found in their track, half of the starts within 50 ms, and rows
    follow the order in which tracks are given. Silence, in queries or in the database, and what is too short have no
    answer. Of two identical tracks the earlier comes first. Prints made twice give the same answers, and a file that is
    cut off or missing is refused.
    """
    check_module(plugin)
    config = plugin.Config() if config is None else config
    _check_parts(plugin)
    tracks = _compose_tracks()
    with tempfile.TemporaryDirectory() as name:
        matcher = _build(plugin, config, tracks, Path(name) / "music")
        _check_sizes(matcher)
        query_BT, row_B, start_B = _cut_queries(tracks)
        found = matcher.find(query_BT, ANSWERS)
        _check_answers(found, len(query_BT), ANSWERS, len(tracks))
        _check_found(found, row_B, start_B)
        _check_each_alone(matcher, query_BT, found)
        _check_left_out(matcher, query_BT, row_B)
        _check_saving(plugin, config, tracks, query_BT, found, Path(name))
        _check_nothing_heard(plugin, config, matcher, query_BT[:2], Path(name))
        _check_order_of_tracks(plugin, config, tracks, query_BT, row_B, Path(name))
        _check_twins(plugin, config, tracks, query_BT, row_B, Path(name))


def _check_parts(plugin: ModuleType) -> None:
    for part in ("build", "load"):
        expect(callable(getattr(plugin, part, None)), f"the module has a function {part}", "none")
    known = {field.name for field in fields(plugin.Config)}
    unknown = set(getattr(plugin, "QUERY_SETTINGS", ())) - known
    expect(not unknown, "QUERY_SETTINGS are names of settings", sorted(unknown))
    presets: dict[str, Any] = plugin.presets() if hasattr(plugin, "presets") else {}
    strange = [name for name, preset in presets.items() if not isinstance(preset, plugin.Config)]
    expect(not strange, "presets() are values of Config by name", strange)


def _check_sizes(matcher: Matcher) -> None:
    shortest_s = matcher.shortest_s
    in_range = isinstance(shortest_s, (int, float)) and 0 <= shortest_s <= QUERY_S
    expect(in_range, f"shortest_s is a number of seconds up to {QUERY_S:g}", shortest_s)
    size, fixed = matcher.num_bytes, matcher.fixed_bytes
    expect(isinstance(size, int) and size > 0, "num_bytes is a size", size)
    expect(isinstance(fixed, int) and 0 <= fixed <= size, "fixed_bytes is a part of num_bytes", fixed)


def _check_answers(found: Found, num_queries: int, num_answers: int, num_tracks: int) -> None:
    for name, dtype in (("row_QR", np.int64), ("start_QR", np.int64), ("score_QR", np.float32)):
        array = getattr(found, name)
        expect(array.shape == (num_queries, num_answers), f"{name} is (B, num_answers)", array.shape)
        expect(array.dtype == dtype, f"{name} is {np.dtype(dtype)}", array.dtype)
    row_QR, score_QR = found.row_QR, found.score_QR
    inside = (row_QR >= -1) & (row_QR < num_tracks)
    expect(inside.all(), "rows are numbers of tracks, or -1", row_QR[~inside][:1])
    is_answer = row_QR >= 0
    expect((is_answer[:, :-1] >= is_answer[:, 1:]).all(), "-1 comes only after the last answer", row_QR[:1])
    expect((np.isfinite(score_QR) == is_answer).all(), "scores are NaN where there is no answer, only there", score_QR)
    expect((found.start_QR[is_answer] >= 0).all(), "starts are at 0 or later", found.start_QR[is_answer].min(initial=0))
    for row_R, start_R, score_R in zip(row_QR, found.start_QR, score_QR, strict=True):
        answers = [(-score, row, start) for row, start, score in zip(row_R, start_R, score_R, strict=True) if row >= 0]
        scores = [answer[0] for answer in answers]
        expect(scores == sorted(scores), "answers come best first", [-score for score in scores])
        expect(answers == sorted(answers), "equal scores come by row, then by start", answers)
        places = [answer[1:] for answer in answers]
        expect(len(set(places)) == len(places), "no place is answered twice", places)


def _check_found(found: Found, row_B: Ints, start_B: Ints) -> None:
    is_right = found.row_QR[:, 0] == row_B
    rule = f"of clean cuts of {QUERY_S:g} s, {LEAST_FOUND:.0%} are found in their track"
    expect(is_right.mean() >= LEAST_FOUND, rule, f"{is_right.mean():.1%}")
    off_s = np.median(np.abs(found.start_QR[:, 0] - start_B)[is_right]) / RATE_HZ
    rule = f"starts are in samples at {RATE_HZ} Hz, and half of them right to {TOLERANCE_S:g} s"
    expect(off_s <= TOLERANCE_S, rule, f"a median error of {off_s:.3f} s")


def _check_each_alone(matcher: Matcher, query_BT: Floats, found: Found) -> None:
    few_BT = query_BT[:4].copy()
    again = matcher.find(few_BT, ANSWERS)
    expect(np.array_equal(few_BT, query_BT[:4]), "queries are left as they were", "other samples")
    _expect_same(again, _rows(found, slice(4)), "the same query has the same answers, whatever else is asked")
    for query in range(3):
        alone = matcher.find(query_BT[query : query + 1], ANSWERS)
        _expect_same(alone, _rows(found, slice(query, query + 1)), "a query is answered alone as in a batch")
    _check_answers(matcher.find(query_BT[:0], 3), 0, 3, NUM_TRACKS + 1)
    first = matcher.find(few_BT, 1)
    wanted = Found(found.row_QR[:4, :1], found.start_QR[:4, :1], found.score_QR[:4, :1])
    _expect_same(first, wanted, "fewer answers are the first of more")
    many = matcher.find(few_BT, 500)
    _check_answers(many, 4, 500, NUM_TRACKS + 1)


def _check_left_out(matcher: Matcher, query_BT: Floats, row_B: Ints) -> None:
    nothing = np.full(len(query_BT), -1)
    _expect_same(matcher.find(query_BT, 2, nothing), matcher.find(query_BT, 2), "-1 in without_B leaves nothing out")
    others = matcher.find(query_BT, ANSWERS, row_B)
    _check_answers(others, len(query_BT), ANSWERS, NUM_TRACKS + 1)
    expect((others.row_QR != row_B[:, None]).all(), "a track to leave out is never answered", others.row_QR[:1])
    other_B = (row_B + 1) % NUM_TRACKS
    is_right = matcher.find(query_BT, 1, other_B).row_QR[:, 0] == row_B
    expect(
        is_right.mean() >= LEAST_FOUND, "each query leaves its own track out, and no other", f"{is_right.mean():.1%}"
    )


def _check_nothing_heard(plugin: ModuleType, config: Any, matcher: Matcher, query_BT: Floats, folder: Path) -> None:
    silence_BT = np.zeros_like(query_BT)
    _expect_none(matcher.find(silence_BT, 3), "a silent query has no answer")
    _expect_none(matcher.find(query_BT[:, :TOO_SHORT], 3), f"a query of {TOO_SHORT} samples has no answer")
    shortest = math.ceil(matcher.shortest_s * RATE_HZ)
    if shortest > 1:
        _expect_none(matcher.find(query_BT[:, : shortest - 1], 3), "a query shorter than shortest_s has no answer")
    silent = _build(plugin, config, [np.zeros(round(TRACK_S * RATE_HZ), np.int16)], folder / "silent")
    _expect_none(silent.find(query_BT, 3), "nothing is found in a silent track")
    _expect_none(silent.find(silence_BT, 3), "silence is not found in a silent track")


def _check_order_of_tracks(
    plugin: ModuleType, config: Any, tracks: Tracks, query_BT: Floats, row_B: Ints, folder: Path
) -> None:
    """Check that a database of the same tracks, each in another row, is answered by the new rows, never by the old."""
    moved = _build(plugin, config, [*tracks[1:], tracks[0]], folder / "moved")
    found_B = moved.find(query_BT, 1).row_QR[:, 0]
    by_old, by_new = (found_B == row_B).mean(), (found_B == (row_B - 1) % len(tracks)).mean()
    rule = "rows follow the order in which tracks are given"
    expect(by_new >= LEAST_FOUND and by_old <= 1 - LEAST_FOUND, rule, f"{by_new:.1%} by that, {by_old:.1%} by another")


def _check_twins(plugin: ModuleType, config: Any, tracks: Tracks, query_BT: Floats, row_B: Ints, folder: Path) -> None:
    matcher = _build(plugin, config, [tracks[1], tracks[0], tracks[2], tracks[0]], folder / "twins")
    found = matcher.find(query_BT[row_B == 0], 2)
    is_pair = (found.row_QR == [1, 3]).all(axis=1) & (found.start_QR[:, 0] == found.start_QR[:, 1])
    expect(is_pair.mean() >= LEAST_FOUND, "of two identical tracks the earlier comes first", found.row_QR[~is_pair][:1])
    same = (found.score_QR[is_pair, 0] == found.score_QR[is_pair, 1]).all()
    expect(same, "identical tracks have the same score", found.score_QR[is_pair][:1])


def _check_saving(
    plugin: ModuleType, config: Any, tracks: Tracks, query_BT: Floats, found: Found, folder: Path
) -> None:
    again = _build(plugin, config, tracks, folder / "again")
    _expect_same(again.find(query_BT, ANSWERS), found, "prints made twice give the same answers")
    del again  # it may have mapped the files
    files = sorted(path for path in (folder / "again").rglob("*") if path.is_file())
    expect(len(files) > 0, "build writes at least one file below the folder", 0)
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        _expect_refused(plugin, config, folder / "again", f"load raises StoreError if {path.name} is cut off")
        path.unlink()
        _expect_refused(plugin, config, folder / "again", f"load raises StoreError if {path.name} is missing")
        path.write_bytes(content)


def _expect_refused(plugin: ModuleType, config: Any, folder: Path, rule: str) -> None:
    try:
        plugin.load(config, folder)
    except StoreError:
        return
    except Exception as error:
        raise AssertionError(f"the contract says: {rule}; found {type(error).__name__}: {error}") from error
    expect(False, rule, "a matcher")


def _expect_same(found: Found, wanted: Found, rule: str) -> None:
    for name in ("row_QR", "score_QR"):
        one, other = getattr(found, name), getattr(wanted, name)
        expect(np.array_equal(one, other, equal_nan=name == "score_QR"), rule, f"{name} {one[:1]} and {other[:1]}")
    is_answer = wanted.row_QR >= 0
    one, other = found.start_QR[is_answer], wanted.start_QR[is_answer]
    expect(np.array_equal(one, other), rule, f"starts {one[:ANSWERS]} and {other[:ANSWERS]}")


def _expect_none(found: Found, rule: str) -> None:
    num_queries, num_answers = found.row_QR.shape
    _check_answers(found, num_queries, num_answers, NUM_TRACKS + 1)
    expect((found.row_QR == -1).all(), rule, found.row_QR[:1])


def _rows(found: Found, queries: slice) -> Found:
    return Found(found.row_QR[queries], found.start_QR[queries], found.score_QR[queries])


def _build(plugin: ModuleType, config: Any, tracks: Tracks, folder: Path) -> Matcher:
    """Return the matcher of tracks that can be read once, as those of a corpus."""
    folder.mkdir()
    given: Iterator[npt.NDArray[np.int16]] = iter(tracks)
    plugin.build(config, given, folder)
    left = sum(1 for _ in given)
    expect(left == 0, "build reads all tracks", f"{left} left")
    matcher: Matcher = plugin.load(config, folder)
    return matcher


def _compose_tracks() -> list[npt.NDArray[np.int16]]:
    """Return the made-up music, read-only, and a track that is too short to find anything in."""
    from bench.registry import load

    synth = load("dataset", "synth")
    source = synth.build(synth.Config(num_train=0, num_val=0, num_test=NUM_TRACKS, seconds=TRACK_S), None)
    waves = [source.load(track) for track in source.tracks()]
    tracks = [np.round(wave_T * INT16_PEAK).astype(np.int16) for wave_T in waves]
    tracks.append(tracks[0][: round(SHORT_TRACK_S * RATE_HZ)].copy())
    for samples_T in tracks:
        samples_T.flags.writeable = False
    return tracks


def _cut_queries(tracks: Tracks) -> tuple[Floats, Ints, Ints]:
    """Return clean cuts of the music, read-only and of peak 1, with their rows and starts."""
    draw = np.random.default_rng(SEED)
    num_samples = round(QUERY_S * RATE_HZ)
    row_B = np.arange(NUM_QUERIES) % NUM_TRACKS
    start_B = draw.integers(0, len(tracks[0]) - num_samples, NUM_QUERIES)
    cut_BT = np.stack(
        [tracks[int(row)][start : start + num_samples] for row, start in zip(row_B, start_B, strict=True)]
    )
    wave_BT = cut_BT.astype(np.float32) * np.float32(INT16_SCALE)
    wave_BT /= np.abs(wave_BT).max(axis=1, keepdims=True)
    wave_BT.flags.writeable = False
    return wave_BT, row_B, start_B
