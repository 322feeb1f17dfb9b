"""The nearest other nodes of every node by cosine, without a matrix of all cosines, on the CPU.

The cosines of a few nodes with all others stay in the first-level cache until their nearest ones are found. They are
searched as a table of V columns, whose maxima are V lanes of the processor: node m is in row m // V, column m % V.

Shape legend: B segments, N nodes of a segment, P nodes of a table (N, filled up to whole rows), C channels (filled up
to a multiple of 4), K nearest nodes, V columns.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from bench.kernels.floats import as_array, bits_of_float, kernel
from bench.kernels.rows import for_ranges

MOST_NODES = 1_024  # of a segment
AT_ONCE = 4  # nodes compared in one pass over the others, and channels added up in it: they fill the registers
COLUMNS = 64
ROWS = 4  # compared in one pass over the columns; the rows of a table are a multiple
SPARE = 64  # without it, a node's numbers in all tables and channels would compete for one place in the cache
STRIDE = MOST_NODES + SPARE  # from one table to the next: known to the compiler, so that it knows that none overlap
ITSELF, TAKEN = np.float32(-2), np.float32(-3)  # below all cosines


def nearest_nodes(unit_BNC: Tensor, num_nearest: int) -> Tensor:
    """Return the numbers (B, N, K) of the nearest other nodes of the same segment, nearest first.

    `unit_BNC` are unit vectors in float32, on the CPU; N is at most MOST_NODES, K is below N. Of equally near nodes the
    first counts as nearer. Where there is NaN, any nodes are the nearest.
    """
    num_segments, num_nodes, num_channels = unit_BNC.shape
    assert num_nodes <= MOST_NODES
    nearest_BNK = np.zeros((num_segments, num_nodes, num_nearest), dtype=np.int64)
    channels = -num_channels % AT_ONCE
    unit = as_array(torch.nn.functional.pad(unit_BNC, (0, channels, 0, -num_nodes % AT_ONCE)).contiguous())
    by_channel = as_array(torch.nn.functional.pad(unit_BNC.transpose(1, 2), (0, SPARE, 0, channels)).contiguous())
    for_ranges(lambda first, end, _: _find(unit, by_channel, nearest_BNK, first, end), num_segments)
    return torch.from_numpy(nearest_BNK)


@kernel
def _find(unit_BNC, unit_BCN, nearest_BNK, first, end):  # type: ignore[no-untyped-def]
    num_nodes = nearest_BNK.shape[1]
    num_rows = -(-num_nodes // (ROWS * COLUMNS)) * ROWS
    tables = np.full(AT_ONCE * STRIDE, TAKEN, np.float32)
    largest_V, row_V, rank_V = np.empty(COLUMNS, np.float32), np.empty(COLUMNS, np.int32), np.empty(COLUMNS, np.int32)
    for b in range(first, end):
        for start in range(0, num_nodes, AT_ONCE):
            _multiply(unit_BNC[b], unit_BCN[b], start, num_nodes, tables)
            for n in range(start, min(start + AT_ONCE, num_nodes)):
                cosine_P = tables[(n - start) * STRIDE :][: num_rows * COLUMNS]
                cosine_P[n] = ITSELF
                _search_columns(cosine_P, largest_V, row_V, rank_V)
                for k in range(nearest_BNK.shape[2]):
                    m = _first_of_largest(row_V, rank_V, num_nodes)
                    nearest_BNK[b, n, k] = m
                    cosine_P[m] = TAKEN
                    _search_column(cosine_P, m % COLUMNS, largest_V, row_V, rank_V)


@kernel
def _multiply(unit_NC, unit_CN, start, num_nodes, tables):  # type: ignore[no-untyped-def]
    """Write the inner products of 4 nodes with all nodes into 4 tables."""
    for c in range(0, len(unit_CN), AT_ONCE):
        a0, a1, a2, a3 = _channels(unit_NC[start], c)
        b0, b1, b2, b3 = _channels(unit_NC[start + 1], c)
        c0, c1, c2, c3 = _channels(unit_NC[start + 2], c)
        d0, d1, d2, d3 = _channels(unit_NC[start + 3], c)
        x0_N, x1_N, x2_N, x3_N = unit_CN[c], unit_CN[c + 1], unit_CN[c + 2], unit_CN[c + 3]
        for m in range(num_nodes):
            x0, x1, x2, x3 = x0_N[m], x1_N[m], x2_N[m], x3_N[m]
            a = tables[m] if c else np.float32(0)
            b = tables[m + STRIDE] if c else np.float32(0)
            c_ = tables[m + 2 * STRIDE] if c else np.float32(0)
            d = tables[m + 3 * STRIDE] if c else np.float32(0)
            tables[m] = a + ((a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3))
            tables[m + STRIDE] = b + ((b0 * x0 + b1 * x1) + (b2 * x2 + b3 * x3))
            tables[m + 2 * STRIDE] = c_ + ((c0 * x0 + c1 * x1) + (c2 * x2 + c3 * x3))
            tables[m + 3 * STRIDE] = d + ((d0 * x0 + d1 * x1) + (d2 * x2 + d3 * x3))


@njit(inline="always")
def _channels(unit_C, c):  # type: ignore[no-untyped-def]
    return unit_C[c], unit_C[c + 1], unit_C[c + 2], unit_C[c + 3]


@kernel
def _search_columns(cosine_P, largest_V, row_V, rank_V):  # type: ignore[no-untyped-def]
    """Write the largest cosine of every column, the first row that has it, and its rank."""
    for v in range(COLUMNS):
        largest_V[v], row_V[v] = TAKEN, np.int32(0)
    for row in range(0, len(cosine_P) // COLUMNS, ROWS):
        cosine_RV = cosine_P[row * COLUMNS :][: ROWS * COLUMNS]
        for v in range(COLUMNS):
            largest, first_row = largest_V[v], row_V[v]
            for r in range(ROWS):
                cosine = cosine_RV[r * COLUMNS + v]
                is_larger = cosine > largest
                largest = cosine if is_larger else largest
                first_row = np.int32(row + r) if is_larger else first_row
            largest_V[v] = largest
            row_V[v] = first_row
    for v in range(COLUMNS):
        rank_V[v] = _rank(largest_V[v])


@kernel
def _search_column(cosine_P, v, largest_V, row_V, rank_V):  # type: ignore[no-untyped-def]
    largest, first_row = TAKEN, 0
    for row in range(len(cosine_P) // COLUMNS):
        cosine = cosine_P[row * COLUMNS + v]
        is_larger = cosine > largest
        largest = cosine if is_larger else largest
        first_row = row if is_larger else first_row
    largest_V[v], row_V[v], rank_V[v] = largest, first_row, _rank(largest)


@njit(inline="always")
def _rank(value):  # type: ignore[no-untyped-def]
    """Return an integer that is greater for a greater number; the maximum of integers uses all lanes, of floats not."""
    bits = np.int32(bits_of_float(value))
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@kernel
def _first_of_largest(row_V, rank_V, num_nodes):  # type: ignore[no-untyped-def]
    """Return the first node whose cosine is the largest."""
    largest = rank_V[0]
    for v in range(COLUMNS):
        largest = max(largest, rank_V[v])
    first = np.int32(num_nodes - 1)
    for v in range(COLUMNS):
        node = row_V[v] * np.int32(COLUMNS) + np.int32(v) if rank_V[v] == largest else first
        first = min(first, node)
    return first
