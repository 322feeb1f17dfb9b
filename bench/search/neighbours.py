"""Nearest neighbours from inner products that were computed anyway, where these decide; otherwise from the index.

A matrix product rounds in another order than the index. The candidates, a few more than the neighbours, hold all
neighbours if the last neighbour is more similar than the last candidate by more than rounding can amount to. The index
then finds the same ones among all vectors, bit for bit. Where it is not so, as in a database of many equal vectors, the
index is asked. The bound is that of float32: `bench.device.use_full_fp32` turns off shorter formats on a GPU.

Shape legend: Q query vectors, M segments of a query, D dimensions, K neighbours, C candidates.
"""

from __future__ import annotations

import numpy as np

from bench.search.contract import Index
from bench.search.diagonal import Scan
from bench.values import Fingerprints, Floats, Ints

MARGIN = 8  # candidates in addition to the neighbours: no more than `exact` has, whose candidates must hold them too
# Of any two of the products compared (scan, index, ranking, here) the difference is bounded by their rounding: in all
# six inner products, each off by D roundings at most.
ROUNDINGS = 6
BLOCK_QUERIES = 4_096  # query vectors whose last neighbours are read at once


def shares_product(index: Index) -> bool:
    """Return whether candidates from a scan may serve this index."""
    return index.exact and hasattr(index, "nearest_among")


def neighbours_of(
    index: Index, queries_QMD: Floats, database: Fingerprints, top_k: int, scan: Scan | None = None
) -> Ints:
    """Return the nearest vectors (Q, M, K) of each segment of each query.

    A scan with `top_k` + MARGIN candidates, or all vectors, serves an index that shares the product; any other index,
    and a scan with fewer candidates than neighbours, is passed over.
    """
    num_queries, num_segments, dim = queries_QMD.shape
    query_QD = queries_QMD.reshape(-1, dim)
    if scan is None or not shares_product(index) or scan.candidates_QMC.shape[2] < top_k:
        return index.neighbours(query_QD, top_k).reshape(num_queries, num_segments, top_k)
    candidates_QC = scan.candidates_QMC.reshape(len(query_QD), -1)
    found_QK: Ints = index.nearest_among(query_QD, candidates_QC, top_k)  # type: ignore[attr-defined]
    if candidates_QC.shape[1] < len(database.vectors):
        open_Q = _find_undecided(query_QD, database, found_QK[:, -1], scan.least_QM.reshape(-1))
        if len(open_Q):
            found_QK[open_Q] = index.neighbours(query_QD[open_Q], top_k)
    return found_QK.reshape(num_queries, num_segments, top_k)


def _find_undecided(query_QD: Floats, database: Fingerprints, last_Q: Ints, least_Q: Floats) -> Ints:
    """Return the queries for which a vector that is not a candidate could be as near as the last neighbour."""
    rounding = query_QD.shape[1] * np.finfo(np.float32).eps / 2
    undecided = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(query_QD), BLOCK_QUERIES):
        rows = slice(start, start + BLOCK_QUERIES)
        query, last = query_QD[rows], database.vectors[last_Q[rows]]
        size = np.linalg.norm(query, axis=1) * np.linalg.norm(last, axis=1)
        lead = np.einsum("qd,qd->q", query, last) - least_Q[rows]
        undecided.append(start + np.flatnonzero(~(lead > ROUNDINGS * rounding * size)))
    return np.concatenate(undecided)
