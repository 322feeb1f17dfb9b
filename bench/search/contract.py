"""What an index promises. Encoder and index know nothing of each other.

Shape legend: N database vectors, Q query vectors, D dimensions, K neighbours.
"""

from __future__ import annotations

from typing import Protocol

from bench.values import Floats, Ints


class Index(Protocol):
    """What an index plug-in's `build(config, vectors_ND)` returns: neighbours by inner product of unit vectors.

    `vectors_ND` may be a memory map far larger than memory: it is read in blocks.

    A plug-in whose index can be kept has two more functions: `save(index, folder)` writes files below an empty
    folder, and `load(config, folder, vectors_ND)` gives the same index back, or raises StoreError if the files are
    not whole. Without them the index is built anew by each process; so it is where `keeps(config)`, if there is one,
    says that these settings leave nothing to keep. `QUERY_SETTINGS` names settings that change no file, only what is
    asked of it: they need no index of their own. Where a file made to deceive could do harm when it is loaded, the
    plug-in says `TRUSTED_FILES_ONLY = True`: then a catalogue from elsewhere is opened on the user's word alone.

    `exact` says that the answer is that of all inner products in float32; an index that keeps codes alone puts its
    neighbours in the order of what the codes give. `num_bytes` is what has to be in memory for it to be quick: its
    codes and tables, and the vectors themselves where every query reads many of them.
    """

    exact: bool
    num_bytes: int

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors, shape (Q, K), best first, equal ones by number.

        Where fewer than K are found (a small database, an approximate index), the rest is -1.
        """
        ...
