"""The next steps' samples, made ready while the device works on this one's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from bench.config import TrainConfig, Transforms
from bench.degrade.waveform import transformed_int16
from bench.machine import cores
from bench.train.draws import draw_pairs
from bench.train.material import Material
from bench.train.pairs import Change, Cuts, cut_pairs
from bench.train.ranks import Ranks
from bench.values import Ints

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

    One thread works ahead: numpy and copies let go of the interpreter, and what the thread asks of a GPU is
    queued behind the step in progress. Where training itself wants every core, and no worker transforms, they are
    made as they are asked for.
    """
    with changing(config.transforms, ranks.world) as change, ThreadPoolExecutor(1) as thread:

        def serve(step: int) -> Served:
            draws = draw_pairs(source, config, seed, step)
            own = draws.rows(ranks.share(config.batch_pairs))
            return Served(step, cut_pairs(own, source, device, change), draws.redrawn)

        if device.type == "cpu" and change is None:
            yield map(serve, range(first, last))
            return
        try:
            yield _ahead(thread, serve, first, last)
        finally:
            thread.shutdown(cancel_futures=True)


@contextmanager
def changing(transforms: Transforms, world: int) -> Iterator[Change | None]:
    """Give what transforms music in worker processes, one for each core; None where there is nothing to do."""
    if transforms.idle:
        yield None
        return
    workers = max(1, cores() // world)
    # Spawned: a forked child of a process with threads may hang. What it imports has no torch in it.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:

        def change(music_BT: Tensor, seed_B: Ints) -> Tensor:
            pieces = (np.array_split(rows, workers) for rows in (music_BT.numpy(), seed_B))
            return torch.from_numpy(np.concatenate(list(pool.map(partial(transformed_int16, transforms), *pieces))))

        yield change


def _ahead(thread: ThreadPoolExecutor, serve: Callable[[int], Served], first: int, last: int) -> Iterator[Served]:
    waiting: deque[Future[Served]] = deque()
    for step in range(first, last):
        waiting.append(thread.submit(serve, step))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
