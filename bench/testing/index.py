"""The check of an index plug-in.

Shape legend: N database vectors, Q query vectors, D dimensions, K neighbours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench.errors import StoreError
from bench.search.cached import keeps
from bench.testing._common import TOLERANCE, check_module, draw_clusters, expect
from bench.values import Floats, Ints

CODE_TOLERANCE = 0.1  # of a similarity: what codes of 8 bytes may confuse
FOUND_BY_CODES = 0.95  # share of the stored vectors that an inexact index must find when asked for them


def check_index(plugin: ModuleType, config: Any = None, code_tolerance: float = CODE_TOLERANCE) -> None:
    """Check an index plug-in, built with its default config if none is given.

    Rules: neighbours are whole numbers (Q, K) of database vectors, best first by inner product (to `code_tolerance`
    where `exact` is False, as codes may confuse them; signs confuse more than 0.1), none twice, -1 only at the end,
    equal ones by number; any number of queries works, 0 included, and a K above the size of the database; read-only
    vectors are accepted and left unchanged; the same query has the same answer; a stored vector finds itself (19 in 20
    do where `exact` is False). An exact index agrees with all inner products. An index that can be saved gives the same
    answers when it is loaded again, and refuses half a file.
    """
    check_module(plugin)
    config = plugin.Config() if config is None else config
    vectors_ND, queries_QD = draw_clusters(1_200, 32, 60)
    copy_ND = vectors_ND.copy()
    vectors_ND.flags.writeable = False
    index = plugin.build(config, vectors_ND)
    expect(isinstance(index.exact, bool), "exact is a truth value", index.exact)
    expect(isinstance(index.num_bytes, int) and index.num_bytes > 0, "num_bytes is a size", index.num_bytes)
    tolerance = TOLERANCE if index.exact else code_tolerance
    _check_answers(index, vectors_ND, queries_QD, tolerance)
    expect(np.array_equal(vectors_ND, copy_ND), "the database is left as it was", "other values")
    few = plugin.build(config, vectors_ND[:7])
    _check_neighbours(few.neighbours(queries_QD[:4], 9), vectors_ND[:7], queries_QD[:4], 9, tolerance)
    _check_order_of_equals(plugin, config)
    if keeps(plugin, config):
        _check_saving(plugin, config, index, vectors_ND, queries_QD)
    if index.exact:
        _check_exact(plugin, config, vectors_ND, queries_QD)


def _check_answers(index: Any, vectors_ND: Floats, queries_QD: Floats, tolerance: float) -> None:
    found_QK = index.neighbours(queries_QD, 10)
    _check_neighbours(found_QK, vectors_ND, queries_QD, 10, tolerance)
    again_QK = index.neighbours(queries_QD, 10)
    expect(np.array_equal(found_QK, again_QK), "the same query has the same answer", _describe(found_QK, again_QK))
    nothing = index.neighbours(queries_QD[:0], 3).shape
    expect(nothing == (0, 3), "no query is answered by an array of shape (0, K)", nothing)
    stored_Q = np.arange(0, len(vectors_ND), 12)
    itself_Q = index.neighbours(vectors_ND[stored_Q], 1)[:, 0] == stored_Q
    share = 1.0 if index.exact else FOUND_BY_CODES
    expect(itself_Q.mean() >= share, "a stored vector finds itself", f"{itself_Q.mean():.1%}")


def _check_neighbours(found_QK: Ints, vectors_ND: Floats, queries_QD: Floats, top_k: int, tolerance: float) -> None:
    expect(found_QK.shape == (len(queries_QD), top_k), "neighbours are (Q, K)", found_QK.shape)
    expect(found_QK.dtype == np.int64, "neighbours are int64", found_QK.dtype)
    inside = (found_QK >= -1) & (found_QK < len(vectors_ND))
    expect(inside.all(), "neighbours are numbers of database vectors, or -1", found_QK[~inside][:1])
    for query_D, found_K in zip(queries_QD, found_QK, strict=True):
        number = found_K[found_K >= 0]
        expect((found_K[: len(number)] >= 0).all(), "-1 comes only after all that was found", found_K)
        expect(len(set(number.tolist())) == len(number), "no vector is found twice", found_K)
        similarity = vectors_ND[number] @ query_D
        expect((np.diff(similarity) <= tolerance).all(), "neighbours come best first", similarity)


def _check_exact(plugin: ModuleType, config: Any, vectors_ND: Floats, queries_QD: Floats) -> None:
    similarity_QN = queries_QD.astype(np.float64) @ vectors_ND.astype(np.float64).T
    best_QK = np.argsort(-similarity_QN, axis=1, kind="stable")[:, :10]
    found_QK = plugin.build(config, vectors_ND).neighbours(queries_QD, 10)
    short = np.take_along_axis(similarity_QN, best_QK, 1) - np.take_along_axis(similarity_QN, found_QK, 1)
    largest = np.abs(short).max() < TOLERANCE
    expect(largest, "an exact index finds the largest inner products", _describe(best_QK, found_QK))
    few = plugin.build(config, vectors_ND[:7]).neighbours(queries_QD, 9)
    expect((np.sort(few, axis=1) == [-1, -1, *range(7)]).all(), "a K above the size of the database finds all", few)


def _check_saving(plugin: ModuleType, config: Any, index: Any, vectors_ND: Floats, queries_QD: Floats) -> None:
    found_QK = index.neighbours(queries_QD, 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin.save(index, folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        expect(len(files) > 0, "save writes at least one file below the folder", 0)
        again_QK = plugin.load(config, folder, vectors_ND).neighbours(queries_QD, 10)
        same = np.array_equal(found_QK, again_QK)
        expect(same, "a loaded index answers as the saved one", _describe(found_QK, again_QK))
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        try:
            plugin.load(config, folder, vectors_ND)
        except StoreError:
            return
    expect(False, "load raises StoreError for a file that is cut off", largest.name)


def _check_order_of_equals(plugin: ModuleType, config: Any) -> None:
    axes_ND = np.tile(np.eye(4, 8, dtype=np.float32), (25, 1))  # inner products of these are exactly 0 or 1
    index = plugin.build(config, axes_ND)
    found_QK = index.neighbours(axes_ND[:4], 30)
    right_QK = np.argsort(-(axes_ND[:4] @ axes_ND.T), axis=1, kind="stable")[:, :30]
    if not index.exact:  # what it did not find has no order
        similarity_QK = np.take_along_axis(axes_ND[:4] @ axes_ND.T, np.maximum(found_QK, 0), 1)
        order_QK = np.lexsort((found_QK, -similarity_QK, found_QK < 0), axis=1)
        right_QK = np.take_along_axis(found_QK, order_QK, 1)
    expect(np.array_equal(found_QK, right_QK), "equal neighbours come by number", _describe(right_QK, found_QK))


def _describe(expected_QK: Ints, found_QK: Ints) -> str:
    """Return the first difference between two answers in words."""
    if expected_QK.shape != found_QK.shape:
        return f"shapes {expected_QK.shape} and {found_QK.shape}"
    query = int(np.argmax((expected_QK != found_QK).any(axis=1)))
    return f"{found_QK[query].tolist()}, expected {expected_QK[query].tolist()}"
