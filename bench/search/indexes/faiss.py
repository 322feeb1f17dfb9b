"""FAISS: the indexes that the peers search with, from all vectors to 64 bytes for each.

Defaults are NAFP's: 256 lists, of which 40 are read, and 64 codes of 8 bits. What other systems use is in faiss.toml
beside this file (`presets`).

- `flat`: every vector, in memory once more.
- `ivf-flat`: vectors in lists, by their nearest of `nlist` centres; those of the nearest `nprobe` centres are compared.
- `ivf-pq`: the same lists of codes: `sub_quantisers` parts of what the centre leaves over, `bits` each.
- `ivf-pq-refine`: its best `refine_factor` times K, put in order by further codes of what the first leave over.
- `hnsw`: vectors as nodes of a graph that is walked towards the query.

Where only codes are kept, the order is by the similarity that the codes give. The same settings give the same index.

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

from bench.errors import ConfigError, PluginError, StoreError
from bench.settings import require
from bench.values import Floats, Ints

CITE = "Douze et al., The Faiss library, arXiv 2401.08281"
LICENSE = "MIT"
SOURCE = "FAISS 1.15.1"
LIBRARY = "faiss-cpu"
TRUSTED_FILES_ONLY = True  # FAISS takes sizes from the file, and warns that one made to deceive can do anything

FILE = "index.faiss"
QUERY_SETTINGS = ("nprobe", "ef_search", "refine_factor")
BLOCK_VECTORS = 65_536
MOST_BITS = 16  # 65,536 centroids of each part: as many training vectors are needed
ROUNDING = 1e-6  # of a similarity: sums in another order differ by less

Kind = Literal["flat", "ivf-flat", "ivf-pq", "ivf-pq-refine", "hnsw"]


@dataclass(frozen=True)
class Config:
    """Settings of the index; each kind uses some of them, see the module's text."""

    kind: Kind = "ivf-pq"
    """The kind of index."""

    metric: Literal["l2", "inner_product"] = "l2"
    """What the lists and codes of the `ivf` kinds are made for; `ivf-pq-refine` has `l2` alone.

    For unit vectors both have the same neighbours. For codes, whose sums are not of unit length, `l2` finds more: on
    104,178 fingerprints 99.6 % of the nearest against 98.7 %. The peers use `l2`, except pfann.
    """

    nlist: int = 256
    """Lists of the `ivf` kinds, at least 1; never more than training vectors, so that small databases work too."""

    nprobe: int = 40
    """Lists read for each query, from 1 to `nlist`, which reads all."""

    sub_quantisers: int = 64
    """Parts of a vector that have a code each, at least 1."""

    bits: int = 8
    """Bits of a code, from 1 to 16; 8 is usual."""

    refine_sub_quantisers: int = 4
    """Parts of what the first codes leave over that have a code each, at least 1."""

    refine_bits: int = 4
    """Bits of such a second code, from 1 to 16."""

    refine_factor: int = 4
    """Candidates for each neighbour asked for that the second codes put in order, at least 1."""

    hnsw_m: int = 16
    """Links of a node of the graph, at least 2; 16 to 64 is usual."""

    ef_construction: int = 80
    """Candidates kept while the graph is built, at least 1."""

    ef_search: int = 16
    """Candidates kept while the graph is searched, at least 1."""

    train_vectors: int = 65_536
    """Vectors drawn to train centres and codes, at least 1.

    FAISS uses no more than 256 for each centroid, of which there are 256 here.
    """

    seed: int = 1234
    """Seed of the training, from 0 to 2^31 - 1."""

    def __post_init__(self) -> None:
        for name in ("nlist", "sub_quantisers", "refine_sub_quantisers", "refine_factor", "train_vectors"):
            require(getattr(self, name) >= 1, f"index.faiss.{name} must be >= 1", getattr(self, name))
        require(
            1 <= self.nprobe <= self.nlist,
            f"index.faiss.nprobe must be from 1 to nlist = {self.nlist} (which reads all)",
            self.nprobe,
        )
        for name in ("bits", "refine_bits"):
            bits = getattr(self, name)
            require(1 <= bits <= MOST_BITS, f"index.faiss.{name} must be from 1 to {MOST_BITS}; 8 is usual", bits)
        require(self.hnsw_m >= 2, "index.faiss.hnsw_m must be >= 2; 16 to 64 is usual", self.hnsw_m)
        for name in ("ef_construction", "ef_search"):
            require(getattr(self, name) >= 1, f"index.faiss.{name} must be >= 1", getattr(self, name))
        require(0 <= self.seed < 2**31, "index.faiss.seed must be from 0 to 2147483647", self.seed)
        if self.kind == "ivf-pq-refine":
            rule = "index.faiss.metric must be l2 for ivf-pq-refine: FAISS refines by no other"
            require(self.metric == "l2", rule, self.metric)


def presets() -> dict[str, Config]:
    """Return settings that were published, by the system that uses them; faiss.toml gives their sources."""
    settings = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {name: Config(**values) for name, values in settings.items()}


def build(config: Config, vectors_ND: Floats) -> Faiss:
    """Return the index; vectors are read in blocks, so memory holds the index and one of them.

    Raises: PluginError if FAISS is not installed; ConfigError if the codes do not fit the number of dimensions.
    """
    library = _library()
    index = _build_empty(library, config, *vectors_ND.shape)
    if not index.is_trained:
        index.train(_draw_training_vectors(config, vectors_ND))
    if config.kind == "flat":  # grown block by block it would be copied, and twice in memory then
        index.codes.resize(4 * vectors_ND.size)
        index.codes.resize(0)
    # Nodes that several threads put into a graph come in any order, and each time another graph comes of it.
    threads = 1 if config.kind == "hnsw" else library.omp_get_max_threads()
    with _limit_threads(library, threads):
        for start in range(0, len(vectors_ND), BLOCK_VECTORS):
            index.add(np.ascontiguousarray(vectors_ND[start : start + BLOCK_VECTORS], dtype=np.float32))
    return Faiss(index, exact=config.kind == "flat")


def keeps(config: Config) -> bool:
    """Say whether the index is worth a file: the flat one is a copy of the vectors, read as quickly from them."""
    return config.kind != "flat"


def save(index: Faiss, folder: Path) -> None:
    """Write the index into one file."""
    _library().write_index(index.index, str(folder / FILE))


def load(config: Config, folder: Path, vectors_ND: Floats) -> Faiss:
    """Return the index that was saved for these vectors and settings.

    Raises: StoreError if the file is missing, damaged, or that of another index; PluginError if FAISS is not installed.
    """
    library = _library()
    path, remedy = folder / FILE, f"delete the folder {folder.parent}, and it is built again"
    try:
        index = library.read_index(str(path))
    except (RuntimeError, MemoryError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise StoreError(f"{path} cannot be read ({told}); {remedy}") from error
    wanted = _build_empty(library, config, *vectors_ND.shape)
    for what, found, right in (
        ("kind", type(index).__name__, type(wanted).__name__),
        ("vectors", index.ntotal, len(vectors_ND)),
        ("dimensions", index.d, vectors_ND.shape[1]),
    ):
        if found != right:
            raise StoreError(f"{path} is of another index ({what}: {found}, wanted {right}); {remedy}")
    _set_query_settings(config, index)
    return Faiss(index, exact=config.kind == "flat")


@dataclass(frozen=True)
class Faiss:
    """Asks FAISS for all queries at once; it takes as many threads as OpenMP may have."""

    index: Any
    exact: bool

    @property
    def num_bytes(self) -> int:
        """Return the size of the index as a file, and of the tables that are made of it at once."""
        sizes: list[int] = []
        library = _library()
        library.write_index(self.index, library.PyCallbackIOWriter(lambda part: sizes.append(len(part))))
        return sum(sizes) + 4 * (self.index.precomputed_table.size() if hasattr(self.index, "precomputed_table") else 0)

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors (Q, K), best first; -1 where fewer were found."""
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        score_QK, found_QK = self.index.search(queries_QD, top_k + self.exact)
        # FAISS leaves equal ones in any order. What was not found has the worst score there is.
        cost_QK = score_QK if self.index.metric_type == _library().METRIC_L2 else -score_QK
        order_QK = np.lexsort((found_QK, cost_QK), axis=1)
        found_QK, cost_QK = (np.take_along_axis(part, order_QK, 1) for part in (found_QK, cost_QK))
        if self.exact:  # and keeps any of those that are equal at the end
            tied = (found_QK[:, top_k] >= 0) & (cost_QK[:, top_k] - cost_QK[:, top_k - 1] < ROUNDING)
            for q in np.flatnonzero(tied):
                found_QK[q, :top_k] = self._above(queries_QD[q], -cost_QK[q, top_k - 1], top_k)
        nearest_QK: Ints = found_QK[:, :top_k]
        return nearest_QK

    def _above(self, query_D: Floats, least: float, top_k: int) -> Ints:
        """Return the best K of all that are as similar as `least`, equal ones by number."""
        _, score, number = self.index.range_search(query_D[None], float(least - ROUNDING))
        best: Ints = number[np.lexsort((number, -score))][:top_k]
        return best


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
    """Return an index of this kind that has seen no vector."""
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
        trained = [index]
    else:
        index, trained = _build_pq(library, config, centres, nlist, metric)
    for part in trained:
        part.cp.seed = config.seed
        part.cp.min_points_per_centroid = 1  # it warns of fewer than 39, on the standard error of its own
    _set_query_settings(config, index)
    return index


def _set_query_settings(config: Config, index: Any) -> None:
    """Set what only matters to queries (QUERY_SETTINGS); the index may have been saved with other values."""
    if config.kind == "hnsw":
        index.hnsw.efSearch = config.ef_search
    elif config.kind != "flat":
        index.nprobe = config.nprobe
    if config.kind == "ivf-pq-refine":
        index.k_factor = config.refine_factor


def _build_pq(library: Any, config: Config, centres: Any, nlist: int, metric: int) -> tuple[Any, list[Any]]:
    """Return an index of codes, and all in it that is trained by clustering."""
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
        fits = max(number for number in range(1, min(parts, dim) + 1) if dim % number == 0)
        raise ConfigError(
            f"index.faiss.{name} must divide the {dim} dimensions of the vectors, got {parts}; use {fits}"
        )


def _draw_training_vectors(config: Config, vectors_ND: Floats) -> Floats:
    """Return the vectors to train on (T, D): a sample in the order of the database, repeated if codes need more."""
    num_vectors, dim = vectors_ND.shape
    draw = np.random.default_rng(config.seed)
    size = min(config.train_vectors, num_vectors)
    drawn_TD = vectors_ND[np.sort(draw.choice(num_vectors, size, replace=False, shuffle=False))] if size else vectors_ND
    # FAISS refuses fewer vectors than centroids. An empty database is trained on zeros, and finds nothing.
    least = {"ivf-flat": 1, "ivf-pq": 2**config.bits, "ivf-pq-refine": 2 ** max(config.bits, config.refine_bits)}
    return np.resize(drawn_TD, (max(size, least[config.kind]), dim))


@contextmanager
def _limit_threads(library: Any, number: int) -> Iterator[None]:
    """Give FAISS so many threads for a while."""
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(number)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)
