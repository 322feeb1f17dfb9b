"""FAISS: the indexes that other fingerprinting systems use, from all vectors in full to codes of 64 bytes each.

The defaults are NAFP's: 256 lists, 40 of them searched, and 64 codes of 8 bits. The settings of other systems are in
faiss.toml beside this file (`presets`).

- `flat`: a copy of every vector in memory, all compared.
- `ivf-flat`: vectors in lists, one per centre, of `nlist` centres; the lists of the nearest `nprobe` are searched.
- `ivf-pq`: such lists, but of codes of the vector's residual from its centre: `sub_quantisers` parts, `bits` each.
- `ivf-pq-refine`: the best `refine_factor` times K of `ivf-pq`, reranked by further codes of the remaining residual.
- `hnsw`: a graph of the vectors that is walked towards the query.
- `binary-flat`: the signs of a vector's values, a bit each, compared by the number of bits that differ.
- `binary-ivf`: such signs in lists, as `ivf-flat`.
- `binary-hash`: such signs in buckets by their first `hash_bits`; buckets that differ in up to `hash_flips` of them are
  searched.

Kinds that store codes only rank by the similarity of the codes. Signs differing in h of D bits have the inner product
1 - 2 h / D as vectors of +-1/sqrt(D), so of vectors that are signs `binary-flat` finds what all inner products find.
The same settings give the same index.

Shape legend: N database vectors, T training vectors, Q query vectors, D dimensions, K neighbours.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench.errors import ConfigError, PluginError, StoreError
from bench.settings import require
from bench.values import Floats, Ints

CITE = "Douze et al., The Faiss library, arXiv 2401.08281"
LICENSE = "MIT"
SOURCE = "FAISS 1.15.1"
LIBRARY = "faiss-cpu"
TRUSTED_FILES_ONLY = True  # FAISS trusts sizes in the file, and warns that a malicious file can do anything

FILE = "index.faiss"
QUERY_SETTINGS = ("nprobe", "ef_search", "refine_factor", "hash_flips")
BLOCK_VECTORS = 65_536  # vectors added at once
MOST_BITS = 16  # 65,536 centroids per part, which need as many training vectors
ROUNDING = 1e-6  # similarities that were summed in another order differ by less

MOST_HASH_BITS = 32

Kind = Literal["flat", "ivf-flat", "ivf-pq", "ivf-pq-refine", "hnsw", "binary-flat", "binary-ivf", "binary-hash"]


@dataclass(frozen=True)
class Config:
    """Settings of the index; each kind uses some of them, as the module docstring explains."""

    kind: Kind = "ivf-pq"
    """The kind of index."""

    metric: Literal["l2", "inner_product"] = "l2"
    """The metric that lists and codes of the `ivf` kinds are optimised for; `ivf-pq-refine` supports `l2` only.

    For unit vectors both give the same neighbours. Vectors decoded from codes are not of unit length, and `l2` finds
    more: on 104,178 fingerprints 99.6 % of the nearest against 98.7 %. Other systems use `l2`, except pfann.
    """

    nlist: int = 256
    """Lists of the kinds with `ivf`, at least 1; limited to the number of training vectors, for small databases."""

    nprobe: int = 40
    """Lists searched per query, from 1 to `nlist`, which searches all."""

    sub_quantisers: int = 64
    """Parts of a vector, each with a code, at least 1."""

    bits: int = 8
    """Bits of a code, from 1 to 16; 8 is usual."""

    refine_sub_quantisers: int = 4
    """Parts of the residual from the first codes, each with a code, at least 1."""

    refine_bits: int = 4
    """Bits of each of these second codes, from 1 to 16."""

    refine_factor: int = 4
    """Candidates per requested neighbour that the second codes rerank, at least 1."""

    hnsw_m: int = 16
    """Links of a node of the graph, at least 2; 16 to 64 is usual."""

    ef_construction: int = 80
    """Candidates kept while the graph is built, at least 1."""

    ef_search: int = 16
    """Candidates kept while the graph is searched, at least 1."""

    hash_bits: int = 16
    """Bits of a bucket of `binary-hash`, from 1 to 32; limited to the bits of a vector."""

    hash_flips: int = 2
    """Bits in which a searched bucket may differ from the query's, from 0 to `hash_bits`."""

    train_vectors: int = 65_536
    """Vectors drawn to train centres and codes, at least 1.

    FAISS uses at most 256 vectors per centroid, and the defaults have 256 centroids.
    """

    seed: int = 1234
    """Seed of the training, from 0 to 2^31 - 1."""

    def __post_init__(self) -> None:
        for name in ("nlist", "sub_quantisers", "refine_sub_quantisers", "refine_factor", "train_vectors"):
            require(getattr(self, name) >= 1, f"index.faiss.{name} must be >= 1", getattr(self, name))
        require(
            1 <= self.nprobe <= self.nlist,
            f"index.faiss.nprobe must be from 1 to nlist = {self.nlist} (which searches all)",
            self.nprobe,
        )
        for name in ("bits", "refine_bits"):
            bits = getattr(self, name)
            require(1 <= bits <= MOST_BITS, f"index.faiss.{name} must be from 1 to {MOST_BITS}; 8 is usual", bits)
        require(self.hnsw_m >= 2, "index.faiss.hnsw_m must be >= 2; 16 to 64 is usual", self.hnsw_m)
        for name in ("ef_construction", "ef_search"):
            require(getattr(self, name) >= 1, f"index.faiss.{name} must be >= 1", getattr(self, name))
        rule = f"index.faiss.hash_bits must be from 1 to {MOST_HASH_BITS}"
        require(1 <= self.hash_bits <= MOST_HASH_BITS, rule, self.hash_bits)
        rule = f"index.faiss.hash_flips must be from 0 to hash_bits = {self.hash_bits}"
        require(0 <= self.hash_flips <= self.hash_bits, rule, self.hash_flips)
        require(0 <= self.seed < 2**31, "index.faiss.seed must be from 0 to 2147483647", self.seed)
        if self.kind == "ivf-pq-refine":
            rule = "index.faiss.metric must be l2 for ivf-pq-refine: FAISS refines by no other metric"
            require(self.metric == "l2", rule, self.metric)


def presets() -> dict[str, Config]:
    """Return published settings, named after the system that uses them; faiss.toml gives their sources."""
    settings = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {name: Config(**values) for name, values in settings.items()}


def build(config: Config, vectors_ND: Floats) -> Faiss | FaissBinary:
    """Return the index; vectors are read in blocks, so that memory holds the index and one block.

    Raises: PluginError if FAISS is not installed; ConfigError if the codes do not fit the number of dimensions.
    """
    library = _library()
    index = _build_empty(library, config, *vectors_ND.shape)
    if not index.is_trained:
        index.train(_stored(config, _draw_training_vectors(config, vectors_ND)))
    if config.kind == "flat":  # reserves memory: growing block by block would copy the index, with both in memory
        index.codes.resize(4 * vectors_ND.size)
        index.codes.resize(0)
    # Several threads add nodes to a graph in any order, which gives another graph each time.
    threads = 1 if config.kind == "hnsw" else library.omp_get_max_threads()
    with _limit_threads(library, threads):
        for start in range(0, len(vectors_ND), BLOCK_VECTORS):
            index.add(_stored(config, vectors_ND[start : start + BLOCK_VECTORS]))
    return _wrap(config, index)


def keeps(config: Config) -> bool:
    """Return whether the index is worth saving: the flat index is a copy of the vectors, which load as fast."""
    return config.kind != "flat"


def save(index: Faiss | FaissBinary, folder: Path) -> None:
    """Write the index to one file."""
    library = _library()
    write = library.write_index_binary if isinstance(index, FaissBinary) else library.write_index
    write(index.index, str(folder / FILE))


def load(config: Config, folder: Path, vectors_ND: Floats) -> Faiss | FaissBinary:
    """Return the index that was saved for these vectors and settings.

    Raises: StoreError if the file is missing, damaged, or of another index; PluginError if FAISS is not installed.
    """
    library = _library()
    path, remedy = folder / FILE, f"delete the folder {folder.parent}, and the index is built again"
    try:
        index = (library.read_index_binary if _is_binary(config) else library.read_index)(str(path))
    except (RuntimeError, MemoryError) as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise StoreError(f"{path} cannot be read ({message}); {remedy}") from error
    expected = _build_empty(library, config, *vectors_ND.shape)
    for what, saved, requested in (
        ("kind", type(index).__name__, type(expected).__name__),
        ("vectors", index.ntotal, len(vectors_ND)),
        ("dimensions", index.d, vectors_ND.shape[1]),
    ):
        if saved != requested:
            raise StoreError(f"{path} is of another index ({what}: {saved}, expected {requested}); {remedy}")
    _set_query_settings(config, index)
    return _wrap(config, index)


def _wrap(config: Config, index: Any) -> Faiss | FaissBinary:
    if _is_binary(config):
        return FaissBinary(index, compares_all=config.kind == "binary-flat")
    return Faiss(index, exact=config.kind == "flat")


def _is_binary(config: Config) -> bool:
    return config.kind.startswith("binary")


def _stored(config: Config, vectors_ND: Floats) -> Any:
    """Return vectors as an index of this kind takes them: themselves, or their signs."""
    return pack_signs(vectors_ND) if _is_binary(config) else np.ascontiguousarray(vectors_ND, dtype=np.float32)


def pack_signs(vectors_ND: Floats) -> npt.NDArray[np.uint8]:
    """Return the signs of vectors as bytes (N, D / 8), a bit each, 1 where a value is above 0."""
    return np.packbits(np.asarray(vectors_ND) > 0, axis=1)


@dataclass(frozen=True)
class Faiss:
    """Passes all queries to FAISS at once, which uses as many threads as OpenMP may have."""

    index: Any
    exact: bool

    @property
    def num_bytes(self) -> int:
        """Return the size of the index as a file plus that of the tables that are computed when it is loaded."""
        sizes: list[int] = []
        library = _library()
        library.write_index(self.index, library.PyCallbackIOWriter(lambda part: sizes.append(len(part))))
        return sum(sizes) + 4 * (self.index.precomputed_table.size() if hasattr(self.index, "precomputed_table") else 0)

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors (Q, K), best first; -1 where fewer were found."""
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        score_QK, found_QK = self.index.search(queries_QD, top_k + self.exact)
        # FAISS returns equally similar vectors in any order. Missing neighbours have the worst possible score.
        cost_QK = score_QK if self.index.metric_type == _library().METRIC_L2 else -score_QK
        order_QK = np.lexsort((found_QK, cost_QK), axis=1)
        found_QK, cost_QK = (np.take_along_axis(part, order_QK, 1) for part in (found_QK, cost_QK))
        if self.exact:  # FAISS also returns any of the vectors tied for the last rank
            tied = (found_QK[:, top_k] >= 0) & (cost_QK[:, top_k] - cost_QK[:, top_k - 1] < ROUNDING)
            for q in np.flatnonzero(tied):
                found_QK[q, :top_k] = self._above(queries_QD[q], -cost_QK[q, top_k - 1], top_k)
        nearest_QK: Ints = found_QK[:, :top_k]
        return nearest_QK

    def _above(self, query_D: Floats, least: float, top_k: int) -> Ints:
        """Return the best K vectors at least as similar as `least`, equally similar ones by number."""
        _, score, number = self.index.range_search(query_D[None], float(least - ROUNDING))
        best: Ints = number[np.lexsort((number, -score))][:top_k]
        return best


@dataclass(frozen=True)
class FaissBinary:
    """Passes the signs of all queries to FAISS at once; the neighbours are those whose signs differ in fewest bits."""

    index: Any

    compares_all: bool
    """Whether every query is compared with every code, so that of equally near ones the first can be found."""

    exact: bool = False

    @property
    def num_bytes(self) -> int:
        """Return the size of the index as a file: D / 8 bytes for each vector, and its lists or buckets."""
        sizes: list[int] = []
        library = _library()
        library.write_index_binary(self.index, library.PyCallbackIOWriter(lambda part: sizes.append(len(part))))
        return sum(sizes)

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest codes (Q, K), best first, equally near ones by number; -1 for the rest."""
        packed = pack_signs(queries_QD)
        distance_QK, found_QK = self.index.search(packed, top_k + self.compares_all)
        order_QK = np.lexsort((found_QK, distance_QK), axis=1)
        found_QK, distance_QK = (np.take_along_axis(part, order_QK, 1) for part in (found_QK, distance_QK))
        if self.compares_all:  # distances are few whole numbers: FAISS returns any of many tied for the last rank
            tied = (found_QK[:, top_k] >= 0) & (distance_QK[:, top_k] == distance_QK[:, top_k - 1])
            for q in np.flatnonzero(tied):
                _, distance, number = self.index.range_search(packed[q : q + 1], int(distance_QK[q, top_k]) + 1)
                found_QK[q, :top_k] = number[np.lexsort((number, distance))][:top_k]
        nearest_QK: Ints = found_QK[:, :top_k]
        return nearest_QK


def _library() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise PluginError(
            "the index 'faiss' needs the package faiss-cpu: run `make setup` or `pip install -c constraints.txt "
            "faiss-cpu`, or leave it out of eval.indexes"
        ) from error
    return faiss


def _build_empty(library: Any, config: Config, num_vectors: int, dim: int) -> Any:
    """Return an untrained, empty index of this kind."""
    if _is_binary(config):
        return _build_empty_binary(library, config, num_vectors, dim)
    if config.kind == "flat":
        return library.IndexFlatIP(dim)
    if config.kind == "hnsw":
        index = library.IndexHNSWFlat(dim, config.hnsw_m, library.METRIC_INNER_PRODUCT)
        index.hnsw.rng = library.RandomGenerator(config.seed)
        index.hnsw.efConstruction = config.ef_construction
        _set_query_settings(config, index)
        return index
    metric = library.METRIC_L2 if config.metric == "l2" else library.METRIC_INNER_PRODUCT
    centres = library.IndexFlat(dim, metric)
    nlist = max(1, min(config.nlist, config.train_vectors, num_vectors))
    if config.kind == "ivf-flat":
        index = library.IndexIVFFlat(centres, dim, nlist, metric)
        clusterings = [index]
    else:
        index, clusterings = _build_pq(library, config, centres, nlist, metric)
    for clustering in clusterings:
        clustering.cp.seed = config.seed
        clustering.cp.min_points_per_centroid = 1  # below 39 FAISS prints a warning to standard error
    _set_query_settings(config, index)
    return index


def _build_empty_binary(library: Any, config: Config, num_vectors: int, dim: int) -> Any:
    if dim % 8:
        raise ConfigError(
            f"index.faiss.kind = {config.kind} packs eight signs into a byte: the dimensions must be a multiple "
            f"of 8, got {dim}; use an encoder with {dim // 8 * 8 + 8}"
        )
    if config.kind == "binary-flat":
        return library.IndexBinaryFlat(dim)
    if config.kind == "binary-ivf":
        nlist = max(1, min(config.nlist, config.train_vectors, num_vectors))
        index = library.IndexBinaryIVF(library.IndexBinaryFlat(dim), dim, nlist)
        index.cp.seed = config.seed
        index.cp.min_points_per_centroid = 1  # below 39 FAISS prints a warning to standard error
    else:
        index = library.IndexBinaryHash(dim, min(config.hash_bits, dim))
    _set_query_settings(config, index)
    return index


def _set_query_settings(config: Config, index: Any) -> None:
    """Set what only affects queries (QUERY_SETTINGS): the index may have been saved with other values."""
    if config.kind == "hnsw":
        index.hnsw.efSearch = config.ef_search
    elif config.kind == "binary-hash":
        index.nflip = min(config.hash_flips, index.b)
    elif config.kind not in ("flat", "binary-flat"):
        index.nprobe = config.nprobe
    if config.kind == "ivf-pq-refine":
        index.k_factor = config.refine_factor


def _build_pq(library: Any, config: Config, centres: Any, nlist: int, metric: int) -> tuple[Any, list[Any]]:
    """Return an index of codes, and all its parts that are trained by clustering."""
    parts, dim = config.sub_quantisers, centres.d
    _check_divides("sub_quantisers", parts, dim)
    if config.kind == "ivf-pq":
        index = library.IndexIVFPQ(centres, dim, nlist, parts, config.bits, metric)
        return index, [index, index.pq]
    _check_divides("refine_sub_quantisers", config.refine_sub_quantisers, dim)
    index = library.IndexIVFPQR(
        centres, dim, nlist, parts, config.bits, config.refine_sub_quantisers, config.refine_bits
    )
    return index, [index, index.pq, index.refine_pq]


def _check_divides(name: str, parts: int, dim: int) -> None:
    if dim % parts:
        divisor = max(number for number in range(1, min(parts, dim) + 1) if dim % number == 0)
        raise ConfigError(
            f"index.faiss.{name} must divide the {dim} dimensions of the vectors, got {parts}; use {divisor}"
        )


def _draw_training_vectors(config: Config, vectors_ND: Floats) -> Floats:
    """Return the training vectors (T, D): a sample in the order of the database, repeated if codes need more."""
    num_vectors, dim = vectors_ND.shape
    draw = np.random.default_rng(config.seed)
    size = min(config.train_vectors, num_vectors)
    drawn_TD = vectors_ND[np.sort(draw.choice(num_vectors, size, replace=False, shuffle=False))] if size else vectors_ND
    # FAISS rejects fewer vectors than centroids. An empty database is trained on zeros, and finds nothing.
    least = {"ivf-pq": 2**config.bits, "ivf-pq-refine": 2 ** max(config.bits, config.refine_bits)}
    return np.resize(drawn_TD, (max(size, least.get(config.kind, 1)), dim))


@contextmanager
def _limit_threads(library: Any, number: int) -> Iterator[None]:
    """Limit FAISS to this number of threads inside the block."""
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(number)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)
