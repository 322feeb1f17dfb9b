"""Prefetching: the batches of the next steps are prepared while the device works on the present one."""

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
from bench.timing import Timer, time_each, untimed
from bench.train.draws import draw_pairs
from bench.train.pairs import Batch, WaveTransform, cut_pairs
from bench.train.pool import TrainingPool
from bench.train.ranks import Ranks
from bench.values import Ints

PREFETCH_STEPS = 3  # batches prepared ahead of the step that needs them


@dataclass(frozen=True)
class Ready:
    """The batch of one step, and how many silent start samples were redrawn for it."""

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
    """Return the batch of one step: drawn for all processes, read for this one."""
    with timed("draw"):
        draws = draw_pairs(pool, config, seed, step)
    with timed("read"):
        anchors = transform if config.transforms.views == "pair" else None
        batch = cut_pairs(draws.rows(ranks.share(config.batch_pairs)), pool, device, transform, anchors)
    return Ready(step, batch, draws.redrawn)


@contextmanager
def prefetch(
    pool: TrainingPool,
    config: TrainConfig,
    seed: int,
    ranks: Ranks,
    device: torch.device,
    first: int,
    last: int,
    timed: Timer = untimed,
) -> Iterator[Iterator[Ready]]:
    """Give an iterator over the batches of steps first to last (exclusive).

    One thread works ahead: numpy and copies release the GIL, and what the thread submits to a GPU is queued behind
    the step in progress. On a CPU without transform workers, where training itself uses every core, batches are made on
    demand.
    """
    with start_transform_workers(config.transforms, ranks.world_size) as transform, ThreadPoolExecutor(1) as thread:

        def make(step: int, timed: Timer = untimed) -> Ready:
            return make_batch(pool, config, seed, step, ranks, device, transform, timed)

        if device.type == "cpu" and transform is None:
            yield (make(step, timed) for step in range(first, last))
            return
        try:
            yield time_each(_run_ahead(thread, make, first, last), "wait for data", timed)
        finally:
            thread.shutdown(cancel_futures=True)


@contextmanager
def start_transform_workers(transforms: Transforms, world_size: int) -> Iterator[WaveTransform | None]:
    """Give a function that transforms music in worker processes, one for each of this process's cores.

    It is None if no transform is set.
    """
    if transforms.is_idle:
        yield None
        return
    workers = max(1, cores() // world_size)
    # Spawned, because a forked child of a process with threads may hang. Workers do not import torch.
    with ProcessPoolExecutor(workers, get_context("spawn")) as executor:

        def transform(music_BT: Tensor, seed_B: Ints) -> Tensor:
            chunks = (np.array_split(rows, workers) for rows in (music_BT.numpy(), seed_B))
            return torch.from_numpy(np.concatenate(list(executor.map(partial(transform_int16, transforms), *chunks))))

        yield transform


def _run_ahead(thread: ThreadPoolExecutor, make: Callable[[int], Ready], first: int, last: int) -> Iterator[Ready]:
    pending: deque[Future[Ready]] = deque()
    for step in range(first, last):
        pending.append(thread.submit(make, step))
        if len(pending) > PREFETCH_STEPS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
