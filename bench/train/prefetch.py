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

from bench.degrade.waveform import transform_int16
from bench.machine import cores
from bench.settings import TrainConfig, Transforms
from bench.train.draws import draw_pairs
from bench.train.pairs import Batch, WaveTransform, cut_pairs
from bench.train.pool import TrainingPool
from bench.train.ranks import Ranks
from bench.values import Ints

PREFETCH_STEPS = 3  # steps made ready before they are needed


@dataclass(frozen=True)
class Ready:
    """The samples of one step, and how many silent places were drawn again for them."""

    step: int
    batch: Batch
    redrawn: int


@contextmanager
def prefetch(
    source: TrainingPool, config: TrainConfig, seed: int, ranks: Ranks, device: torch.device, first: int, last: int
) -> Iterator[Iterator[Ready]]:
    """Give the samples of steps first to last (exclusive), drawn for all processes, cut for this one.

    One thread works ahead: numpy and copies let go of the interpreter, and what the thread asks of a GPU is
    queued behind the step in progress. Where training itself wants every core, and no worker transforms, they are
    made as they are asked for.
    """
    with start_transform_workers(config.transforms, ranks.world_size) as transform, ThreadPoolExecutor(1) as thread:

        def serve(step: int) -> Ready:
            draws = draw_pairs(source, config, seed, step)
            own = draws.rows(ranks.share(config.batch_pairs))
            return Ready(step, cut_pairs(own, source, device, transform), draws.redrawn)

        if device.type == "cpu" and transform is None:
            yield map(serve, range(first, last))
            return
        try:
            yield _run_ahead(thread, serve, first, last)
        finally:
            thread.shutdown(cancel_futures=True)


@contextmanager
def start_transform_workers(transforms: Transforms, world: int) -> Iterator[WaveTransform | None]:
    """Give what transforms music in worker processes, one for each core; None where there is nothing to do."""
    if transforms.is_idle:
        yield None
        return
    workers = max(1, cores() // world)
    # Spawned: a forked child of a process with threads may hang. What it imports has no torch in it.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:

        def transform(music_BT: Tensor, seed_B: Ints) -> Tensor:
            pieces = (np.array_split(rows, workers) for rows in (music_BT.numpy(), seed_B))
            return torch.from_numpy(np.concatenate(list(pool.map(partial(transform_int16, transforms), *pieces))))

        yield transform


def _run_ahead(thread: ThreadPoolExecutor, serve: Callable[[int], Ready], first: int, last: int) -> Iterator[Ready]:
    waiting: deque[Future[Ready]] = deque()
    for step in range(first, last):
        waiting.append(thread.submit(serve, step))
        if len(waiting) > PREFETCH_STEPS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
