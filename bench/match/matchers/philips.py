"""Philips: 32-bit words whose bits are signs of energy differences, compared by their bit error rate (BER).

Frames of 0.37 s every 11.56 ms; the power E of a frame in 33 bands, a semitone wide each, from 300 to 2,000 Hz. Bit m
of frame n is 1 if (E[n, m] - E[n, m + 1]) - (E[n - 1, m] - E[n - 1, m + 1]) > 0, so that each frame but the first gives
one word. Each word of a query, and its variants with the least certain bits flipped, is looked up in a table of all
words of the database; each hit proposes a place, and the BER of the whole query there decides.

What is read from implementations and from papers that quote this one: the frames, the bands, the bit, the three flipped
bits. Ours: 16 kHz instead of 5 kHz, blocks as long as the query (the paper's have 256 words, 3 s), a ranking of places
instead of a threshold (`max_ber`; the paper's is 0.35), and words of silence and long rows of the table left out.

Shape legend: B queries, T samples, N frames, M bands, W words, V variants of a word, K keys, P places, R answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.errors import StoreError
from bench.kernels.bit_errors import Words
from bench.match.answers import answer_each, no_answer
from bench.match.band_power import FRAME_HOPS, FRAME_SAMPLES, HOP_SAMPLES, Powers, band_power, space_edges
from bench.match.inverted_table import InvertedTable, build_table, load_table
from bench.match.prints import TrackPrints, load_prints, stack_prints
from bench.match.word_blocks import WORD_BITS, propose_places, rank_places
from bench.settings import require
from bench.values import RATE_HZ, Floats, Found, Ints

CITE = "Haitsma and Kalker, A Highly Robust Audio Fingerprinting System, ISMIR 2002"
LICENSE = "MIT"
SOURCE = "our reading; the paper was not had as full text"
QUERY_SETTINGS = ("flips", "exhaustive", "longest_row", "max_ber")

LOW_HZ, HIGH_HZ = 300.0, 2_000.0
MOST_FLIPS = 12  # 4,096 variants of each word
BITS_M = np.left_shift(np.uint32(1), np.arange(WORD_BITS, dtype=np.uint32))


@dataclass(frozen=True)
class Config:
    """Settings of the search; the words have none."""

    flips: int = 3
    """Bits of a query's word, the least certain ones, that are flipped in all ways; from 0 to 12."""

    exhaustive: bool = False
    """Whether the BER is computed at every place of the database instead of those that the table proposes."""

    longest_row: int = 1_000
    """A row of the table with more places than this is passed over, at least 1."""

    max_ber: float = 1.0
    """Places with a higher BER are no answers, above 0; the paper accepts up to 0.35, and 1 ranks all places."""

    def __post_init__(self) -> None:
        rule = f"model.flips must be from 0 to {MOST_FLIPS}; 3 is usual"
        require(0 <= self.flips <= MOST_FLIPS, rule, self.flips)
        require(self.longest_row >= 1, "model.longest_row must be >= 1", self.longest_row)
        require(0 < self.max_ber <= 1, "model.max_ber must be above 0 and at most 1", self.max_ber)


def presets() -> dict[str, Config]:
    """Return the search by the table, with more flipped bits, and at every place."""
    return {"table": Config(), "flips-6": Config(flips=6), "exhaustive": Config(exhaustive=True)}


def build(config: Config, tracks: Iterable[npt.NDArray[np.int16]], folder: Path) -> None:
    """Write the words of all tracks and their table. Cost: some 1.5 ms per s of music; memory the words three times."""
    prints = stack_prints([sign_differences(difference_powers(wave_T)) for wave_T in tracks])
    prints.save(folder)
    position_N = np.flatnonzero(prints.print_N)  # silence gives the word 0: no difference is above 0
    build_table(prints.print_N[position_N], position_N).save(folder)


def load(config: Config, folder: Path) -> Philips:
    """Return the matcher. Raises: StoreError if a file is missing or damaged."""
    prints, table = load_prints(folder, np.uint32), load_table(folder)
    if len(table.position_N) != np.count_nonzero(prints.print_N):
        raise StoreError(f"the table in {folder} is not of its prints; delete the folder and run again")
    return Philips(config, prints, table)


@dataclass(frozen=True)
class Philips:
    """The words of the database and their table."""

    config: Config
    prints: TrackPrints
    table: InvertedTable

    shortest_s = (FRAME_SAMPLES + HOP_SAMPLES) / RATE_HZ  # one word
    fixed_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Return the size of the words, and of the table where it is used."""
        return self.prints.num_bytes + (0 if self.config.exhaustive else self.table.num_bytes)

    def find(self, wave_BT: Floats, num_answers: int, without_B: Ints | None = None) -> Found:
        """Return the places with the lowest BER; places within a frame of a better one are the same place."""
        return answer_each(self._find, wave_BT, num_answers, without_B)

    def _find(self, wave_T: Floats, num_answers: int, without: int) -> tuple[Ints, Ints, Floats]:
        difference_WM = difference_powers(wave_T)
        word_W = sign_differences(difference_WM)
        if not np.any(word_W):
            return no_answer()
        if self.config.exhaustive:
            place_P = self.prints.places_of(len(word_W), without)
        else:
            key_K, word_K = flip_bits(difference_WM, word_W, self.config.flips)
            longest = self.config.longest_row
            place_P = propose_places(self.prints, self.table, key_K, word_K, len(word_W), without, longest)
        row_R, place_R, score_R = rank_places(
            self.prints, word_W, place_P, num_answers, FRAME_HOPS, self.config.max_ber
        )
        return row_R, place_R * HOP_SAMPLES, score_R


def difference_powers(wave_T: Floats | npt.NDArray[np.int16]) -> Powers:
    """Return what the bits (W, M) are the signs of: differences of power between bands and between frames."""
    return np.diff(-np.diff(band_power(wave_T, space_edges(LOW_HZ, HIGH_HZ, WORD_BITS + 1)), axis=1), axis=0)


def sign_differences(difference_WM: Powers) -> Words:
    """Return the words (W,); bit m is set where the difference is above 0. Shape: (W, M), M at most 32."""
    word_W: Words = np.where(difference_WM > 0, BITS_M[: difference_WM.shape[1]], 0).sum(axis=1, dtype=np.uint32)
    return word_W


def flip_bits(difference_WM: Powers, word_W: Words, flips: int) -> tuple[Words, Ints]:
    """Return the keys (K,) to look up, with the number of the word that each is of; none of words of silence.

    They are each word and its variants, in which any of the `flips` bits with the smallest differences are flipped.
    Of equal differences the lower bit is the less certain one.
    """
    heard_W = np.flatnonzero(word_W)
    uncertain_WM = np.argsort(np.abs(difference_WM[heard_W]), axis=1, kind="stable")[:, :flips]
    is_flipped_VM = (np.arange(2**flips)[:, None] >> np.arange(flips)) & 1 > 0
    mask_WV = np.where(is_flipped_VM, BITS_M[uncertain_WM][:, None], 0).sum(axis=2, dtype=np.uint32)
    return (word_W[heard_W, None] ^ mask_WV).ravel(), np.repeat(heard_W, 2**flips)
