"""Finds a block of words in a database of words by its bit error rate: what `philips` and `chromaprint` share.

Shape legend: W words of a query, K keys, H hits, P places, R ranked answers.
"""

from __future__ import annotations

import numpy as np

from bench.kernels.bit_errors import Words, count_bit_errors
from bench.match.answers import keep_alignments
from bench.match.inverted_table import InvertedTable
from bench.match.prints import TrackPrints
from bench.values import Floats, Ints

WORD_BITS = 32


def propose_places(
    prints: TrackPrints,
    table: InvertedTable,
    key_K: Words,
    word_K: Ints,
    num_words: int,
    without: int,
    longest: int | None = None,
) -> Ints:
    """Return the places (P,) at which a query begins if one of its keys is where the table has it, ascending.

    `word_K` is the number of the query's word that each key is of. The whole query has to fit into one track, which is
    not that of row `without`. Keys with more than `longest` places are passed over.
    """
    key_H, position_H = table.look_up(key_K, longest)
    place_H = position_H - word_K[key_H]
    return np.unique(place_H[prints.are_places(place_H, num_words, without)])


def rank_places(
    prints: TrackPrints, word_W: Words, place_P: Ints, num_answers: int, window: int, max_ber: float
) -> tuple[Ints, Ints, Floats]:
    """Return rows, words before the query in its track, and scores (R,) of the places with the lowest bit error rates.

    A score is 1 - BER, the bit error rate over all words of the query. Places above `max_ber` are left out.
    """
    errors_P = count_bit_errors(prints.print_N, word_W, place_P)
    num_bits = WORD_BITS * len(word_W)
    if max_ber < 1:
        place_P, errors_P = place_P[errors_P <= max_ber * num_bits], errors_P[errors_P <= max_ber * num_bits]
    row_P = prints.row_of(place_P)
    best_R = keep_alignments(row_P, place_P, -errors_P, num_answers, window)
    row_R = row_P[best_R]
    return row_R, place_P[best_R] - prints.first_R[row_R], (1 - errors_P[best_R] / num_bits).astype(np.float32)
