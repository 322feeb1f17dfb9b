"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from bench.settings import TrainConfig

CYCLE_UP = 40 / 150  # Singh et al. rise for 40 of their 150 epochs; the shape after that is not stated


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up to `lr`, then the schedule down to `lr_min`.

    `cyclic` is triangular, up and down in equal times, again and again.
    """
    if config.schedule == "cyclic":
        half = max(1.0, CYCLE_UP * config.steps)
        up = 1 - abs((step / half) % 2 - 1)
        return config.lr_min + (config.lr - config.lr_min) * up
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr_min + (config.lr - config.lr_min) * 0.5 * (1 + math.cos(math.pi * done))
