"""Exact search: all inner products, block by block, on the CPU or the GPU.

Shape legend: N database vectors, Q query vectors, D dimensions, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from bench.errors import ConfigError
from bench.values import Floats, Ints

CITE = ""
LICENSE = "MIT"
SOURCE = "own definition"

BLOCK_VECTORS = 32_768
BLOCK_QUERIES = 4_096


@dataclass(frozen=True)
class Config:
    """Settings. `device` is where blocks are multiplied, `auto` the GPU if there is one; the database stays on disk."""

    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("index.exact.device = cuda, but torch sees no GPU here; use auto")


def build(config: Config, vectors_ND: Floats) -> Exact:
    """Return the index; nothing is copied."""
    fastest = "cuda" if torch.cuda.is_available() else "cpu"
    return Exact(vectors_ND, torch.device(fastest if config.device == "auto" else config.device))


@dataclass(frozen=True)
class Exact:
    """Keeps the best K of all blocks so far. Time Q N D, memory one block of similarities (512 MB)."""

    vectors_ND: Floats
    device: torch.device
    exact: bool = True

    @property
    def num_bytes(self) -> int:
        """Return the size of the vectors: every query reads all of them."""
        return self.vectors_ND.nbytes

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors (Q, K), best first, equal ones by number."""
        found = [self._of_block(q, top_k) for q in torch.split(torch.from_numpy(queries_QD), BLOCK_QUERIES)]
        return np.concatenate(found) if found else np.zeros((0, top_k), dtype=np.int64)

    def _of_block(self, queries_QD: torch.Tensor, top_k: int) -> Ints:
        queries_QD = queries_QD.to(self.device)
        best_QK = torch.full((len(queries_QD), 0), float("-inf"), device=self.device)
        number_QK = torch.zeros((len(queries_QD), 0), dtype=torch.int64, device=self.device)
        for start in range(0, len(self.vectors_ND), BLOCK_VECTORS):
            block_ND = torch.from_numpy(np.array(self.vectors_ND[start : start + BLOCK_VECTORS])).to(self.device)
            similarity_QK, place_QK = _best(queries_QD @ block_ND.T, min(top_k, len(block_ND)))
            best_QK = torch.cat([best_QK, similarity_QK], dim=1)
            number_QK = torch.cat([number_QK, place_QK + start], dim=1)
            # A stable sort by number, then by similarity: equal vectors come in the order of the database.
            by_number = number_QK.argsort(dim=1)
            best_QK, number_QK = best_QK.gather(1, by_number), number_QK.gather(1, by_number)
            order = best_QK.argsort(dim=1, descending=True, stable=True)[:, :top_k]
            best_QK, number_QK = best_QK.gather(1, order), number_QK.gather(1, order)
        missing = top_k - number_QK.shape[1]
        return np.pad(number_QK.cpu().numpy(), ((0, 0), (0, missing)), constant_values=-1)


def _best(similarity_QN: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the K largest of each row and their places; of equal ones those that come first.

    topk picks any of equal values, so one more is asked for: rows where it ties with the last are sorted.
    """
    best_QK, place_QK = similarity_QN.topk(min(top_k + 1, similarity_QN.shape[1]), dim=1)
    if best_QK.shape[1] > top_k:
        tied = (best_QK[:, top_k] == best_QK[:, top_k - 1]).nonzero().squeeze(1)
        best_QK, place_QK = best_QK[:, :top_k], place_QK[:, :top_k].clone()
        place_QK[tied] = similarity_QN[tied].argsort(dim=1, descending=True, stable=True)[:, :top_k]
    return best_QK, place_QK
