"""The K largest values of rows that arrive in blocks of columns; of equal values the first columns.

Shape legend: Q queries, N columns of a block, K largest values, G groups of V columns,
P groups and X values that are larger than what was found so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 64  # columns of which only the maximum is compared with what was found so far
CROWDED = 4  # times K: with more new values than that in a row, sorting the whole block is faster


@dataclass(frozen=True)
class RunningTopK:
    """The largest values so far and their columns, both (Q, up to K), largest first; `most` is K."""

    value_QK: Tensor
    column_QK: Tensor
    most: int

    def merge(self, value_QN: Tensor, first_column: int) -> RunningTopK:
        """Return the largest of these values and of a block of later columns.

        Once there are K, few values of a later block are larger than the smallest of them: only these are sorted.
        """
        whole = value_QN.shape[1] // GROUP * GROUP if self.value_QK.shape[1] == self.most else 0
        if not whole:
            return self._append(*top_k(value_QN, self.most), first_column)
        best = self._append(*_larger(value_QN[:, :whole], self.value_QK[:, -1], self.most), first_column)
        if whole == value_QN.shape[1]:
            return best
        return best._append(*top_k(value_QN[:, whole:], self.most), first_column + whole)

    def _append(self, value_QX: Tensor, column_QX: Tensor, first_column: int) -> RunningTopK:
        """Return the largest of these values and of later ones; equal values are in the order of their columns."""
        if not value_QX.shape[1]:
            return self
        value_QK = torch.cat([self.value_QK, value_QX], dim=1)
        column_QK = torch.cat([self.column_QK, column_QX + first_column], dim=1)
        # Earlier columns come first; a stable sort keeps that.
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


def _larger(value_QN: Tensor, least_Q: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the values of each row that exceed its least one, in the order of their columns, and these columns.

    Rows with fewer than others end with -inf. Of rows with very many only the K largest are returned, largest first.
    """
    # A pass for the maxima of groups reads everything, but writes little.
    value_QGV = torch.unflatten(value_QN, 1, (-1, GROUP))
    row_P, group_P = (value_QGV.amax(2) > least_Q[:, None]).nonzero(as_tuple=True)
    member_PV = value_QGV[row_P, group_P]
    pair_X, member_X = (member_PV > least_Q[row_P, None]).nonzero(as_tuple=True)
    row_X, value_X = row_P[pair_X], member_PV[pair_X, member_X]
    count_Q = torch.bincount(row_X, minlength=len(value_QN))
    width = int(count_Q.max())
    if width > CROWDED * most:
        return top_k(value_QN, most)
    rank_X = torch.arange(len(row_X), device=row_X.device) - (count_Q.cumsum(0) - count_Q)[row_X]
    value_QX = torch.full((len(value_QN), width), -torch.inf, device=value_QN.device)
    column_QX = torch.zeros(value_QX.shape, dtype=torch.int64, device=value_QN.device)
    value_QX[row_X, rank_X] = value_X
    column_QX[row_X, rank_X] = group_P[pair_X] * GROUP + member_X
    return value_QX, column_QX
