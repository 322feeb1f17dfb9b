"""Search through all vectors, block by block, on the CPU or the GPU; in float32 exact, in fewer bits nearly.

Sorting every row of similarities takes a third of the time of computing them (on a GPU five times that time).
Vectors next to each other make a group, and one pass takes each group's maximum: the C largest lie in the C groups
with the largest maxima, so that only the members of these are sorted. Equal similarities come by number, which is
kept below the similarity in one whole number of 64 bits: the largest of these are the first in the right order.

With `storage` fp16 or int8 the blocks are products of short codes. Their best C are candidates, whose similarities
are computed again from the float32 vectors on disk. So are those of fp32: a matrix product rounds equal vectors
differently where they stand at the ragged end of a block, and a sum does not.

Cost: time Q N D, most of it the products; memory N D bytes times 4, 2 or 1 (fp32 is read from the memory map), a tile
of similarities (16 MB on the CPU, 4 GB or less on a GPU) and C D floats for some hundred queries.
Measured on one busy core, 104,178 x 128 real fingerprints, processor time: fp32 takes 8 ms for a query alone and
0.6 ms for each of 64 (1.6 and 1.4 times as fast as topk over blocks); int8 a fifth and a half of that, as it reads
a quarter of the bytes; fp16 is quicker for a query alone only, for a CPU has to widen it. CUDA: not measured.

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
BLOCK_CODED = 65_536  # vectors read at a time to make codes
MARGIN = 8  # candidates that even one neighbour has beside it: rounding may put some before it
LAST = 2**32 - 1  # numbers of vectors are below it
EMPTY = torch.iinfo(torch.int64).min  # the key of no vector, whose number is LAST
# Floats without a sign are in the order of their bits, read as whole numbers of the same width.
BITS = {torch.float32: torch.int32, torch.float16: torch.int16}
LEAST_ROWS = 24  # torch._int_mm on CUDA wants more than 16 rows, and columns by 8


@dataclass(frozen=True)
class Config:
    """Settings of the search."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where blocks are multiplied; `auto` takes the GPU if there is one."""

    storage: Literal["fp32", "fp16", "int8"] = "fp32"
    """Type of the numbers that are multiplied; fp32 alone is exact."""

    spare: int = 2
    """Candidates for each neighbour asked for, with fp16 and int8: C = spare K + 8; at least 1."""

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("index.exact.device = cuda, but torch sees no GPU here; use auto")
        if self.spare < 1:
            raise ConfigError(f"index.exact.spare must be >= 1, got {self.spare}; the default is 2")


@dataclass(frozen=True)
class Tiles:
    """Sizes of what is computed at once: queries, similarities, vectors of a group, bytes of a block that is copied."""

    queries: int
    similarities: int
    group: int
    copied: int


# On the CPU a tile stays in the third-level cache. On a GPU large groups halve the sorting and no tile need be small;
# its sizes are reasoned, not measured.
TILES = {"cpu": Tiles(128, 1 << 22, 64, 1 << 24), "cuda": Tiles(512, 1 << 30, 128, 1 << 30)}


def presets() -> dict[str, Config]:
    """Return a setting for each kind of numbers."""
    return {"fp32": Config(), "fp16": Config(storage="fp16"), "int8": Config(storage="int8")}


def build(config: Config, vectors_ND: Floats) -> Exact:
    """Return the index. fp32 copies nothing (but to a GPU that has room); the others make their codes now.

    Cost: two readings of the vectors for int8, one for fp16; memory the codes and one block.
    """
    vectors = _as_tensor(vectors_ND)
    return _build_index(
        config, vectors, vectors if config.storage == "fp32" else _encode(vectors, TYPES[config.storage])
    )


def keeps(config: Config) -> bool:
    """Say whether there is anything to keep: fp32 has no codes."""
    return config.storage != "fp32"


def save(index: Exact, folder: Path) -> None:
    """Write the codes; only an index that `keeps` something has any."""
    np.save(folder / CODES, index.codes_ND.cpu().numpy())


def load(config: Config, folder: Path, vectors_ND: Floats) -> Exact:
    """Return the index with its codes read into memory. Raises: StoreError if they are damaged or of others."""
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
    """The vectors, and what is multiplied instead of them (the same for fp32), on the device if it has room."""

    vectors_ND: Tensor
    codes_ND: Tensor
    device: torch.device
    spare: int
    exact: bool
    tiles: Tiles

    @property
    def num_bytes(self) -> int:
        """Return the size of the codes: every query reads all of them, and of the vectors very few."""
        return self.codes_ND.nbytes

    @torch.inference_mode()
    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors (Q, K), best first, equal ones by number.

        The database is read once, whatever the number of queries.
        """
        found_QK = np.full((len(queries_QD), top_k), -1, dtype=np.int64)
        if not len(queries_QD) or not len(self.codes_ND):
            return found_QK
        queries = _as_tensor(queries_QD).to(self.device)
        best_QC = self._candidates(queries, top_k * self.spare + MARGIN)
        per_block = max(1, self.tiles.similarities // best_QC.shape[1] // queries.shape[1])
        for rows in _slices(len(queries), per_block):
            found_QK[rows] = self._nearest(queries[rows], _unpack_numbers(best_QC[rows]), top_k).cpu().numpy()
        return found_QK

    def _candidates(self, queries_QD: Tensor, num_candidates: int) -> Tensor:
        """Return the keys (Q, C) of the best vectors by their codes, best first."""
        kind = self._pick_dtype(len(queries_QD))
        query_QD = _quantise(queries_QD, queries_QD.abs().amax(1, keepdim=True)) if kind == torch.int8 else queries_QD
        query_QD = query_QD.to(kind)
        best_QC = torch.full((len(query_QD), num_candidates), EMPTY, device=self.device)
        tiles = list(_slices(len(query_QD), self.tiles.queries))
        for block in _slices(len(self.codes_ND), self._block_vectors(len(query_QD), kind)):
            block_BD = self.codes_ND[block].to(self.device, kind)
            for rows in tiles:
                whole_QGV, rest_QR = _products(query_QD[rows], block_BD, self.tiles.group)
                best_QC[rows] = _update_best(best_QC[rows], whole_QGV, rest_QR, block.start)
        return best_QC

    def _nearest(self, queries_QD: Tensor, number_QC: Tensor, top_k: int) -> Tensor:
        """Return the best K of the candidates (Q, K) by float32 similarity, -1 where there are fewer."""
        num_vectors = len(self.vectors_ND)
        place_QC = number_QC.clamp(max=num_vectors - 1).to(self.vectors_ND.device)
        # Multiplied and summed row by row: equal vectors have equal sums, wherever they stand.
        similarity_QC = (self.vectors_ND[place_QC].to(self.device) * queries_QD[:, None]).sum(2)
        key_QC = torch.where(number_QC < num_vectors, _pack_keys(similarity_QC, number_QC), EMPTY)
        found_QK = _unpack_numbers(key_QC.topk(top_k, dim=1).values)
        return torch.where(found_QK < num_vectors, found_QK, -1)

    def _pick_dtype(self, num_queries: int) -> torch.dtype:
        """Return the kind of numbers to multiply: the codes', but a CPU is slow at matrices of half precision."""
        halves = self.codes_ND.dtype == torch.float16
        return torch.float32 if halves and num_queries > 1 and self.device.type == "cpu" else self.codes_ND.dtype

    def _block_vectors(self, num_queries: int, kind: torch.dtype) -> int:
        """Return how many vectors a block has, whole groups: a tile's, fewer where they have to be copied."""
        vectors = self.tiles.similarities // min(num_queries, self.tiles.queries)
        if kind != self.codes_ND.dtype or self.codes_ND.device.type != self.device.type:
            vectors = min(vectors, self.tiles.copied // (self.codes_ND.shape[1] * kind.itemsize))
        return max(1, vectors // self.tiles.group) * self.tiles.group


def _build_index(config: Config, vectors_ND: Tensor, codes_ND: Tensor) -> Exact:
    assert len(codes_ND) < LAST
    fastest = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(fastest if config.device == "auto" else config.device)
    same = codes_ND is vectors_ND
    # The codes first: if there is room for one of them only, every query reads all of these.
    codes_ND = _move_if_fits(codes_ND, device)
    vectors_ND = codes_ND if same else _move_if_fits(vectors_ND, device)
    return Exact(vectors_ND, codes_ND, device, 1 if same else config.spare, same, _tiles(device))


def _tiles(device: torch.device) -> Tiles:
    """Return the device's sizes, smaller on a GPU with little memory left: a similarity takes at most 16 bytes."""
    tiles = TILES[device.type]
    if device.type == "cpu":
        return tiles
    return replace(tiles, similarities=min(tiles.similarities, torch.cuda.mem_get_info(device)[0] // 16))


def _move_if_fits(tensor_ND: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on a GPU if it takes at most half of its free memory, else where it is."""
    if device.type == "cpu" or tensor_ND.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return tensor_ND
    return tensor_ND.to(device)


def _as_tensor(vectors_ND: Floats) -> Tensor:
    """Return a view of an array that is only read; torch would warn of a memory map that cannot be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.require(vectors_ND, np.float32, ["C_CONTIGUOUS"]))


def _encode(vectors_ND: Tensor, kind: torch.dtype) -> Tensor:
    """Return the vectors as halves, or as whole numbers of -127 to 127.

    One scale serves all vectors. With a scale for each int8 errs less, but takes 4 bytes a vector more and a
    multiplication for each similarity. Candidates make up for it: of 5,400 queries in noise,
    to 104,178 fingerprints of a trained encoder or of the random projection, the nearest vector was always among the
    first 4 by int8, and the nearest 20 among the first 40 for all but one query (fp16: the first, and the first 24).
    """
    blocks = list(_slices(len(vectors_ND), BLOCK_CODED))
    codes_ND = torch.empty(vectors_ND.shape, dtype=kind)
    largest = torch.zeros(())
    if kind == torch.int8:
        largest = torch.stack([largest, *(vectors_ND[block].abs().max() for block in blocks)]).max()
    for block in blocks:
        codes_ND[block] = _quantise(vectors_ND[block], largest) if kind == torch.int8 else vectors_ND[block]
    return codes_ND


def _quantise(vectors_ND: Tensor, largest: Tensor) -> Tensor:
    """Return the vectors in whole numbers of int8, `largest` becoming 127."""
    return (vectors_ND * (LARGEST_CODE / largest.clamp(min=torch.finfo(torch.float32).tiny))).round().to(torch.int8)


def _products(query_QD: Tensor, block_BD: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return the similarities of a block to queries of its type: of whole groups (Q, G, V), and of the rest (Q, R).

    The rest is multiplied as a group filled with zeros, since sizes that are no multiples of 8 round in other ways.
    """
    whole = len(block_BD) // group * group
    rest = len(block_BD) - whole
    whole_QB = _product(query_QD, block_BD[:whole])
    rest_QR = whole_QB[:, :0]
    if rest:
        rest_QR = _product(query_QD, pad(block_BD[whole:], (0, 0, 0, group - rest)))[:, :rest]
    return whole_QB.view(len(query_QD), whole // group, group), rest_QR


def _product(query_QD: Tensor, block_BD: Tensor) -> Tensor:
    """Return all inner products (Q, B), of whole numbers in int32, else in the numbers given."""
    if not len(block_BD):
        return torch.zeros(len(query_QD), 0, device=query_QD.device)
    if query_QD.dtype != torch.int8:
        return query_QD @ block_BD.T
    if query_QD.device.type == "cuda":
        return _int_product(*_pad_for_cuda(query_QD, block_BD))[: len(query_QD)]
    return _int_product(query_QD, block_BD)


def _int_product(query_QD: Tensor, block_BD: Tensor) -> Tensor:
    product: Any = torch._int_mm  # without a public name as of torch 2.13
    similarity_QB: Tensor = product(query_QD, block_BD.T)
    return similarity_QB


def _pad_for_cuda(query_QD: Tensor, block_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with zeros added, so that CUDA multiplies them: enough queries, and dimensions by 8."""
    dimensions = -query_QD.shape[1] % 8
    query_QD = pad(query_QD, (0, dimensions, 0, max(0, LEAST_ROWS - len(query_QD))))
    return query_QD, pad(block_BD, (0, dimensions)) if dimensions else block_BD  # pad copies, even if it adds nothing


def _update_best(best_QC: Tensor, whole_QGV: Tensor, rest_QR: Tensor, start: int) -> Tensor:
    """Return the keys of the best C of those so far and of a block that begins with vector number `start`."""
    num_groups, group = whole_QGV.shape[1:]
    device = best_QC.device
    key_QG = _pack_keys(whole_QGV.amax(2), torch.arange(num_groups, device=device))
    first_QC = _unpack_numbers(key_QG.topk(min(best_QC.shape[1], num_groups), dim=1).values)
    member_QCV = whole_QGV.gather(1, first_QC[:, :, None].expand(-1, -1, group))
    place_QCV = first_QC[:, :, None] * group + torch.arange(start, start + group, device=device)
    rest_R = torch.arange(rest_QR.shape[1], device=device) + (start + num_groups * group)
    key_QC = _pack_keys(member_QCV, place_QCV).flatten(1)
    return torch.cat([best_QC, key_QC, _pack_keys(rest_QR, rest_R)], dim=1).topk(best_QC.shape[1], dim=1).values


def _pack_keys(similarity: Tensor, number: Tensor) -> Tensor:
    """Return one int64 for each pair, the larger the more similar, and of equal ones the larger the lower the number.

    The similarity is in the upper 32 bits (a float as the whole number of the same order), LAST - number in the lower.
    """
    if similarity.dtype.is_floating_point:
        bits = similarity.view(BITS[similarity.dtype])
        similarity = torch.where(bits < 0, torch.iinfo(bits.dtype).min - bits, bits)  # -0 and 0 are equal
    return torch.add(LAST - number, similarity, alpha=1 << 32)


def _unpack_numbers(key: Tensor) -> Tensor:
    """Return the numbers in keys."""
    return LAST - (key & LAST)


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
