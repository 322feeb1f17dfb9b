"""The next steps' samples, made ready while the device works on this one's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bench.config import TrainConfig
from bench.train.draws import draw_pairs
from bench.train.material import Material
from bench.train.pairs import Cuts, cut_pairs
from bench.train.ranks import Ranks

AHEAD = 3  # steps made ready before they are needed


@dataclass(frozen=True)
class Served:
    """The samples of one step, and how many silent places were drawn again for them."""

    step: int
    cuts: Cuts
    redrawn: int


@contextmanager
def feed(
    source: Material, config: TrainConfig, seed: int, ranks: Ranks, device: torch.device, first: int, last: int
) -> Iterator[Iterator[Served]]:
    """Give the samples of steps first to last (exclusive), drawn for all processes, cut for this one.

    On a GPU one thread works ahead: numpy and copies let go of the interpreter, and what the thread
    asks of the device is queued behind the step in progress. On the CPU, where training itself wants every
    core, they are made as they are asked for.
    """

    def serve(step: int) -> Served:
        draws = draw_pairs(source, config, seed, step)
        return Served(step, cut_pairs(draws.rows(ranks.share(config.batch_pairs)), source, device), draws.redrawn)

    if device.type == "cpu":
        yield map(serve, range(first, last))
        return
    with ThreadPoolExecutor(1) as thread:
        try:
            yield _ahead(thread, serve, first, last)
        finally:
            thread.shutdown(cancel_futures=True)


def _ahead(thread: ThreadPoolExecutor, serve: Callable[[int], Served], first: int, last: int) -> Iterator[Served]:
    waiting: deque[Future[Served]] = deque()
    for step in range(first, last):
        waiting.append(thread.submit(serve, step))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
