"""How a training step tells what part it is at, so that `bench speed` can time the parts of the real step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Timer = Callable[[str], AbstractContextManager[None]]
"""Called as timer(part) around a part of a step."""


def untimed(part: str) -> AbstractContextManager[None]:
    """Times nothing."""
    return nullcontext()
