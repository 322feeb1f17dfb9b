"""Balanced hash codes: vectors in buckets by K bits, which a small network learns to fill evenly.

Codes: a head (linear, batch norm, ReLU, linear) turns a vector into K values z of length 1, whose signs are its bucket.
Learning: optimal transport (Sinkhorn-Knopp) shares a block of vectors out among all 2^K corners +-1/sqrt(K), near its
own z each, equally many to each corner; the shares of a vector are the targets of a noisy copy of it, and the other way
round. As all corners take part, the softmax over them is K independent sigmoids, so the loss is K binary cross
entropies against the share of corners with that bit.
Search: the buckets of the corners most similar to a query's z (`probes` of them, in the exact order), whose vectors are
ranked by their inner products with the query.

Source: Singh et al. (ICASSP 2023) as Singh et al. (FlowHash) describe it; sizes and temperatures are our reading, as
neither gives them. The head is FlowHash's projection head. Swapped targets: Caron et al., SwAV, 2020.

DEVIATION: in the paper the head is learnt together with the embedding, on degraded pairs. Here the index learns it from
the database's vectors alone, and a noisy copy stands for a degraded query. So any encoder has codes, encoder and index
know nothing of each other, and the contract of indexes stays as it is; but the embedding is not shaped by its codes.
What that costs has not been measured.
DEVIATION: where a training batch is smaller than 2^K, others keep a queue of earlier codes. All vectors are at hand
here, so the transport shares out a block of at least 2^K of them at once, of which the batches are parts, as Asano et
al. (Self-labelling, 2020) do with a whole data set: no code in it is out of date.

Cost: learning takes 2 `blocks` transports of 2^K x 2^K values (256 MiB with 13 bits). A query costs `probes` steps of
a heap and the products with what is in the buckets. Memory: the vectors, 4 bytes each for the buckets, and the head.

Shape legend: N database vectors, M vectors of a block, Q query vectors, D dimensions, K bits (and, of answers,
neighbours: R), C = 2^K corners.
"""

from __future__ import annotations

import heapq
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bench.errors import StoreError
from bench.settings import require
from bench.values import Floats, Ints

CITE = "Singh, Demuynck and Arora, Simultaneously learning robust audio embeddings and balanced hash codes, ICASSP 2023"
LICENSE = "MIT"
SOURCE = "the method as described in Singh et al., FlowHash; numbers that neither paper gives are ours"
LIBRARY = "torch"

FILE = "codes.npz"
QUERY_SETTINGS = ("probes",)
MOST_BITS = 14  # the transport of 2^14 vectors takes 1 GiB
USUAL_MOST_BITS = 13
HIDDEN = 512
TEMPERATURE = 0.1  # of predictions
EPSILON = 0.05  # of the transport: how little the shares are smoothed
ROUNDS = 3  # of Sinkhorn-Knopp, as in SwAV
BATCH = 512
LEAST_BLOCK = 2_048
LEARNING_RATE = 1e-3
BLOCK_VECTORS = 65_536  # vectors encoded at once

Rows = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Config:
    """Settings of the index."""

    bits: int = 0
    """Bits K of a code, from 1 to 14; 0 takes about log2(N) - 3, so that a bucket holds eight vectors, at most 13."""

    probes: int = 256
    """Buckets searched per query, at least 1; 2^bits or more search all."""

    noise: float = 0.5
    """Length of the noise that makes a copy of a vector, relative to the vector, at least 0."""

    blocks: int = 40
    """Blocks of vectors that the head learns from, at least 1."""

    seed: int = 0
    """Seed of the head and of what it learns from, at least 0."""

    def __post_init__(self) -> None:
        rule = f"index.balanced-codes.bits must be from 1 to {MOST_BITS}, or 0 for a number that fits the database"
        require(0 <= self.bits <= MOST_BITS, rule, self.bits)
        require(self.probes >= 1, "index.balanced-codes.probes must be >= 1", self.probes)
        require(self.noise >= 0, "index.balanced-codes.noise must be >= 0", self.noise)
        require(self.blocks >= 1, "index.balanced-codes.blocks must be >= 1", self.blocks)
        require(self.seed >= 0, "index.balanced-codes.seed must be >= 0", self.seed)


def build(config: Config, vectors_ND: Floats) -> BalancedCodes:
    """Return the index, its head learnt from the vectors: the same settings and vectors give the same one."""
    bits = config.bits or max(1, min(USUAL_MOST_BITS, round(math.log2(max(1, len(vectors_ND)))) - 3))
    head = _learn_head(config, vectors_ND, bits)
    code_N = np.empty(len(vectors_ND), dtype=np.uint32)
    for start in range(0, len(vectors_ND), BLOCK_VECTORS):
        block = slice(start, start + BLOCK_VECTORS)
        code_N[block] = codes_of(_values(head, vectors_ND[block]))
    return _fill_buckets(config, head, bits, code_N, vectors_ND)


def save(index: BalancedCodes, folder: Path) -> None:
    """Write the codes and the head to one file."""
    weights = {f"head.{name}": value.numpy() for name, value in index.head.state_dict().items()}
    np.savez(folder / FILE, codes=index.code_N, **weights)


def load(config: Config, folder: Path, vectors_ND: Floats) -> BalancedCodes:
    """Return the index that was saved. Raises: StoreError if the file is missing, damaged, or of other vectors."""
    path = folder / FILE
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        code_N = arrays.pop("codes")
        bits = len(arrays["head.3.bias"])
        head = _build_head(vectors_ND.shape[1], bits)
        head.load_state_dict({name.removeprefix("head."): torch.from_numpy(array) for name, array in arrays.items()})
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        remedy = f"delete the folder {folder.parent}, and the index is built again"
        raise StoreError(f"{path} cannot be read ({error}); {remedy}") from error
    if len(code_N) != len(vectors_ND):
        raise StoreError(
            f"{path} has codes of {len(code_N)} vectors, expected {len(vectors_ND)}; delete the folder {folder.parent}"
        )
    return _fill_buckets(config, head.eval(), bits, code_N, vectors_ND)


@dataclass(frozen=True)
class BalancedCodes:
    """Searches one query at a time: the vectors of each bucket are neighbours in `row_N`."""

    head: nn.Sequential
    code_N: Rows
    row_N: Rows
    first_C: Ints
    vectors_ND: Floats
    probes: int
    exact: bool = False

    @property
    def bits(self) -> int:
        """Return the bits K of a code."""
        return len(self.first_C).bit_length() - 1  # of 2^K + 1

    @property
    def num_bytes(self) -> int:
        """Return the size of the vectors, of their order by buckets, of the buckets and of the head."""
        weights = sum(4 * value.numel() for value in self.head.state_dict().values())
        return int(self.vectors_ND.nbytes + self.row_N.nbytes + self.first_C.nbytes + weights)

    @property
    def measures(self) -> dict[str, float]:
        """Return how even the buckets are: `bucket_entropy_bits`, K at best, and the share of `empty_buckets`."""
        size_C = np.diff(self.first_C)
        return {
            "bits": float(self.bits),
            "bucket_entropy_bits": entropy_bits(size_C),
            "empty_buckets": float((size_C == 0).mean()),
        }

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors (Q, R) in the probed buckets, best first; -1 where fewer are."""
        found_QR = np.full((len(queries_QD), top_k), -1, dtype=np.int64)
        for q, row in enumerate(self._candidates(queries_QD)):
            # Row by row: a matrix product would round equal vectors differently.
            similarity = np.einsum("nd,d->n", self.vectors_ND[row], queries_QD[q])
            if len(row) > top_k:
                least = np.partition(similarity, len(row) - top_k)[len(row) - top_k]
                row, similarity = row[similarity >= least], similarity[similarity >= least]
            best = row[np.lexsort((row, -similarity))][:top_k]
            found_QR[q, : len(best)] = best
        return found_QR

    def compared_share(self, queries_QD: Floats) -> float:
        """Return the share of the database that a query is compared with, the mean over some queries."""
        compared = [len(row) for row in self._candidates(queries_QD)]
        return float(np.mean(compared)) / max(1, len(self.vectors_ND))

    def _candidates(self, queries_QD: Floats) -> list[Rows]:
        """Return for each query the numbers of all vectors in its buckets."""
        found = []
        for value_K in _values(self.head, queries_QD):
            probed = probing_order(value_K, self.probes)
            parts = [self.row_N[self.first_C[code] : self.first_C[code + 1]] for code in probed]
            found.append(np.concatenate(parts))
        return found


def codes_of(value_NK: Floats) -> Rows:
    """Return the buckets (N,) of values (N, K): bit k is 1 where value k is at least 0."""
    bit_K = 1 << np.arange(value_NK.shape[1], dtype=np.uint32)
    code_N: Rows = ((value_NK >= 0) * bit_K).sum(axis=1, dtype=np.uint32)
    return code_N


def probing_order(value_K: Floats, most: int) -> list[int]:
    """Return the codes of the corners most similar to values (K,), at most so many, the most similar first.

    The corner of the signs is the nearest; flipping a set of bits costs twice the sum of their |values|. Sets come off
    a heap by that sum: from a set whose dearest bit is i (of the bits by rising cost) follow the set with i + 1 added
    and the set with i + 1 in place of i, so that each set is reached once, from a cheaper one.
    Source: Lv et al., Multi-probe LSH, 2007, section 4.4.
    """
    order_K = np.argsort(np.abs(value_K), kind="stable")
    cost_K = np.abs(value_K.astype(np.float64))[order_K].tolist()
    bit_K = [1 << bit for bit in order_K.tolist()]
    nearest = int(codes_of(value_K[None])[0])
    probed, heap = [nearest], [(cost_K[0], 0, bit_K[0])]
    while heap and len(probed) < most:
        cost, last, flips = heapq.heappop(heap)
        probed.append(nearest ^ flips)
        if last + 1 < len(cost_K):
            added, bit = cost_K[last + 1], bit_K[last + 1]
            heapq.heappush(heap, (cost + added, last + 1, flips | bit))
            heapq.heappush(heap, (cost - cost_K[last] + added, last + 1, flips ^ bit_K[last] | bit))
    return probed


def entropy_bits(size_C: Ints) -> float:
    """Return the entropy in bits of the bucket of a vector: log2 C where all buckets hold equally many."""
    share = size_C[size_C > 0] / max(1, size_C.sum())
    return float(-(share * np.log2(share)).sum()) + 0.0


def corners(bits: int) -> Tensor:
    """Return all corners (C, K) as +-1/sqrt(K), in the order of their codes."""
    code_C = torch.arange(2**bits)
    corner_CK: Tensor = ((code_C[:, None] >> torch.arange(bits) & 1) * 2 - 1) / bits**0.5
    return corner_CK


def transport(kernel_MC: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Return factors of rows (M,) and columns (C,) that share each row out, and give each column equally much.

    The shares factor_M kernel_MC factor_C sum to 1 in every row, and to M / C in every column after enough rounds.
    Source: Cuturi, Sinkhorn distances, 2013, algorithm 1.
    """
    rows, columns = kernel_MC.shape
    factor_M = kernel_MC.new_ones(rows)
    factor_C = kernel_MC.new_ones(columns)
    for _ in range(rounds):
        factor_C = (rows / columns) / (factor_M @ kernel_MC)
        factor_M = 1 / (kernel_MC @ factor_C)
    return factor_M, factor_C


@torch.no_grad()
def balanced_targets(value_MK: Tensor) -> Tensor:
    """Return for each bit the share (M, K) of a vector that a balanced transport gives to corners with that bit."""
    corner_CK = corners(value_MK.shape[1])
    kernel_MC = (value_MK @ corner_CK.T).div_(EPSILON).exp_()
    factor_M, factor_C = transport(kernel_MC, ROUNDS)
    return (factor_M[:, None] * (kernel_MC @ (factor_C[:, None] * (corner_CK > 0)))).clamp_(0, 1)


def code_loss(value_MK: Tensor, target_MK: Tensor) -> Tensor:
    """Return the cross entropy of the softmax over all corners against targets, the mean over vectors.

    Corner c has the logit value . c / temperature; all corners together are K independent bits of the logits below.
    """
    logit_MK = value_MK * (2 / (TEMPERATURE * value_MK.shape[1] ** 0.5))
    return functional.binary_cross_entropy_with_logits(logit_MK, target_MK, reduction="none").sum(dim=1).mean()


def _build_head(dim: int, bits: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, bits))


def _learn_head(config: Config, vectors_ND: Floats, bits: int) -> nn.Sequential:
    """Return a head of so many bits, learnt from blocks of the vectors and of noisy copies of them."""
    if not len(vectors_ND):
        vectors_ND = np.zeros((1, vectors_ND.shape[1]), dtype=np.float32)
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        head = _build_head(vectors_ND.shape[1], bits)
        optimiser = torch.optim.Adam(head.parameters(), LEARNING_RATE)
        draw, size = np.random.default_rng(config.seed), max(LEAST_BLOCK, 2**bits)
        for _ in range(config.blocks):
            drawn = np.sort(draw.choice(len(vectors_ND), size, replace=len(vectors_ND) < size))
            vector_MD = torch.from_numpy(np.ascontiguousarray(vectors_ND[drawn], dtype=np.float32))
            noise_MD = config.noise * functional.normalize(torch.randn_like(vector_MD), dim=1)
            _learn_block(head, optimiser, vector_MD, functional.normalize(vector_MD + noise_MD, dim=1))
    return head.eval()


def _learn_block(head: nn.Sequential, optimiser: torch.optim.Optimizer, vector_MD: Tensor, noisy_MD: Tensor) -> None:
    """Take one step for each batch of a block, with the targets that the block's codes had before them."""
    views = (vector_MD, noisy_MD)
    with torch.no_grad():
        of_vector_MK, of_noisy_MK = (balanced_targets(functional.normalize(head(view), dim=1)) for view in views)
    for part in torch.split(torch.randperm(len(vector_MD)), BATCH):
        vector_MK, noisy_MK = (functional.normalize(head(view[part]), dim=1) for view in views)
        loss = code_loss(noisy_MK, of_vector_MK[part]) + code_loss(vector_MK, of_noisy_MK[part])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


@torch.no_grad()
def _values(head: nn.Sequential, vectors_ND: Floats) -> Floats:
    """Return the values z (N, K) of vectors, of length 1."""
    value_NK = functional.normalize(head(torch.from_numpy(np.array(vectors_ND, dtype=np.float32))), dim=1)
    values: Floats = value_NK.numpy()
    return values


def _fill_buckets(config: Config, head: nn.Sequential, bits: int, code_N: Rows, vectors_ND: Floats) -> BalancedCodes:
    row_N = np.argsort(code_N, kind="stable").astype(np.uint32)
    first_C = np.concatenate([[0], np.cumsum(np.bincount(code_N, minlength=2**bits))]).astype(np.int64)
    return BalancedCodes(head, code_N, row_N, first_C, vectors_ND, config.probes)
