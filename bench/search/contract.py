"""The contract of a nearest-neighbour index. Encoder and index know nothing of each other.

Shape legend: N database vectors, Q query vectors, D dimensions, K neighbours.
"""

from __future__ import annotations

from typing import Protocol

from bench.values import Floats, Ints


class Index(Protocol):
    """What an index plug-in's `build(config, vectors_ND)` returns: neighbours by inner product of unit vectors.

    `vectors_ND` may be a memory map far larger than memory: read it in blocks.

    A plug-in whose index can be saved also defines two functions. `save(index, folder)` writes files below an empty
    folder. `load(config, folder, vectors_ND)` returns the same index, or raises StoreError if the files are incomplete.
    Without them each process builds the index anew, also if the optional `keeps(config)` returns False because these
    settings leave nothing to save.

    Optional constants of the plug-in: `QUERY_SETTINGS` names the settings that affect queries but no file, so that one
    saved index serves all their values. `TRUSTED_FILES_ONLY = True` declares that loading a malicious file could do
    harm; a catalogue from elsewhere is then opened only if the user says that it is trusted.

    An exact index may have a method `nearest_among(queries_QD, candidates_QC, top_k)`, which orders given vectors as
    `neighbours` does. An evaluation then takes the candidates from the product that it computes anyway
    (`bench.search.neighbours`), and asks `neighbours` only where these do not decide.
    """

    exact: bool
    """Whether the result is that of all inner products in float32.

    An index that stores codes only ranks its neighbours by the similarity of the codes.
    """

    num_bytes: int
    """Memory that it needs to be fast.

    Its codes and tables, and the vectors themselves if each query reads many of them.
    """

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        """Return the numbers of the nearest vectors, shape (Q, K), best first, equally similar ones by number.

        If fewer than K are found (a small database, an approximate index), the rest is -1.
        """
        ...
