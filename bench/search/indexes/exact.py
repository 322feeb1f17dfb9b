"""Brute-force search through all vectors, block by block, on CPU or GPU: exact in float32, nearly exact in fewer bits.

Sorting every row of similarities would take a third of the time of computing them (on a GPU five times that time).
Instead adjacent vectors form groups, and one pass takes the maximum of each group: the C largest similarities lie in
the C groups with the largest maxima, so that only the members of these are sorted. Equal similarities are ordered by
number: similarity and number are packed into one 64-bit integer, similarity first, and the largest integers are taken.

With `storage` fp16 or int8 the products are of short codes. Their best C are candidates, whose similarities are
recomputed from the float32 vectors on disk. Those of fp32 are recomputed too: a matrix product rounds equal vectors
differently at the incomplete end of a block, and a row-by-row sum does not.

Cost: time Q N D, most of it the products; memory N D bytes times 4, 2 or 1 (fp32 is read from the memory map), a tile
of similarities (16 MB on the CPU, 4 GB or less on a GPU) and C D floats for some hundred queries.
Measured on one busy core, 104,178 x 128 real fingerprints, processor time: fp32 takes 8 ms for a single query and
0.6 ms for each of 64 (1.6 and 1.4 times as fast as topk over blocks); int8 takes a fifth and a half of that, as it
reads a quarter of the bytes; fp16 is faster for a single query only, as a CPU has to widen it. CUDA: not measured.

Shape legend: N database vectors, Q query vectors, D dimensions, K neighbours, C candidates, B vectors of a block,
G groups of a block, V vectors of a group, R vectors after the last whole group.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from bench.errors import ConfigError, StoreError
from bench.values import Floats, Ints

CITE = ""
LICENSE = "MIT"
SOURCE = "own definition"

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}
CODES = "codes.npy"
QUERY_SETTINGS = ("device", "spare")
LARGEST_CODE = 127
BLOCK_CODED = 65_536  # vectors encoded at once
MARGIN = 8  # additional candidates, whatever K: rounding may rank some before a true neighbour
LAST = 2**32 - 1  # numbers of vectors are below it
EMPTY = torch.iinfo(torch.int64).min  # the key that stands for no vector; its number is LAST
# Positive floats have the order of their bits, read as integers of the same width.
BITS = {torch.float32: torch.int32, torch.float16: torch.int16}
LEAST_ROWS = 24  # torch._int_mm on CUDA needs more than 16 rows, and columns in multiples of 8


@dataclass(frozen=True)
class Config:
    """Settings of the search."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where blocks are multiplied; `auto` uses the GPU if there is one."""

    storage: Literal["fp32", "fp16", "int8"] = "fp32"
    """Type of the numbers that are multiplied; only fp32 is exact."""

    spare: int = 2
    """Candidates per requested neighbour, with fp16 and int8: C = spare K + 8; at least 1."""

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("index.exact.device = cuda, but torch sees no GPU here; use auto")
        if self.spare < 1:
            raise ConfigError(f"index.exact.spare must be >= 1, got {self.spare}; the default is 2")


@dataclass(frozen=True)
class Tiles:
    """Sizes of what is computed at once."""

    queries: int
    """Queries per tile."""

    similarities: int
    """Similarities per tile."""

    group: int
    """Vectors per group."""

    copied: int
    """Bytes of a block that has to be copied."""


# On the CPU a tile fits into the third-level cache. On a GPU large groups halve the sorting, and tiles may be large;
# these sizes are reasoned, not measured.
TILES = {"cpu": Tiles(128, 1 << 22, 64, 1 << 24), "cuda": Tiles(512, 1 << 30, 128, 1 << 30)}


def presets() -> dict[str, Config]:
    """Return the settings for each type of numbers."""
    return {"fp32": Config(), "fp16": Config(storage="fp16"), "int8": Config(storage="int8")}


def build(config: Config, vectors_ND: Floats) -> Exact:
    """Return the index. fp32 copies nothing, except to a GPU that has room; the other types encode the vectors now.

    Cost: two passes over the vectors for int8, one for fp16; memory the codes and one block.
    """
    vectors = _as_tensor(vectors_ND)
    return _build_index(
        config, vectors, vectors if config.storage == "fp32" else _encode(vectors, TYPES[config.storage])
    )


def keeps(config: Config) -> bool:
    """Return whether there is anything to save: fp32 has no codes."""
    return config.storage != "fp32"


def save(index: Exact, folder: Path) -> None:
    """Write the codes; only an index for which `keeps` is true has any."""
    np.save(folder / CODES, index.codes_ND.cpu().numpy())


def load(config: Config, folder: Path, vectors_ND: Floats) -> Exact:
    """Return the index with its codes in memory. Raises: StoreError if they are damaged or of other vectors."""
    path = folder / CODES
    remedy = f"delete the folder {folder} and run again"
    try:
        codes = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path} is damaged ({error}); {remedy}") from error
    if codes.shape != vectors_ND.shape or codes.dtype != TYPES[config.storage]:
        raise StoreError(
            f"{path} holds {tuple(codes.shape)} {codes.dtype}, which are not codes of {vectors_ND.shape} vectors as "
            f"{config.storage}; {remedy}"
        )
    return _build_index(config, _as_tensor(vectors_ND), codes)


@dataclass(frozen=True, eq=False)
class Exact:
    """The vectors, and the codes multiplied instead of them (for fp32 the same), on the device if it has room."""

    vectors_ND: Tensor
    codes_ND: Tensor
    device: torch.device
    spare: int
    exact: bool
    tiles: Tiles

    @property
    def num_bytes(self) -> int:
        """Return the size of the codes: each query reads all of them, but very few of the vectors."""
        return self.codes_ND.nbytes

    @torch.inference_mode()
    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors (Q, K), best first, equally similar ones by number.

        The database is read once, for any number of queries.
        """
        if not len(queries_QD) or not len(self.codes_ND):
            return np.full((len(queries_QD), top_k), -1, dtype=np.int64)
        queries = _as_tensor(queries_QD).to(self.device)
        # Candidates by their codes, then the nearest of them by their vectors.
        return self._rank(queries, _unpack_numbers(self._candidates(queries, top_k * self.spare + MARGIN)), top_k)

    @torch.inference_mode()
    def nearest_among(self, queries_QD: Floats, candidates_QC: Ints, top_k: int) -> Ints:
        """Return the nearest K of each query's candidates, at least K, as `neighbours` orders them."""
        queries = _as_tensor(queries_QD).to(self.device)
        return self._rank(queries, torch.from_numpy(candidates_QC).to(self.device), top_k)

    def _candidates(self, queries_QD: Tensor, num_candidates: int) -> Tensor:
        """Return the keys (Q, C) of the best vectors by their codes, best first."""
        dtype = self._pick_dtype(len(queries_QD))
        query_QD = _quantise(queries_QD, queries_QD.abs().amax(1, keepdim=True)) if dtype == torch.int8 else queries_QD
        query_QD = query_QD.to(dtype)
        best_QC = torch.full((len(query_QD), num_candidates), EMPTY, device=self.device)
        tiles = list(_slices(len(query_QD), self.tiles.queries))
        for block in _slices(len(self.codes_ND), self._block_vectors(len(query_QD), dtype)):
            block_BD = self.codes_ND[block].to(self.device, dtype)
            for rows in tiles:
                whole_QGV, rest_QR = _products(query_QD[rows], block_BD, self.tiles.group)
                best_QC[rows] = _update_best(best_QC[rows], whole_QGV, rest_QR, block.start)
        return best_QC

    def _rank(self, queries_QD: Tensor, number_QC: Tensor, top_k: int) -> Ints:
        """Return the nearest K of the candidates (Q, K), -1 where there are fewer, for blocks of queries."""
        found_QK = np.empty((len(queries_QD), top_k), dtype=np.int64)
        per_block = max(1, self.tiles.similarities // number_QC.shape[1] // queries_QD.shape[1])
        for rows in _slices(len(queries_QD), per_block):
            found_QK[rows] = self._nearest(queries_QD[rows], number_QC[rows], top_k).cpu().numpy()
        return found_QK

    def _nearest(self, queries_QD: Tensor, number_QC: Tensor, top_k: int) -> Tensor:
        """Return the best K of the candidates (Q, K) by float32 similarity, -1 where there are fewer."""
        num_vectors = len(self.vectors_ND)
        row_QC = number_QC.clamp(max=num_vectors - 1).to(self.vectors_ND.device)
        # Multiplied and summed row by row, so that equal vectors have equal sums wherever they are.
        similarity_QC = (self.vectors_ND[row_QC].to(self.device) * queries_QD[:, None]).sum(2)
        key_QC = torch.where(number_QC < num_vectors, _pack_keys(similarity_QC, number_QC), EMPTY)
        found_QK = _unpack_numbers(key_QC.topk(top_k, dim=1).values)
        return torch.where(found_QK < num_vectors, found_QK, -1)

    def _pick_dtype(self, num_queries: int) -> torch.dtype:
        """Return the type to multiply in: that of the codes, except that CPUs are slow at half-precision matrices."""
        is_half = self.codes_ND.dtype == torch.float16
        return torch.float32 if is_half and num_queries > 1 and self.device.type == "cpu" else self.codes_ND.dtype

    def _block_vectors(self, num_queries: int, dtype: torch.dtype) -> int:
        """Return the number of vectors per block, a multiple of a group: a tile, or less if they have to be copied."""
        vectors = self.tiles.similarities // min(num_queries, self.tiles.queries)
        if dtype != self.codes_ND.dtype or self.codes_ND.device.type != self.device.type:
            vectors = min(vectors, self.tiles.copied // (self.codes_ND.shape[1] * dtype.itemsize))
        return max(1, vectors // self.tiles.group) * self.tiles.group


def _build_index(config: Config, vectors_ND: Tensor, codes_ND: Tensor) -> Exact:
    assert len(codes_ND) < LAST
    fastest = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(fastest if config.device == "auto" else config.device)
    uncoded = codes_ND is vectors_ND
    # The codes first, in case there is room for one of the two only: each query reads all of the codes.
    codes_ND = _move_if_fits(codes_ND, device)
    vectors_ND = codes_ND if uncoded else _move_if_fits(vectors_ND, device)
    return Exact(vectors_ND, codes_ND, device, 1 if uncoded else config.spare, uncoded, _tiles(device))


def _tiles(device: torch.device) -> Tiles:
    """Return the sizes for a device, smaller on a GPU with little free memory: a similarity takes at most 16 bytes."""
    tiles = TILES[device.type]
    if device.type == "cpu":
        return tiles
    return replace(tiles, similarities=min(tiles.similarities, torch.cuda.mem_get_info(device)[0] // 16))


def _move_if_fits(tensor_ND: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the GPU if it takes at most half of the free memory there, otherwise unmoved."""
    if device.type == "cpu" or tensor_ND.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return tensor_ND
    return tensor_ND.to(device)


def _as_tensor(vectors_ND: Floats) -> Tensor:
    """Return a view of an array, to be read only; torch would warn that a memory map is not writable."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.require(vectors_ND, np.float32, ["C_CONTIGUOUS"]))


def _encode(vectors_ND: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the vectors in half precision, or as integers from -127 to 127.

    One scale serves all vectors. A scale per vector would make int8 more accurate, but costs 4 bytes per vector and a
    multiplication per similarity. Candidates make up for that: for 5,400 noisy queries to 104,178 fingerprints of a
    trained encoder or of the random projection, the nearest vector was always among the first 4 by int8, and the
    nearest 20 were among the first 40 for all but one query (fp16: always the first, and the first 24).
    """
    blocks = list(_slices(len(vectors_ND), BLOCK_CODED))
    codes_ND = torch.empty(vectors_ND.shape, dtype=dtype)
    largest = torch.zeros(())
    if dtype == torch.int8:
        largest = torch.stack([largest, *(vectors_ND[block].abs().max() for block in blocks)]).max()
    for block in blocks:
        codes_ND[block] = _quantise(vectors_ND[block], largest) if dtype == torch.int8 else vectors_ND[block]
    return codes_ND


def _quantise(vectors_ND: Tensor, largest: Tensor) -> Tensor:
    """Return the vectors as int8, scaled so that `largest` becomes 127."""
    return (vectors_ND * (LARGEST_CODE / largest.clamp(min=torch.finfo(torch.float32).tiny))).round().to(torch.int8)


def _products(query_QD: Tensor, block_BD: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return the similarities of queries and a block of one type: of whole groups (Q, G, V) and of the rest (Q, R).

    The rest is padded with zeros to a group, as products of sizes that are not multiples of 8 round differently.
    """
    whole = len(block_BD) // group * group
    rest = len(block_BD) - whole
    whole_QB = _product(query_QD, block_BD[:whole])
    rest_QR = whole_QB[:, :0]
    if rest:
        rest_QR = _product(query_QD, pad(block_BD[whole:], (0, 0, 0, group - rest)))[:, :rest]
    return whole_QB.view(len(query_QD), whole // group, group), rest_QR


def _product(query_QD: Tensor, block_BD: Tensor) -> Tensor:
    """Return all inner products (Q, B): as int32 for int8, otherwise in the type of the arguments."""
    if not len(block_BD):
        return torch.zeros(len(query_QD), 0, device=query_QD.device)
    if query_QD.dtype != torch.int8:
        return query_QD @ block_BD.T
    if query_QD.device.type == "cuda":
        return _int_product(*_pad_for_cuda(query_QD, block_BD))[: len(query_QD)]
    return _int_product(query_QD, block_BD)


def _int_product(query_QD: Tensor, block_BD: Tensor) -> Tensor:
    product: Any = torch._int_mm  # not public as of torch 2.13
    similarity_QB: Tensor = product(query_QD, block_BD.T)
    return similarity_QB


def _pad_for_cuda(query_QD: Tensor, block_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both zero-padded to what CUDA can multiply: enough queries, and dimensions in multiples of 8."""
    dimensions = -query_QD.shape[1] % 8
    query_QD = pad(query_QD, (0, dimensions, 0, max(0, LEAST_ROWS - len(query_QD))))
    return query_QD, pad(block_BD, (0, dimensions)) if dimensions else block_BD  # pad copies even if it adds nothing


def _update_best(best_QC: Tensor, whole_QGV: Tensor, rest_QR: Tensor, start: int) -> Tensor:
    """Return the keys of the best C among the best so far and a block that starts with vector number `start`."""
    num_groups, group = whole_QGV.shape[1:]
    device = best_QC.device
    # 1. The groups with the largest maxima; here the number in a key is that of the group.
    key_QG = _pack_keys(whole_QGV.amax(2), torch.arange(num_groups, device=device))
    group_QC = _unpack_numbers(key_QG.topk(min(best_QC.shape[1], num_groups), dim=1).values)
    # 2. The keys of their members, and of the vectors after the last whole group.
    member_QCV = whole_QGV.gather(1, group_QC[:, :, None].expand(-1, -1, group))
    number_QCV = group_QC[:, :, None] * group + torch.arange(start, start + group, device=device)
    rest_number_R = torch.arange(rest_QR.shape[1], device=device) + (start + num_groups * group)
    key_QC = _pack_keys(member_QCV, number_QCV).flatten(1)
    return torch.cat([best_QC, key_QC, _pack_keys(rest_QR, rest_number_R)], dim=1).topk(best_QC.shape[1], dim=1).values


def _pack_keys(similarity: Tensor, number: Tensor) -> Tensor:
    """Return one int64 per pair, ordered by similarity, then by descending number.

    The upper 32 bits hold the similarity (a float as an integer of the same order), the lower 32 LAST - number. The
    largest key is thus the most similar vector, and among equal ones that with the lowest number.
    """
    if similarity.dtype.is_floating_point:
        bits = similarity.view(BITS[similarity.dtype])
        similarity = torch.where(bits < 0, torch.iinfo(bits.dtype).min - bits, bits)  # -0 and 0 are equal
    return torch.add(LAST - number, similarity, alpha=1 << 32)


def _unpack_numbers(key: Tensor) -> Tensor:
    """Return the vector numbers in keys."""
    return LAST - (key & LAST)


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
