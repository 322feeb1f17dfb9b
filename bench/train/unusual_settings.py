"""Warnings about training settings that are allowed, but unusual or known to be misread or misprinted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.settings import TrainConfig
from bench.values import STANDARD_HOP_MS

HIGH_ADAM_RATE = 5e-2  # unusual from here on
USUAL_TEMPERATURES = (0.01, 0.5)
HIGH_NAFP_RATE = 5e-4  # unusual above it: half the default rate, which is for the mean form
LEAST_MASK = 0.01  # share of an axis, below which a mask is unusual
LAMB_FROM_SAMPLES = 240  # anchors and positives in a batch
CROSS_ENTROPIES = ("nt-xent", "nafp", "info-nce", "multi-positive")


def find_unusual_settings(config: TrainConfig, hop_ms: float = STANDARD_HOP_MS) -> list[str]:
    """Return a sentence for each unusual setting, with its value, why it is unusual, and what is usual.

    `hop_ms` is the time from one fingerprint to the next in the search or the alignment that follows training.
    """
    checks: tuple[Callable[[TrainConfig], str], ...] = (
        _rate, _nafp_rate, _temperature, _margin, _one_positive, _moments,
        partial(_offset, hop_ms=hop_ms), partial(_shifts, hop_ms=hop_ms), _masks, _small_lamb,
    )  # fmt: skip
    return [sentence for check in checks if (sentence := check(config))]


def _rate(config: TrainConfig) -> str:
    if config.optimiser != "adam" or config.lr < HIGH_ADAM_RATE:
        return ""
    return (
        f"train.lr = {config.lr:g} is unusually high for Adam, which moves each weight by about that much per step; "
        f"the 5e-2 of Singh et al. may be a misprint of 5e-3, and 1e-4 to 1e-3 is usual"
    )


def _nafp_rate(config: TrainConfig) -> str:
    if config.loss != "nafp" or config.lr <= HIGH_NAFP_RATE:
        return ""
    return (
        f"train.lr = {config.lr:g} is high for train.loss = nafp, which is twice nt-xent: use half of nt-xent's rate "
        f"where steps grow with the gradient, and NAFP's 1e-4 with Adam, whose steps do not"
    )


def _temperature(config: TrainConfig) -> str:
    low, high = USUAL_TEMPERATURES
    if config.loss not in CROSS_ENTROPIES or low <= config.temperature <= high:
        return ""
    return (
        f"train.temperature = {config.temperature:g} is outside {low:g} to {high:g}, the range that papers search; "
        f"0.05 is usual, also for papers that give none"
    )


def _margin(config: TrainConfig) -> str:
    if config.loss not in ("triplet", "semi-hard-triplet") or config.margin > 0:
        return ""
    return (
        f"train.margin = 0 with train.loss = {config.loss} is satisfied if all vectors are equal, so that they may "
        f"collapse; 0.4 (triplet) and 0.5 (semi-hard-triplet) are usual, 0 is for validation"
    )


def _one_positive(config: TrainConfig) -> str:
    if config.loss != "multi-positive" or config.pairs_per_moment > 1:
        return ""
    return (
        "train.loss = multi-positive with train.pairs_per_moment = 1 is nt-xent, as each vector has one positive; "
        "set train.pairs_per_moment to 2 or more"
    )


def _moments(config: TrainConfig) -> str:
    if config.loss not in ("nt-xent", "nafp", "info-nce") or config.pairs_per_moment == 1:
        return ""
    return (
        f"train.pairs_per_moment = {config.pairs_per_moment} with train.loss = {config.loss} pushes pairs of the same "
        f"moment apart, as it has one positive per vector; 1 is usual, or train.loss = multi-positive"
    )


def _offset(config: TrainConfig, hop_ms: float) -> str:
    if config.offset_ms <= hop_ms / 2 or not config.mixture.is_idle:
        return ""
    return (
        f"train.offset_ms = {config.offset_ms:g} is more than half the hop of {hop_ms:g} ms, so that a positive may be "
        f"nearer to the next vector of the database than to that of its anchor; {0.4 * hop_ms:g} to {hop_ms / 2:g} is "
        f"usual at this hop"
    )


def _shifts(config: TrainConfig, hop_ms: float) -> str:
    if config.offset_ms < hop_ms or config.mixture.is_idle:
        return ""
    return (
        f"train.offset_ms = {config.offset_ms:g} shifts each source of a mixture by up to the hop of {hop_ms:g} ms or "
        f"more, so that features a hop apart may be learnt as one moment; less than a hop is usual, as the BioDCASE "
        f"report asks for, though its model #4 has 50 at a hop of 50"
    )


def _masks(config: TrainConfig) -> str:
    if config.mask_count == 0 or not 0 < config.mask_fraction < LEAST_MASK:
        return ""
    return (
        f"train.mask_fraction = {config.mask_fraction:g} hides less than one band of a patch: the 0.1 % of Singh et "
        f"al., taken literally; their later code has 0.05 to 0.1, and 0.1 is usual"
    )


def _small_lamb(config: TrainConfig) -> str:
    if config.optimiser != "lamb" or 2 * config.batch_pairs >= LAMB_FROM_SAMPLES:
        return ""
    return (
        f"train.optimiser = lamb with train.batch_pairs = {config.batch_pairs} is unusual, as LAMB is for large "
        f"batches; NAFP uses Adam below {LAMB_FROM_SAMPLES} samples, which are {LAMB_FROM_SAMPLES // 2} pairs"
    )
