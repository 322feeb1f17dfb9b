"""Chromaprint: the fingerprints of AcoustID, made by the library itself, compared by their bit error rate (BER).

Of 12 pitch classes over time, 16 trained filters give 32 bits each 0.12 s (`algorithm` 1, which the library calls 2) or
0.09 s (4, which it calls 5). It is made for whole files: the first item takes 2.7 or 2.0 s of sound, and the grid
of the default is coarser than a tolerance of 50 ms.

Items, and the key of 12 bits, are the library's; that a query is ranked by the BER of all its items, as in `philips`,
is ours. Only strings that the library has just made are decoded: decoding foreign ones overflows in old versions.

Shape legend: B queries, T samples, N items of the database, W items of a query, P places, R answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import PluginError, StoreError
from bench.kernels.bit_errors import Words
from bench.match.answers import answer_each, no_answer
from bench.match.inverted_table import InvertedTable, build_table, load_table
from bench.match.prints import TrackPrints, load_prints, stack_prints
from bench.match.word_blocks import WORD_BITS, propose_places, rank_places
from bench.settings import require
from bench.values import INT16_PEAK, RATE_HZ, Floats, Found, Ints

CITE = "Lalinsky, Chromaprint, https://acoustid.org/chromaprint"
LICENSE = "LGPL-2.1 (libchromaprint), MIT (pyacoustid)"
SOURCE = "libchromaprint through pyacoustid"
LIBRARY = "pyacoustid"
QUERY_SETTINGS = ("max_ber",)

LIBRARY_RATE_HZ = 11_025  # to which the library resamples what it is fed
HOPS = {1: 1_365, 4: 1_024}  # samples at that rate from one item to the next
SHORTEST_SAMPLES = {1: 43_596, 4: 31_222}  # at the corpus rate, for one item; tried with libchromaprint 1.5.1
WINDOW_ITEMS = 3  # 0.37 or 0.28 s: places closer together are one


@dataclass(frozen=True)
class Config:
    """Settings of the items and of the search."""

    algorithm: int = 1
    """The library's number of its algorithm: 1, its default, or 4, with half the frame and a finer grid."""

    key_bits: int = 12
    """Upper bits of an item by which it is looked up, from 8 to 32: 12 in the library's matcher, 28 in AcoustID's."""

    max_ber: float = 1.0
    """Places with a higher BER are no answers, above 0; 1 ranks all places."""

    def __post_init__(self) -> None:
        known = self.algorithm in HOPS
        require(known, f"model.algorithm must be one of {sorted(HOPS)}; 1 is usual", self.algorithm)
        require(8 <= self.key_bits <= 32, "model.key_bits must be from 8 to 32", self.key_bits)
        require(0 < self.max_ber <= 1, "model.max_ber must be above 0 and at most 1", self.max_ber)


def presets() -> dict[str, Config]:
    """Return the library's default, the finer grid, and the key of the AcoustID server."""
    return {"default": Config(), "fine": Config(algorithm=4), "acoustid": Config(key_bits=28)}


def build(config: Config, tracks: Iterable[npt.NDArray[np.int16]], folder: Path) -> None:
    """Write the items of all tracks and their table. Raises: PluginError if the library is not there."""
    library = _library()
    prints = stack_prints([_list_items(library, config, wave_T) for wave_T in tracks])
    prints.save(folder)
    # All silence has one item: it would be a long row of the table, and say nothing.
    position_N = np.flatnonzero(prints.print_N != _silent_item(library, config))
    build_table(_keys_of(config, prints.print_N[position_N]), position_N).save(folder)


def load(config: Config, folder: Path) -> Chromaprint:
    """Return the matcher. Raises: StoreError if a file is missing or damaged; PluginError without the library."""
    library = _library()
    prints, table = load_prints(folder, np.uint32), load_table(folder)
    silent_item = _silent_item(library, config)
    if len(table.position_N) != np.count_nonzero(prints.print_N != silent_item):
        raise StoreError(f"the table in {folder} is not of its prints; delete the folder and run again")
    return Chromaprint(config, prints, table, library, silent_item)


@dataclass(frozen=True)
class Chromaprint:
    """The items of the database and their table."""

    config: Config
    prints: TrackPrints
    table: InvertedTable
    library: Any
    silent_item: int

    fixed_bytes = 0

    @property
    def shortest_s(self) -> float:
        """Return the length of sound that gives one item."""
        return SHORTEST_SAMPLES[self.config.algorithm] / RATE_HZ

    @property
    def num_bytes(self) -> int:
        """Return the size of items and table."""
        return self.prints.num_bytes + self.table.num_bytes

    def find(self, wave_BT: Floats, num_answers: int, without_B: Ints | None = None) -> Found:
        """Return the places with the lowest BER."""
        return answer_each(self._find, wave_BT, num_answers, without_B)

    def _find(self, wave_T: Floats, num_answers: int, without: int) -> tuple[Ints, Ints, Floats]:
        if len(wave_T) < SHORTEST_SAMPLES[self.config.algorithm]:
            return no_answer()  # other versions of the library may need less
        sample_T = np.rint(wave_T * np.float32(INT16_PEAK)).astype(np.int16)
        word_W = _list_items(self.library, self.config, sample_T)
        heard_W = np.flatnonzero(word_W != self.silent_item)
        if not len(heard_W):
            return no_answer()
        key_K = _keys_of(self.config, word_W[heard_W])
        place_P = propose_places(self.prints, self.table, key_K, heard_W, len(word_W), without)
        row_R, place_R, score_R = rank_places(
            self.prints, word_W, place_P, num_answers, WINDOW_ITEMS, self.config.max_ber
        )
        hop_samples = HOPS[self.config.algorithm] * RATE_HZ / LIBRARY_RATE_HZ
        return row_R, np.rint(place_R * hop_samples).astype(np.int64), score_R


def _list_items(library: Any, config: Config, wave_T: npt.NDArray[np.int16]) -> Words:
    """Return the items (W,) of a wave at the corpus rate; none if it is too short."""
    printer = library.Fingerprinter(config.algorithm)
    printer.start(RATE_HZ, 1)
    printer.feed(wave_T.astype("<i2").tobytes())
    items, _algorithm = library.decode_fingerprint(printer.finish())
    return np.array(items, dtype=np.uint32)


def _silent_item(library: Any, config: Config) -> int:
    return int(_list_items(library, config, np.zeros(SHORTEST_SAMPLES[config.algorithm], np.int16))[0])


def _keys_of(config: Config, word_N: Words) -> Words:
    return word_N >> np.uint32(WORD_BITS - config.key_bits)


def _library() -> Any:
    """Return the module `chromaprint` of pyacoustid. Raises: PluginError if it, or the library below it, is missing."""
    try:
        import chromaprint
    except ModuleNotFoundError as error:
        raise PluginError(
            "chromaprint needs the package pyacoustid, which is not installed; run pip install -c constraints.txt "
            "pyacoustid"
        ) from error
    except ImportError as error:
        raise PluginError(
            f"chromaprint needs the shared library libchromaprint, which pyacoustid cannot load ({error}); "
            "run apt-get install libchromaprint1, or what installs it on your system"
        ) from error
    if not hasattr(chromaprint, "Fingerprinter"):
        raise PluginError(
            f"the module chromaprint ({chromaprint.__file__}) is not that of pyacoustid but of another package; "
            "run pip uninstall chromaprint and pip install --force-reinstall pyacoustid"
        )
    return chromaprint
