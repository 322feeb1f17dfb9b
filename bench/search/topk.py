"""The best K of a long row that comes in blocks, equal ones by number.

Shape legend: Q queries, N columns of a block, K kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RunningTopK:
    """The largest values so far and their columns, both (Q, up to K), best first."""

    value_QK: Tensor
    column_QK: Tensor
    most: int

    def merge(self, value_QN: Tensor, first_column: int) -> RunningTopK:
        """Return the best of these and of a block of later columns."""
        top_QK, at_QK = top_k(value_QN, self.most)
        value_QK = torch.cat([self.value_QK, top_QK], dim=1)
        column_QK = torch.cat([self.column_QK, at_QK + first_column], dim=1)
        # Those so far are earlier columns, in order where they are equal: a stable sort keeps it so.
        order = value_QK.argsort(dim=1, descending=True, stable=True)[:, : self.most]
        return RunningTopK(value_QK.gather(1, order), column_QK.gather(1, order), self.most)


def empty_top_k(num_queries: int, most: int, device: torch.device) -> RunningTopK:
    """Return what is best before the first block."""
    return RunningTopK(
        torch.empty(num_queries, 0, device=device), torch.empty(num_queries, 0, dtype=torch.int64, device=device), most
    )


def top_k(value_QN: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the K largest of each row and their columns, best first; of equal ones those that come first.

    topk picks any of equal values in any order, so one more is asked for: rows where neighbours in rank are equal
    are sorted whole.
    """
    count = min(most, value_QN.shape[1])
    top_QK, at_QK = value_QN.topk(min(count + 1, value_QN.shape[1]), dim=1)
    equal_Q = (top_QK[:, 1:] == top_QK[:, :-1]).any(dim=1).nonzero().squeeze(1)
    top_QK, at_QK = top_QK[:, :count], at_QK[:, :count].clone()
    if len(equal_Q):
        at_QK[equal_Q] = value_QN[equal_Q].argsort(dim=1, descending=True, stable=True)[:, :count]
    return top_QK, at_QK
