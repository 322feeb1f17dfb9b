"""A hook around the stages of a run and the parts of a training step, with which `bench speed` times them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

Timer = Callable[[str], AbstractContextManager[None]]
"""Called as timer(part) around a part of a step or of a stage."""

Item = TypeVar("Item")


def untimed(part: str) -> AbstractContextManager[None]:
    """Do not time the part."""
    return nullcontext()


def time_each(items: Iterable[Item], part: str, timed: Timer) -> Iterator[Item]:
    """Yield the items, timing how long each is waited for as a part."""
    iterator, end = iter(items), object()
    while True:
        with timed(part):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
