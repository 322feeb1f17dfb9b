"""What an index promises. Encoder and index know nothing of each other.

Shape legend: N database vectors, Q query vectors, D dimensions, K neighbours.
"""

from __future__ import annotations

from typing import Protocol

from bench.values import Floats, Ints


class Index(Protocol):
    """What an index plug-in's `build(config, vectors_ND)` returns: neighbours by inner product of unit vectors."""

    exact: bool

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors, shape (Q, K), best first, equal ones by number.

        Where fewer than K are found (a small database, an approximate index), the rest is -1.
        """
        ...
