"""What a matcher plug-in is: a system that finds query waves in the database by means of its own.

An encoder turns a segment into a unit vector, and an index searches vectors. Whatever is neither (hashes of spectral
peaks, words of bits, sets) is a matcher: it makes prints of whole tracks, keeps them in a folder, and answers waves.

A plug-in module defines `Config` (a frozen dataclass; its defaults are the recommended settings), CITE, LICENSE, SOURCE
and two functions:

    build(config, tracks, folder)   writes the prints of all tracks below an empty folder. `tracks` yields whole tracks
                                    as int16 samples at the corpus rate, shape (T,), in the order of their rows.
    load(config, folder)            returns the matcher, or raises StoreError if a file is missing, cut off or damaged.

It may define `presets()` (settings by name), LIBRARY (the distribution whose version belongs to the prints) and
QUERY_SETTINGS (names of settings that affect answers only: prints made with other values of them serve as well).

Shape legend: B queries, T samples.
"""

from __future__ import annotations

from typing import Protocol

from bench.values import Floats, Found, Ints


class Matcher(Protocol):
    """A database of prints that answers queries.

    Answers depend on the query alone, never on the rest of the batch, and are the same every time. Each alignment of a
    track is one answer: places within the matcher's own window are one place. Equal scores come by row, then by start.
    """

    shortest_s: float
    """A query shorter than this many seconds has no answer; it counts as a miss."""

    num_bytes: int
    """Memory that the database needs to be searched fast: prints and tables."""

    fixed_bytes: int
    """The part of `num_bytes` that does not grow with the database."""

    def find(self, wave_BT: Floats, num_answers: int, without_B: Ints | None = None) -> Found:
        """Return the best answers (B, num_answers) to waves of one length, float32 at the corpus rate, peak 1.

        `without_B` names for each query one row of the database to leave out, -1 for none. Without its own track, what
        a query finds is the best of the false answers. Starts are 0 or more. A query in which nothing can be heard
        (silence, or too short) has no answer.
        """
        ...
