"""Locality-sensitive hashing with K random hyperplanes and L tables, written to be read.

The signs of K inner products with random directions are the K bits of a key. Two vectors at the angle theta are on one
side of a random hyperplane with probability 1 - theta / pi, so that they share a key with p = (1 - theta / pi)^K, and a
key in at least one of L tables with 1 - (1 - p)^L. A query is compared with the vectors that share a key with it, and
with no others: more bits mean fewer candidates, more tables mean fewer misses.

Hyperplanes pass through the mean of the vectors. DEVIATION: the slides', and the theorem's, pass through the origin
(`centre = false`). Fingerprints share a large mean, so that from the origin all angles are small and every bucket is
full: docs/tutorial-index-and-search.md counts the candidates of both. About the mean, the angle is that between the
vectors less the mean.

`falconn` is the index to use: it also probes the buckets next to that of a key, and hashes with cross-polytopes, which
find more. This one does neither.

Shape legend: N database vectors, Q query vectors, D dimensions, K neighbours, B queries or vectors of a block,
L tables, C bits of a key, P pairs of a query and a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench.errors import ConfigError, StoreError
from bench.values import Floats, Ints

CITE = "Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002; tables: Indyk and Motwani, 1998"
LICENSE = "MIT"
SOURCE = "own definition"
LIBRARY = "numpy"  # draws the hyperplanes
FILE, CENTRE_FILE = "tables.npy", "centre.npy"
MOST_BITS = 32  # of a key, in four bytes
BLOCK_VECTORS = 16_384  # hashed at once
SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")  # of the keys of a bucket
MOST_HITS = 1 << 22  # vectors in the buckets of the queries that are searched at once
BLOCK_PAIRS = 8_192  # candidates whose vectors are gathered at once, 4 MB of them

Keys = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Config:
    """Settings of the hashing."""

    bits: int = 14
    """K, hyperplanes of a table, from 1 to 32; log2 of the number of vectors leaves about one in a bucket."""

    tables: int = 50
    """L, tables, each with hyperplanes of its own, at least 1."""

    centre: bool = True
    """Whether hyperplanes pass through the mean of the vectors; otherwise through the origin."""

    seed: int = 0
    """Seed of the hyperplanes."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MOST_BITS:
            raise ConfigError(
                f"index.lsh.bits must be from 1 to {MOST_BITS}, got {self.bits}; the default is {Config.bits}"
            )
        if self.tables < 1:
            raise ConfigError(f"index.lsh.tables must be >= 1, got {self.tables}; the default is {Config.tables}")


def presets() -> dict[str, Config]:
    """Return few tables, the defaults, and `singh`: tables and bits of that paper, which probes more buckets."""
    return {"few-tables": Config(tables=5), "default": Config(), "singh": Config(bits=18)}


def build(config: Config, vectors_ND: Floats) -> Lsh:
    """Return the index: for each table the keys in ascending order, and the vector of each key."""
    planes_DX, centre_D = _draw_planes(config, vectors_ND.shape[1]), _find_centre(config, vectors_ND)
    blocks = [_hash(config, planes_DX, block_BD - centre_D) for block_BD in _blocks(vectors_ND)]
    key_LN = np.concatenate([np.empty((config.tables, 0), np.uint32), *blocks], axis=1)
    number_LN = np.argsort(key_LN, axis=1, kind="stable").astype(np.uint32)
    return Lsh(config, vectors_ND, planes_DX, centre_D, np.take_along_axis(key_LN, number_LN, axis=1), number_LN)


def save(index: Lsh, folder: Path) -> None:
    """Write the tables and the centre; the hyperplanes follow from the seed."""
    np.save(folder / FILE, np.stack([index.key_LN, index.number_LN]))
    np.save(folder / CENTRE_FILE, index.centre_D)


def load(config: Config, folder: Path, vectors_ND: Floats) -> Lsh:
    """Return the index with its tables in memory. Raises: StoreError if they are damaged or of other vectors."""
    expected = {FILE: (2, config.tables, len(vectors_ND)), CENTRE_FILE: vectors_ND.shape[1:]}
    tables_2LN, centre_D = (_load_array(folder / name, shape) for name, shape in expected.items())
    return Lsh(config, vectors_ND, _draw_planes(config, vectors_ND.shape[1]), centre_D, *tables_2LN)


def _load_array(path: Path, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    remedy = f"delete the folder {path.parent.parent}, and the index is built again"
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path} is damaged ({error}); {remedy}") from error
    if array.shape != shape:
        raise StoreError(f"{path} has the shape {array.shape}, not {shape} of these vectors and settings; {remedy}")
    return array


@dataclass(frozen=True, eq=False)
class Lsh:
    """The tables: row l of `key_LN` is sorted, and `number_LN` holds the vector of each key."""

    config: Config
    vectors_ND: Floats
    planes_DX: Floats
    centre_D: Floats
    key_LN: Keys
    number_LN: npt.NDArray[np.uint32]
    exact: bool = False

    @property
    def num_bytes(self) -> int:
        """Return the size of the tables and of the vectors, of which each query reads many."""
        return self.key_LN.nbytes + self.number_LN.nbytes + self.planes_DX.nbytes + self.vectors_ND.nbytes

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest candidates (Q, K), best first; -1 where there are fewer."""
        found_QK = np.full((len(queries_QD), top_k), -1, dtype=np.int64)
        for rows in self._block_queries(queries_QD):
            block_BD = queries_QD[rows]
            query_P, number_P = self.candidates(block_BD)
            similarity_P = self._compare(block_BD, query_P, number_P)
            order = np.lexsort((number_P, -similarity_P, query_P))
            query_P, number_P = query_P[order], number_P[order]
            rank_P = np.arange(len(query_P)) - np.searchsorted(query_P, query_P)
            best = rank_P < top_k
            found_QK[rows.start + query_P[best], rank_P[best]] = number_P[best]
        return found_QK

    def candidates(self, queries_BD: Floats) -> tuple[Ints, Ints]:
        """Return the union of each query's buckets: query and vector number of each pair (P,), none twice, in order."""
        num_queries, num_vectors = len(queries_BD), max(1, self.key_LN.shape[1])
        pairs = [np.empty(0, dtype=np.int64)]
        for first_B, last_B, number_N in zip(*self._find_buckets(queries_BD), self.number_LN, strict=True):
            count_B = last_B - first_B
            within_P = np.arange(count_B.sum()) - np.repeat(np.cumsum(count_B) - count_B, count_B)
            query_P = np.repeat(np.arange(num_queries), count_B)
            pairs.append(query_P * num_vectors + number_N[first_B[query_P] + within_P])
        pair_P = np.unique(np.concatenate(pairs))
        return pair_P // num_vectors, pair_P % num_vectors

    def _find_buckets(self, queries_BD: Floats) -> tuple[Ints, Ints]:
        """Return where the bucket of each query begins in each table, and where it ends, both (L, B)."""
        keys_LB = _hash(self.config, self.planes_DX, queries_BD - self.centre_D)
        first_LB, last_LB = (
            np.stack([np.searchsorted(key_N, key_B, side) for key_N, key_B in zip(self.key_LN, keys_LB, strict=True)])
            for side in SIDES
        )
        return first_LB, last_LB

    def _block_queries(self, queries_QD: Floats) -> Iterator[slice]:
        """Yield the queries in blocks with MOST_HITS vectors in their buckets, or of one query with more."""
        for start in range(0, len(queries_QD), BLOCK_VECTORS):
            first_LB, last_LB = self._find_buckets(queries_QD[start : start + BLOCK_VECTORS])
            hits_B = np.cumsum((last_LB - first_LB).sum(axis=0))
            while len(hits_B):
                count = max(1, int(np.searchsorted(hits_B, MOST_HITS, "right")))
                yield slice(start, start + count)
                start, hits_B = start + count, hits_B[count:] - hits_B[count - 1]

    def _compare(self, queries_BD: Floats, query_P: Ints, number_P: Ints) -> Floats:
        similarity_P = np.empty(len(query_P), dtype=np.float32)
        for start in range(0, len(query_P), BLOCK_PAIRS):
            rows = slice(start, start + BLOCK_PAIRS)
            similarity_P[rows] = np.einsum("pd,pd->p", self.vectors_ND[number_P[rows]], queries_BD[query_P[rows]])
        return similarity_P


def share_key(cosine: Floats, bits: int, tables: int) -> npt.NDArray[np.float64]:
    """Return the probability that two vectors with this cosine between them share a key in at least one table."""
    angle = np.arccos(np.clip(cosine.astype(np.float64), -1, 1))
    share: npt.NDArray[np.float64] = 1 - (1 - (1 - angle / np.pi) ** bits) ** tables
    return share


def expect_candidates(index: Lsh, queries_QD: Floats) -> npt.NDArray[np.float64]:
    """Return how many candidates each query (Q,) has on average over all hyperplanes, from its angles to all vectors.

    The sum of `share_key` over the database. The slides assume N / 2^K for each table; this is so, to first order,
    where all vectors are orthogonal to the query.
    """
    expected_Q = np.zeros(len(queries_QD))
    query_QD = _normalise(queries_QD - index.centre_D)
    for block_BD in _blocks(index.vectors_ND):
        cosine_QB = query_QD @ _normalise(block_BD - index.centre_D).T
        expected_Q += share_key(cosine_QB, index.config.bits, index.config.tables).sum(axis=1)
    return expected_Q


def count_products(config: Config, num_vectors: int, dim: int) -> float:
    """Return the multiplications of a query by the slides' formula, L D K + L D N / 2^K: its keys, then its buckets.

    The second part assumes vectors in all directions, N / 2^K in each bucket, and counts a vector that is in several
    of them several times.
    """
    return config.tables * dim * (config.bits + num_vectors / (1 << config.bits))


def _blocks(vectors_ND: Floats) -> Iterator[Floats]:
    """Yield the vectors in blocks, as they may be a memory map larger than memory."""
    for start in range(0, len(vectors_ND), BLOCK_VECTORS):
        yield vectors_ND[start : start + BLOCK_VECTORS]


def _normalise(vectors_BD: Floats) -> Floats:
    length_B1 = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    unit_BD: Floats = vectors_BD / np.maximum(length_B1, np.finfo(np.float32).tiny)
    return unit_BD


def _find_centre(config: Config, vectors_ND: Floats) -> Floats:
    """Return the point (D,) that all hyperplanes pass through."""
    sum_D = np.zeros(vectors_ND.shape[1])
    if config.centre:
        for block_BD in _blocks(vectors_ND):
            sum_D += block_BD.sum(axis=0, dtype=np.float64)
    centre_D: Floats = (sum_D / max(1, len(vectors_ND))).astype(np.float32)
    return centre_D


def _draw_planes(config: Config, dim: int) -> Floats:
    """Return the normals of all hyperplanes (D, L x C): normal draws have no preferred direction."""
    draw = np.random.default_rng(config.seed)
    return draw.standard_normal((dim, config.tables * config.bits), dtype=np.float32)


def _hash(config: Config, planes_DX: Floats, vectors_BD: Floats) -> Keys:
    """Return the key of each vector in each table (L, B): a bit is 1 on the side to which the normal points."""
    bit_BLC = (vectors_BD @ planes_DX >= 0).reshape(len(vectors_BD), config.tables, config.bits)
    weight_C = np.uint32(1) << np.arange(config.bits, dtype=np.uint32)
    keys: Keys = np.einsum("blc,c->lb", bit_BLC, weight_C, dtype=np.uint32, casting="unsafe")
    return keys
