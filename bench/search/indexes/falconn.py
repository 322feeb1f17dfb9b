"""FALCONN: multi-probe locality-sensitive hashing, the search of Singh et al. (ISMIR 2022).

The default tables, hash bits and probes are those of that paper: 50, 18 and 200. It does not state the hash family;
this index uses cross-polytopes, which find more than hyperplanes at the same settings (docs/experiments.md, "FALCONN
with hyperplane hashing").

Hashes distinguish directions: vectors that share a large mean all look alike, and every query is then compared with
most of the database. DEVIATION: `mean` therefore limits the length of their mean by shifting vectors and queries alike,
which changes neither distances nor the order of neighbours. Hashing is fastest without any mean, but then finds least
at a fixed number of probes (docs/experiments.md, "Centring fingerprints before FALCONN hashes them").

Shape legend: N database vectors, Q query vectors, D dimensions, K neighbours, B vectors of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bench.errors import ConfigError, PluginError
from bench.machine import cores
from bench.values import Floats, Ints

CITE = "Andoni et al., Practical and optimal LSH for angular distance, NeurIPS 2015"
LICENSE = "MIT"
SOURCE = "FALCONN 1.3.1"

BLOCK_QUERIES = 64  # queries per task of a thread
BLOCK_VECTORS = 65_536  # vectors read at once
TABLES = (10, 25, 50)  # tried by `trials`
PROBES_PER_TABLE = (1, 2, 4, 8, 16, 32, 64)  # tried by `trials`
UNCHANGED = 1e6  # as `mean`: no mean is as long; a finite number, since settings refuse infinity
MOST_BITS = 24  # a table has 2^bits buckets: with more, 50 tables do not fit into memory


@dataclass(frozen=True)
class Config:
    """Settings of the index, named as FALCONN and the paper name them."""

    tables: int = 50
    """Hash tables, at least 1."""

    bits: int = 18
    """Bits of a hash, from 1 to 24."""

    probes: int = 200
    """Buckets searched by a query, over all tables; at least one per table."""

    family: Literal["cross_polytope", "hyperplane"] = "cross_polytope"
    """The family of hashes; cross-polytopes find more than hyperplanes at the same settings."""

    mean: float = 0.75
    """Largest length of the mean of the hashed vectors, as a multiple of their spread; a longer mean is shortened.

    The spread is the root mean squared distance from the mean. 0 removes the mean; a large number, such as 1e6, leaves
    the vectors unchanged.
    """

    seed: int = 5_721_840
    """Seed of the hashes."""

    def __post_init__(self) -> None:
        if min(self.tables, self.bits) < 1 or self.bits > MOST_BITS:
            raise ConfigError(f"falconn: tables must be >= 1, bits 1 to {MOST_BITS}; got {self.tables}, {self.bits}")
        if not self.mean >= 0:
            raise ConfigError(
                f"falconn: mean must be >= 0 (0 removes the mean, 1e6 leaves vectors unchanged), got {self.mean}"
            )
        if self.probes < self.tables:
            raise ConfigError(f"falconn: probes must be >= tables ({self.tables}), got {self.probes}")


def presets() -> dict[str, Config]:
    """Return the published settings with each hash family, as the paper names none, and `shifted`, the defaults."""
    return {
        "singh": Config(mean=UNCHANGED),
        "singh-hyperplane": Config(family="hyperplane", mean=UNCHANGED),
        "shifted": Config(),
    }


def build(config: Config, vectors_ND: Floats) -> Falconn:
    """Return the index with newly built tables: they cannot be saved, but the same seed gives the same tables.

    Raises: PluginError if FALCONN is not installed, or for fewer than two vectors, which it does not support.
    """
    shift_D = _shift(config, vectors_ND)
    return _build_index(_build_tables(config, vectors_ND, shift_D), config, vectors_ND, shift_D)


def trials(config: Config, vectors_ND: Floats) -> Iterator[Iterator[tuple[Config, Falconn]]]:
    """Yield groups of settings worth trying on these vectors, each with its index, for `bench.catalogue.tune`.

    A group shares its tables, which are built once, and has more and more probes. Fewer tables take less memory and
    need more probes. The number of hash bits is near log2 of the number of vectors, so that a bucket holds about
    one vector, as the library's documentation advises. Family and seed are those of `config`.
    """
    shift_D = _shift(config, vectors_ND)
    usual_bits = max(1, min(MOST_BITS, round(math.log2(max(2, len(vectors_ND))))))
    for tables in TABLES:
        for bits in sorted({max(1, usual_bits - 2), usual_bits, min(MOST_BITS, usual_bits + 2)}):
            yield _try_probes(replace(config, tables=tables, bits=bits, probes=tables), vectors_ND, shift_D)


def _try_probes(config: Config, vectors_ND: Floats, shift_D: Floats) -> Iterator[tuple[Config, Falconn]]:
    table = _build_tables(config, vectors_ND, shift_D)
    for probes_per_table in PROBES_PER_TABLE:
        trial = replace(config, probes=probes_per_table * config.tables)
        yield trial, _build_index(table, trial, vectors_ND, shift_D)


def _shift(config: Config, vectors_ND: Floats) -> Floats:
    """Return what to subtract from vectors and queries (D,): a part of the mean, or zero."""
    # Summed block by block, as the vectors may be a memory map larger than memory.
    sum_D, squares = np.zeros(vectors_ND.shape[1]), 0.0
    for start in range(0, len(vectors_ND), BLOCK_VECTORS):
        block_BD = vectors_ND[start : start + BLOCK_VECTORS].astype(np.float64)
        sum_D += block_BD.sum(axis=0)
        squares += float(np.square(block_BD).sum())
    count = max(1, len(vectors_ND))
    mean_D = sum_D / count
    length = float(np.linalg.norm(mean_D))
    spread = math.sqrt(max(0.0, squares / count - length**2))
    longest = min(config.mean, UNCHANGED) * spread
    remaining = 1.0 if length <= longest else longest / length
    shift_D: Floats = ((1 - remaining) * mean_D).astype(np.float32)
    return shift_D


def _build_tables(config: Config, vectors_ND: Floats, shift_D: Floats) -> Any:
    """Return the tables. FALCONN keeps a pointer to the vectors, which are copied only if they have to be shifted."""
    if len(vectors_ND) < 2:
        raise PluginError(f"falconn needs at least 2 vectors, got {len(vectors_ND)}; use the index 'exact'")
    try:
        import falconn
    except ImportError as error:
        raise PluginError(
            "the index 'falconn' needs the package falconn, which is built from source: run `make setup`, or leave "
            'it out with --set eval.indexes=["exact"]'
        ) from error
    shifted_ND = vectors_ND - shift_D if shift_D.any() else vectors_ND
    hashed_ND = np.require(shifted_ND, np.float32, ["C_CONTIGUOUS", "ALIGNED"])
    params = falconn.LSHConstructionParameters()
    params.dimension = hashed_ND.shape[1]
    params.lsh_family = getattr(falconn.LSHFamily, "Hyperplane" if config.family == "hyperplane" else "CrossPolytope")
    params.distance_function = falconn.DistanceFunction.EuclideanSquared
    params.storage_hash_table = falconn.StorageHashTable.BitPackedFlatHashTable
    params.l, params.seed = config.tables, config.seed
    params.num_setup_threads, params.num_rotations = 0, 1
    falconn.compute_number_of_hash_functions(config.bits, params)
    table = falconn.LSHIndex(params)
    table.setup(hashed_ND)
    return table


def _build_index(table: Any, config: Config, vectors_ND: Floats, shift_D: Floats) -> Falconn:
    # A bit-packed table holds the number of each vector, and the start of each bucket among these.
    table_bytes = config.tables * (len(vectors_ND) + 2**config.bits) * len(vectors_ND).bit_length() // 8
    copies = 2 if shift_D.any() else 1
    pool = table.construct_query_pool(config.probes)
    return Falconn(pool, vectors_ND, shift_D, copies * vectors_ND.nbytes + table_bytes)


@dataclass(frozen=True)
class Falconn:
    """Searches one vector at a time, as the library does, on all processors in parallel."""

    pool: Any
    vectors_ND: Floats
    shift_D: Floats
    num_bytes: int
    exact: bool = False

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors found (Q, K), best first; -1 where fewer were found."""
        blocks = [queries_QD[start : start + BLOCK_QUERIES] for start in range(0, len(queries_QD), BLOCK_QUERIES)]
        with ThreadPoolExecutor(cores()) as threads:  # the library releases the GIL
            found = list(threads.map(lambda block_QD: self._search_block(block_QD, top_k), blocks))
        return np.concatenate([np.zeros((0, top_k), dtype=np.int64), *found])

    def _search_block(self, queries_QD: Floats, top_k: int) -> Ints:
        found_QK = np.full((len(queries_QD), top_k), -1, dtype=np.int64)
        for i, vector_D in enumerate(queries_QD - self.shift_D):
            nearest = self.pool.find_k_nearest_neighbors(vector_D, top_k)
            found_QK[i, : len(nearest)] = nearest
        # Sorted again, as the library returns equally distant vectors in any order.
        distance_QK = np.square(self.vectors_ND[found_QK] - queries_QD[:, None]).sum(axis=2)
        distance_QK[found_QK < 0] = np.inf
        return np.take_along_axis(found_QK, np.lexsort((found_QK, distance_QK), axis=1), axis=1)
