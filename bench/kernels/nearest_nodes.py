"""The nearest other nodes of every node by cosine, without a matrix of all cosines, on the CPU.

The cosines of one node with all others stay in the first-level cache until its nearest ones are found.

Shape legend: B segments, N nodes of a segment, C channels (padded to a multiple of 4), K nearest nodes.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.kernels.floats import FAST, as_array, kernel
from bench.kernels.rows import for_ranges

UNROLLED = 4  # channels added up in one pass over the nodes
GROUP = 64  # nodes of which the largest cosine is remembered
ITSELF, TAKEN = np.float32(-2), np.float32(-3)  # below all cosines


def nearest_nodes(unit_BNC: Tensor, num_nearest: int) -> Tensor:
    """Return the numbers (B, N, K) of the nearest other nodes of the same segment, nearest first.

    `unit_BNC` are unit vectors in float32, on the CPU. Of equally near nodes the first counts as nearer; K is below N.
    """
    num_segments, num_nodes, num_channels = unit_BNC.shape
    nearest_BNK = np.zeros((num_segments, num_nodes, num_nearest), dtype=np.int64)
    padded_BNC = torch.nn.functional.pad(unit_BNC, (0, -num_channels % UNROLLED))
    unit = as_array(padded_BNC.contiguous())
    by_channel = as_array(padded_BNC.transpose(1, 2).contiguous())
    for_ranges(lambda first, end, _: _find(unit, by_channel, nearest_BNK, first, end), num_segments)
    return torch.from_numpy(nearest_BNK)


@kernel
def _find(unit_BNC, unit_BCN, nearest_BNK, first, end):  # type: ignore[no-untyped-def]
    num_nodes = unit_BNC.shape[1]
    num_groups = -(-num_nodes // GROUP)
    cosine_GV = np.full((num_groups, GROUP), TAKEN, np.float32)
    cosine_N, largest_G = cosine_GV.reshape(-1)[:num_nodes], np.empty(num_groups, np.float32)
    for b in range(first, end):
        for n in range(num_nodes):
            _multiply(unit_BNC, unit_BCN, b, n, cosine_N)
            cosine_N[n] = ITSELF
            for g in range(num_groups):
                largest_G[g] = _largest(cosine_GV, g)
            for k in range(nearest_BNK.shape[2]):
                best = 0
                for g in range(1, num_groups):
                    if largest_G[g] > largest_G[best]:
                        best = g
                member, largest = 0, largest_G[best]
                while member < GROUP - 1 and cosine_GV[best, member] != largest:
                    member += 1
                nearest_BNK[b, n, k] = best * GROUP + member
                cosine_GV[best, member] = TAKEN
                largest_G[best] = _largest(cosine_GV, best)


@kernel
def _multiply(unit_BNC, unit_BCN, b, n, cosine_N):  # type: ignore[no-untyped-def]
    """Write the inner products of node n with all nodes."""
    for c in range(0, unit_BNC.shape[2], UNROLLED):
        one, two = unit_BNC[b, n, c], unit_BNC[b, n, c + 1]
        three, four = unit_BNC[b, n, c + 2], unit_BNC[b, n, c + 3]
        for m in range(len(cosine_N)):
            before = cosine_N[m] if c else np.float32(0)
            pair = one * unit_BCN[b, c, m] + two * unit_BCN[b, c + 1, m]
            cosine_N[m] = before + (pair + (three * unit_BCN[b, c + 2, m] + four * unit_BCN[b, c + 3, m]))


# A maximum uses all lanes if there is no NaN. Where there is one, any nodes are the nearest; the vectors stay NaN.
@partial(kernel, fastmath={*FAST, "nnan", "ninf"})
def _largest(cosine_GV, g):  # type: ignore[no-untyped-def]
    largest = TAKEN
    for v in range(GROUP):
        largest = cosine_GV[g, v] if cosine_GV[g, v] > largest else largest
    return largest
