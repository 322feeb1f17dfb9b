"""Tuning: a made-up index whose recall and effort are known, and FALCONN for real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench.catalogue import tune
from bench.catalogue.tune import Trial, best_trial, run_trials
from bench.errors import ConfigError
from bench.search.indexes import exact, falconn

N = 100


@dataclass(frozen=True)
class Known:
    """Names the true nearest first for as many of 100 queries as it is told."""

    right: int
    num_bytes: int = 7
    exact: bool = False

    def neighbours(self, queries_QD: np.ndarray, top_k: int) -> np.ndarray:
        return np.where(np.arange(len(queries_QD)) < self.right, np.arange(len(queries_QD)), -1)[:, None]


@pytest.fixture
def plugin() -> Any:
    made = ModuleType("bench.search.indexes.made_up")
    asked: list[int] = []

    def trials(config: object, vectors: np.ndarray) -> Iterator[Iterator[tuple[int, Known]]]:
        def group(rights: list[int]) -> Iterator[tuple[int, Known]]:
            for right in rights:
                asked.append(right)
                yield right, Known(right)

        yield group([50, 95, 99])
        yield group([10, 20])
        yield group([96, 97])

    made.trials = trials  # type: ignore[attr-defined]
    made.comparable_runs = asked  # type: ignore[attr-defined]
    return made


def test_a_group_ends_where_the_recall_is_reached(plugin: Any) -> None:
    vectors = np.eye(N, dtype=np.float32)
    found = list(run_trials(plugin, None, vectors, vectors, np.arange(N), 0.95))
    assert [t.config for t in found] == plugin.comparable_runs == [50, 95, 10, 20, 96]
    assert [t.recall for t in found] == [0.5, 0.95, 0.1, 0.2, 0.96]
    assert all(t.num_bytes == 7 and t.batch_ms >= 0 for t in found)


def test_the_best_is_the_quickest_that_finds_enough() -> None:
    trials = [Trial(i, recall, ms, 1) for i, (recall, ms) in enumerate([(0.9, 1.0), (0.99, 3.0), (0.98, 2.0)])]
    assert best_trial(trials, 0.98) is trials[2]
    assert best_trial(trials, 0.985) is trials[1]
    assert best_trial(trials, 0.999) is None


def test_an_index_with_nothing_to_tune_is_named() -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(ConfigError, match="'exact' has nothing to tune"):
        list(tune.run_trials(exact, exact.Config(), vectors, vectors, np.arange(3), 0.9))


def test_falconn_is_tuned_to_a_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("falconn", reason="falconn is built from source by `make setup`")
    monkeypatch.setattr(falconn, "TABLES", (4, 8))
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((2_000, 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:200] + 0.1 * draw.standard_normal((200, 24)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    truth = exact.build(exact.Config(), vectors).neighbours(queries, 1)[:, 0]
    config = falconn.Config(family="hyperplane", seed=3)
    trials = list(run_trials(falconn, config, vectors, queries, truth, 0.9))
    chosen = best_trial(trials, 0.9)
    assert chosen is not None
    assert {t.config.tables for t in trials} == {4, 8} and {t.config.bits for t in trials} == {9, 11, 13}
    assert all(t.config.family == "hyperplane" and t.config.seed == 3 for t in trials)
    again = falconn.build(chosen.config, vectors).neighbours(queries, 1)[:, 0]
    assert np.mean(again == truth) == pytest.approx(chosen.recall)
    for tables in (4, 8):
        for bits in (9, 11, 13):
            recalls = [t.recall for t in trials if (t.config.tables, t.config.bits) == (tables, bits)]
            assert recalls == sorted(recalls)
            assert all(recall < 0.9 for recall in recalls[:-1])
