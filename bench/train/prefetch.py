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
from bench.train.timing import Timer, untimed
from bench.values import Ints

PREFETCH_STEPS = 3  # steps made ready before they are needed


@dataclass(frozen=True)
class Ready:
    """The samples of one step, and how many silent places were drawn again for them."""

    step: int
    batch: Batch
    redrawn: int


def make_batch(
    pool: TrainingPool,
    config: TrainConfig,
    seed: int,
    step: int,
    ranks: Ranks,
    device: torch.device,
    transform: WaveTransform | None,
    timed: Timer = untimed,
) -> Ready:
    """Return the samples of one step: drawn for all processes, cut for this one."""
    with timed("draw"):
        draws = draw_pairs(pool, config, seed, step)
    with timed("read"):
        batch = cut_pairs(draws.rows(ranks.share(config.batch_pairs)), pool, device, transform)
    return Ready(step, batch, draws.redrawn)


@contextmanager
def prefetch(
    pool: TrainingPool, config: TrainConfig, seed: int, ranks: Ranks, device: torch.device, first: int, last: int
) -> Iterator[Iterator[Ready]]:
    """Give the samples of steps first to last (exclusive), drawn for all processes, cut for this one.

    One thread works ahead: numpy and copies release the GIL, and what the thread asks of a GPU is queued behind the
    step in progress. On a CPU without transform workers, where training itself uses every core, batches are made on
    demand.
    """
    with start_transform_workers(config.transforms, ranks.world_size) as transform, ThreadPoolExecutor(1) as thread:

        def make(step: int) -> Ready:
            return make_batch(pool, config, seed, step, ranks, device, transform)

        if device.type == "cpu" and transform is None:
            yield map(make, range(first, last))
            return
        try:
            yield _run_ahead(thread, make, first, last)
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


def _run_ahead(thread: ThreadPoolExecutor, make: Callable[[int], Ready], first: int, last: int) -> Iterator[Ready]:
    waiting: deque[Future[Ready]] = deque()
    for step in range(first, last):
        waiting.append(thread.submit(make, step))
        if len(waiting) > PREFETCH_STEPS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
