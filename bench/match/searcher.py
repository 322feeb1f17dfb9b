"""Searches a matcher's own database of prints, with the very waves that encoders are given.

Shape legend: B batch, T samples, Q queries, R ranked answers, P wrong answers, L lags.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench import registry
from bench.audio.crop import read_tracks
from bench.audio.pcm import Corpus
from bench.errors import DataError, StoreError
from bench.match.contract import Matcher
from bench.registry import name_plugin, require_rule
from bench.search.cached import build_key
from bench.search.repetitions import find_repeated_samples
from bench.search.searcher import Answers, Search
from bench.settings import EvalConfig
from bench.store import Store, digest
from bench.timing import Timer
from bench.values import OWN, RATE_HZ, Floats, Found, Ints, Progress

CPU = torch.device("cpu")  # where matchers run
FORMAT = 1  # of the prints in the store


@dataclass(frozen=True, eq=False)
class MatcherSearcher:
    """The prints of the database, made by a matcher that answers by itself."""

    name: str
    plugin: ModuleType
    settings: Any
    matcher: Matcher
    music: Corpus
    tracks: Ints
    config: EvalConfig
    key: tuple[object, ...]
    seconds: float
    timed: Timer
    device: torch.device = CPU

    @property
    def facts(self) -> dict[str, Any]:
        """Return the size of the database, and the query lengths that are too short for the matcher."""
        too_short = [length_s for length_s in self.config.lengths_s if length_s < self.matcher.shortest_s]
        return {
            "database_tracks": len(self.tracks),
            "shortest_query_s": self.matcher.shortest_s,
            "lengths_too_short_s": too_short,
        }

    def searches(self) -> list[Search]:
        """Return the matcher's only search."""
        answer = partial(self.answer, num_answers=self.config.top_k)
        return [Search(OWN, OWN, answer, self.matcher.num_bytes, self.matcher.fixed_bytes)]

    def fingerprint(self, tracks: Iterable[npt.NDArray[np.int16]]) -> None:
        """Make prints of whole tracks in a folder that is then removed."""
        with tempfile.TemporaryDirectory() as folder:
            self.plugin.build(self.settings, tracks, Path(folder))

    def search(self, waves: Iterable[Floats], own_Q: Ints) -> Iterator[Answers]:
        """Yield the matcher's answers; a query that is too short for it has none, and is a miss."""
        found, impostors, num_samples, first = [], [], 0, 0
        for wave_BT in waves:
            num_samples = wave_BT.shape[1]
            own_B = own_Q[first : first + len(wave_BT)]
            first += len(wave_BT)
            with self.timed("match"):
                found.append(self.answer(wave_BT, self.config.top_k))
            with self.timed("match impostors"):
                impostors.append(self.answer(wave_BT, 1, own_B).score_QR[:, 0])
        answers = _join(found)
        tolerance_samples = round(self.config.tolerance_ms * RATE_HZ / 1000)
        repetitions = partial(find_repeated_samples, self.music, self.tracks, answers, num_samples, tolerance_samples)
        yield Answers(OWN, OWN, answers, np.concatenate(impostors), repetitions)

    def answer(self, wave_BT: Floats, num_answers: int, without_B: Ints | None = None) -> Found:
        """Return the matcher's answers to waves of one length. Raises: PluginError if it breaks its contract."""
        if wave_BT.shape[1] < self.matcher.shortest_s * RATE_HZ:
            return _find_nothing(len(wave_BT), num_answers)
        with name_plugin("matcher", self.name, self.plugin, f"fails on queries of {wave_BT.shape[1] / RATE_HZ:g} s"):
            found = self.matcher.find(wave_BT, num_answers, without_B)
            return check_answers(found, (len(wave_BT), num_answers), len(self.tracks))


def build_matcher_searcher(
    name: str, plugin: ModuleType, config: Any, music: Corpus, tests: EvalConfig, store: Store, progress: Progress
) -> MatcherSearcher:
    """Return the prints of all test tracks, from the store or made now.

    Raises: PluginError if the plug-in fails; DataError if stored prints are damaged.
    """
    tracks = music.numbers("test")
    key = build_key(plugin, config, digest(FORMAT, music.digest, tracks.tolist()))

    def build(partial_folder: Path) -> None:
        folder = partial_folder / "prints"
        shutil.rmtree(folder, ignore_errors=True)  # what a killed build left
        folder.mkdir()
        with name_plugin("matcher", name, plugin, "cannot be built by build(config, tracks, folder)"):
            plugin.build(config, read_tracks(music, tracks, "database", progress), folder)

    folder = store.fetch("matchers", key, build)
    with name_plugin("matcher", name, plugin, "cannot be loaded by load(config, folder)"):
        try:
            matcher: Matcher = plugin.load(config, folder / "prints")
        except StoreError as error:
            raise DataError(f"the prints of {name} in the store cannot be used: {error}") from error
    answers = (key, registry.source_digest(plugin), digest(config))
    return MatcherSearcher(
        name, plugin, config, matcher, music, tracks, tests, answers, store.seconds("matchers", key), store.timed
    )


def check_answers(found: Found, shape: tuple[int, int], num_tracks: int) -> Found:
    """Return answers with whole starts that are not below 0. Raises: BrokenRuleError."""
    shapes = {np.shape(part) for part in (found.row_QR, found.start_QR, found.score_QR)}
    require_rule(shapes == {shape}, f"find returns arrays of shape (B, num_answers), here {shape}", shapes)
    inside = (found.row_QR >= -1) & (found.row_QR < num_tracks)
    require_rule(inside.all(), f"rows are below {num_tracks}, or -1", found.row_QR[~inside][:1])
    score_QR = np.asarray(found.score_QR, dtype=np.float32)
    told = np.isnan(score_QR) == (found.row_QR < 0)
    require_rule(told.all(), "a score is NaN where there is no answer, and only there", score_QR[~told][:1])
    return Found(found.row_QR.astype(np.int64), np.maximum(found.start_QR, 0).astype(np.int64), score_QR)


def _find_nothing(num_queries: int, num_answers: int) -> Found:
    shape = (num_queries, num_answers)
    return Found(np.full(shape, -1, np.int64), np.zeros(shape, np.int64), np.full(shape, np.nan, np.float32))


def _join(parts: list[Found]) -> Found:
    row_QR, start_QR, score_QR = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("row_QR", "start_QR", "score_QR")
    )
    return Found(row_QR, start_QR, score_QR)
