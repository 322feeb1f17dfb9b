"""The way from queries to answers, of an encoder with its indexes or of a matcher: scoring sees no difference.

Shape legend: B batch, T samples, Q queries, R ranked answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from bench.values import Floats, Found, Ints

Bools = npt.NDArray[np.bool_]
FindRepetitions = Callable[[Bools, Ints], Bools]
"""Called as f(wrong_QR, start_Q) with the answers that are in the right track at a wrong time, and the true starts.

Returns (Q, R) which of them are right all the same, because the track repeats itself exactly.
"""


@dataclass(frozen=True)
class Answers:
    """What one search answered to the queries of one cell and length."""

    index: str
    """The index that was searched; OWN for a matcher."""

    sequence: str
    """The sequence search that ranked the answers; OWN for a matcher."""

    found: Found

    impostor_Q: Floats
    """The score of the best answer outside each query's own track; NaN if there is none, or if it is no similarity."""

    find_repetitions: FindRepetitions

    are_candidates: Callable[[Ints, Ints], Bools] | None = None
    """Called with the rows and start samples of the true answers (Q,); returns which of them were compared at all.

    None for searches that choose among all places.
    """


@dataclass(frozen=True)
class Search:
    """One way to answer a single query, whose costs are measured."""

    index: str
    sequence: str

    answer: Callable[[Floats], object]
    """From the wave of one query (1, T) to its answers."""

    num_bytes: int
    """Memory that the database takes while it is searched so."""

    fixed_bytes: int
    """The part of it that does not grow with the database."""


class Searcher(Protocol):
    """A database that is ready to be searched with the queries of an evaluation."""

    @property
    def key(self) -> tuple[object, ...]:
        """Return what determines the answers, apart from the queries and the settings of the evaluation."""
        ...

    @property
    def tracks(self) -> Ints:
        """Return the numbers of the database's tracks in the corpus, ascending."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a run's summary tells about the database."""
        ...

    @property
    def device(self) -> torch.device:
        """Return where it computes."""
        ...

    @property
    def seconds(self) -> float:
        """Return how long the database took to make."""
        ...

    def searches(self) -> list[Search]:
        """Return the ways to answer one query: what a user of this system would run, without the impostors."""
        ...

    def fingerprint(self, tracks: Iterable[npt.NDArray[np.int16]]) -> None:
        """Make the prints of whole tracks as for a database, and drop them: to be timed."""
        ...

    def search(self, waves: Iterable[Floats], own_Q: Ints) -> Iterator[Answers]:
        """Yield the answers of each search to queries of one length, given as batches (B, T) that can be read again.

        `own_Q` are the rows of `tracks` that the queries are from; they are left out to find the impostors.
        """
        ...
