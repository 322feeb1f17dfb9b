"""The K largest values of rows that arrive in blocks of columns; of equal values the first columns.

Shape legend: Q queries, N columns of a block, K largest values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RunningTopK:
    """The largest values so far and their columns, both (Q, up to K), largest first; `most` is K."""

    value_QK: Tensor
    column_QK: Tensor
    most: int

    def merge(self, value_QN: Tensor, first_column: int) -> RunningTopK:
        """Return the largest of these values and of a block of later columns."""
        top_QK, top_column_QK = top_k(value_QN, self.most)
        value_QK = torch.cat([self.value_QK, top_QK], dim=1)
        column_QK = torch.cat([self.column_QK, top_column_QK + first_column], dim=1)
        # Earlier columns come first and equal values are in order; a stable sort keeps that.
        order = value_QK.argsort(dim=1, descending=True, stable=True)[:, : self.most]
        return RunningTopK(value_QK.gather(1, order), column_QK.gather(1, order), self.most)


def empty_top_k(num_queries: int, most: int, device: torch.device) -> RunningTopK:
    """Return the state before the first block: no values."""
    return RunningTopK(
        torch.empty(num_queries, 0, device=device), torch.empty(num_queries, 0, dtype=torch.int64, device=device), most
    )


def top_k(value_QN: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the K largest values of each row and their columns, largest first; of equal values the first columns.

    torch.topk returns any of equal values, in any order. One more value is therefore requested, and rows with equal
    neighbours in rank are sorted completely.
    """
    count = min(most, value_QN.shape[1])
    top_QK, column_QK = value_QN.topk(min(count + 1, value_QN.shape[1]), dim=1)
    tied_Q = (top_QK[:, 1:] == top_QK[:, :-1]).any(dim=1).nonzero().squeeze(1)
    top_QK, column_QK = top_QK[:, :count], column_QK[:, :count].clone()
    if len(tied_Q):
        column_QK[tied_Q] = value_QN[tied_Q].argsort(dim=1, descending=True, stable=True)[:, :count]
    return top_QK, column_QK
