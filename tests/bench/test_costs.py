"""What an answer costs: counted by hand with a searcher that takes a known time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.costs import measure_costs
from bench.search.searcher import Answers, Search
from bench.settings import EvalConfig
from bench.store import Store
from bench.values import RATE_HZ, Floats, Ints, no_progress

CONFIG = EvalConfig(lengths_s=(0.1, 1.0), cost_queries=6)
TRACK_S, TRACKS = 90.0, 3


def spend(seconds: float) -> None:
    """Use this much CPU time."""
    began_s = time.process_time()
    while time.process_time() - began_s < seconds:
        pass


class Slow:
    """Answers in 4 ms per second of query, fingerprints 1,000 s per second, and needs 540 bytes, 90 of them fixed."""

    key = ("slow",)
    tracks = np.arange(TRACKS)
    facts: dict[str, Any] = {"lengths_too_short_s": [0.1]}  # noqa: RUF012
    seconds = 0.0
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.answered: list[int] = []

    def searches(self) -> list[Search]:
        return [Search("own", "own", self.answer, 540, 90)]

    def answer(self, wave_BT: Floats) -> None:
        self.threads.add(torch.get_num_threads())
        self.answered.append(len(wave_BT))
        spend(0.004 * wave_BT.shape[1] / RATE_HZ)

    def fingerprint(self, tracks: Iterable[np.ndarray]) -> None:
        for wave_T in tracks:
            spend(len(wave_T) / RATE_HZ / 1_000)

    def search(self, waves: Iterator[Floats], own_Q: Ints) -> Iterator[Answers]:
        raise AssertionError("costs are measured one query at a time")


def measured(tmp_path: Path, searcher: Slow) -> Any:
    samples = round(TRACK_S * RATE_HZ)
    music = SimpleNamespace(
        num_samples=lambda track: samples, read=lambda track, start, length: np.zeros(length, np.int16)
    )
    queries = SimpleNamespace(
        key="q", table=range(20), wave=lambda cell, query, length_s: np.zeros(round(length_s * RATE_HZ), np.float32)
    )
    data: Any = SimpleNamespace(music=music, queries=queries)
    return measure_costs(searcher, data, CONFIG, Store(tmp_path), no_progress)


def test_costs_are_those_of_one_query_on_one_thread(tmp_path: Path) -> None:
    searcher, before = Slow(), torch.get_num_threads()
    costs = measured(tmp_path, searcher).set_index("length_s")
    assert searcher.threads == {1} and set(searcher.answered) == {1} and torch.get_num_threads() == before
    assert costs.loc[1.0, "n"] == 6
    assert 4.0 <= costs.loc[1.0, "ms_per_query"] <= costs.loc[1.0, "ms_per_query_p90"] < 40
    # Two of the three tracks reach two minutes, and no clock makes a busy loop faster than it is.
    assert 100 < costs.loc[1.0, "audio_s_per_s"] <= 1_000
    assert costs["bytes_per_hour"].tolist() == pytest.approx([450 / (TRACKS * TRACK_S / 3_600)] * 2)
    assert costs["fixed_bytes"].tolist() == [90, 90] and costs["device"].tolist() == ["cpu", "cpu"]


def test_a_length_that_is_too_short_has_no_time(tmp_path: Path) -> None:
    costs = measured(tmp_path, Slow()).set_index("length_s")
    assert costs.loc[0.1, "n"] == 0 and np.isnan(costs.loc[0.1, "ms_per_query"])


def test_costs_are_measured_once(tmp_path: Path) -> None:
    first, again = Slow(), Slow()
    assert measured(tmp_path, first).equals(measured(tmp_path, again)) and again.answered == []
