"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from bench.settings import TrainConfig

CYCLE_UP = 40 / 150  # share of the steps: Singh et al. rise for 40 of 150 epochs, and do not state the shape after that


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up to `lr`, then the schedule down to `lr_min`.

    `cyclic` is a repeated triangle without warm-up, with equal times up and down.
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
