"""The exact search of parts, against the slow way: every part at every place."""

from __future__ import annotations

import numpy as np
import pytest

from bench.search import parts
from bench.search.parts import best_part_scores
from bench.values import Fingerprints


def slow(query_MD: np.ndarray, database: Fingerprints, length: int, excluded: int, groups: np.ndarray) -> float:
    scores = [-np.inf]
    for row, (first, last) in enumerate(zip(database.first_vector[:-1], database.first_vector[1:], strict=True)):
        for place in range(first, last - length + 1):
            for begin in range(len(query_MD) - length + 1):
                if groups[row] != excluded:
                    pair = query_MD[begin : begin + length], database.vectors[place : place + length]
                    scores.append(float(np.einsum("md,md->", *pair)) / length)
    return max(scores)


@pytest.mark.parametrize("block", [3, 8_192])
def test_the_best_part_is_that_of_the_slow_way(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(parts, "BLOCK_LINES", block)
    draw = np.random.default_rng(1)
    database = Fingerprints(
        draw.normal(0, 1, (30, 5)).astype(np.float32), np.arange(4), np.array([0, 9, 11, 20, 30]), 1600, ""
    )
    queries_QMD = draw.normal(0, 1, (3, 7, 5)).astype(np.float32)
    queries_QMD[0, 4:] = database.vectors[:3]  # a track that begins near the end of the query
    groups, excluded_Q = np.array([0, 1, 0, 2]), np.array([-1, 0, 2])
    found_QL = best_part_scores(queries_QMD, database, [1, 3, 7], excluded_Q, groups)
    for q, excluded in enumerate(excluded_Q):
        expected = [slow(queries_QMD[q], database, length, excluded, groups) for length in (1, 3, 7)]
        assert found_QL[q] == pytest.approx(expected, rel=1e-5)
