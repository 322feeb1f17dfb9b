"""A hook around the parts of a training step, with which `bench speed` times them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Timer = Callable[[str], AbstractContextManager[None]]
"""Called as timer(part) around a part of a step."""


def untimed(part: str) -> AbstractContextManager[None]:
    """Do not time the part."""
    return nullcontext()
