"""One training step: from a batch on the device to changed weights.

`bench speed` measures the same code; the `timed` blocks are the parts that it reports.

Shape legend: N pairs of all processes, M segments of this process (anchors, then positives), D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.errors import BenchError, ConfigError
from bench.fingerprint import resample_to
from bench.settings import TrainConfig
from bench.timing import Timer, untimed
from bench.train.losses import Loss, build_loss
from bench.train.optimisers import build_optimiser, set_rate
from bench.train.pairs import degrade_pairs, mask_patches
from bench.train.pool import TrainingPool
from bench.train.prefetch import Ready
from bench.train.ranks import Ranks
from bench.train.schedules import learning_rate

LOG_EVERY_STEPS = 10


class TrainingError(BenchError):
    """Raised when training cannot continue; its message says where it stopped."""


@dataclass
class TrainingStep:
    """Everything that changes an encoder in one step, from a batch on the device to the optimiser."""

    pool: TrainingPool
    stepper: Stepper
    optimiser: Optimizer

    @property
    def config(self) -> TrainConfig:
        """Return the training settings."""
        return self.stepper.config

    def take(self, ready: Ready, timed: Timer = untimed) -> Tensor:
        """Take one step and return its loss, without waiting for the device.

        Raises: TrainingError if the step does not fit into memory.
        """
        stepper = self.stepper
        stepper.encoder.train()
        set_rate(self.optimiser, learning_rate(self.config, ready.step))
        with explain_memory_errors(self.config):
            with timed("degrade"):
                waves = degrade_pairs(ready.batch, self.pool)
            with timed("features"):
                feature_M = stepper.features(*waves, ready.batch.stripe_BC22)
        loss = stepper.backpropagate(feature_M, ready.step, timed)
        with timed("optimiser"):
            stepper.ranks.sum_gradients(stepper.trainable)
            self.optimiser.step()
        return loss

    def metrics(self, ready: Ready, loss: Tensor) -> dict[str, float]:
        """Return the point of the training curves at a step that was taken; it waits for the device."""
        rate = learning_rate(self.config, ready.step)
        return {"train/loss": loss.item(), "train/lr": rate, "train/silent_redrawn": float(ready.redrawn)}


def build_step(
    pool: TrainingPool,
    encoder: nn.Module,
    config: TrainConfig,
    seed: int,
    device: torch.device,
    ranks: Ranks,
    warn: Callable[[str], None],
) -> TrainingStep:
    """Return the training step of an encoder, which is already on the device, with a new optimiser."""
    stepper = Stepper(encoder, config, seed, ranks, warn)
    # An encoder without weights to train (a control) is given something for the optimiser to hold.
    return TrainingStep(pool, stepper, build_optimiser(config, stepper.trainable or [torch.zeros(0)], device))


@dataclass
class Stepper:
    """Takes the loss of a step and leaves its gradients in the encoder.

    An encoder with an objective of its own (`bench.values.Encoder`) has the last word on the loss. It sees the whole
    batch, which is then never cut into chunks, and trains in one process: gradients are summed over processes, so that
    what each would compute of its own share alone would count several times.

    `chunk` is how many segments are embedded at a time, 0 for the whole batch; it is halved when memory runs out.
    In chunks, each segment is embedded twice: first for the loss over the whole batch, then for the gradients. The
    gradient is the same unless the encoder has batch normalisation, whose batch is then the chunk.
    Source: Gao et al., GradCache, 2021.
    """

    encoder: nn.Module
    config: TrainConfig
    seed: int
    ranks: Ranks
    warn: Callable[[str], None]
    chunk: int = 0
    loss: Loss = field(init=False)
    embed: Callable[[Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        if self.has_objective and self.ranks.world_size > 1:
            raise ConfigError(
                f"an encoder with an objective of its own trains in one process, got {self.ranks.world_size}; start "
                "it without torchrun"
            )
        self.loss = build_loss(self.config)
        embed: Any = self.encoder.embed
        on_gpu = next((p.is_cuda for p in self.encoder.parameters()), False)
        # These communicate with other processes within a forward pass, so that it is not compiled.
        communicates = any(isinstance(module, nn.SyncBatchNorm) for module in self.encoder.modules())
        self.embed = torch.compile(embed) if on_gpu and not communicates else embed

    @property
    def trainable(self) -> list[nn.Parameter]:
        """Return the weights that are trained."""
        return [p for p in self.encoder.parameters() if p.requires_grad]

    @property
    def has_objective(self) -> bool:
        """Return whether the encoder has an objective of its own."""
        return hasattr(self.encoder, "objective")

    @torch.no_grad()
    def features(self, anchor_BT: Tensor, positive_BT: Tensor, stripe_BC22: Tensor) -> Tensor:
        """Return the features (M, ...) of anchors and of masked positives."""
        encoder: Any = self.encoder
        anchor_B, positive_B = (
            encoder.features(resample_to(wave_BT, encoder.rate_hz)) for wave_BT in (anchor_BT, positive_BT)
        )
        return torch.cat([anchor_B, mask_patches(positive_B, stripe_BC22, self.config)])

    def backpropagate(self, feature_M: Tensor, step: int, timed: Timer = untimed) -> Tensor:
        """Return the loss over all pairs, and leave the gradients of this process's share in the encoder.

        Raises: TrainingError if not even one segment fits into memory, or, with several processes or an objective of
        the encoder's own, the batch does not.
        """
        while True:
            try:
                return self._backpropagate(feature_M, step, timed)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._halve(error, len(feature_M))

    def _backpropagate(self, feature_M: Tensor, step: int, timed: Timer) -> Tensor:
        self.encoder.zero_grad(set_to_none=True)
        chunks = torch.split(feature_M, self.chunk or len(feature_M))
        if len(chunks) == 1:
            with timed("forward"):
                vector_MD = self.embed_chunk(feature_M, step, 0)
                loss = self.objective(feature_M, vector_MD, self.batch_loss(vector_MD))
            with timed("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        with timed("forward"), torch.no_grad():
            vector_MD = torch.cat([self.embed_chunk(chunk, step, i) for i, chunk in enumerate(chunks)])
        with timed("backward"):
            # The gradient at the vectors; each chunk, embedded again, then passes it on to the weights.
            loss = self.batch_loss(vector_MD.requires_grad_())
            loss.backward()  # type: ignore[no-untyped-call]
            assert vector_MD.grad is not None
            for i, (chunk, gradient) in enumerate(zip(chunks, torch.split(vector_MD.grad, self.chunk), strict=True)):
                self.embed_chunk(chunk, step, i).backward(gradient)  # type: ignore[no-untyped-call]
        return loss.detach()

    def embed_chunk(self, feature_M: Tensor, step: int, number: int) -> Tensor:
        """Return the vectors (M, D) of chunk `number` of the features, in the precision of training."""
        # What an encoder draws (dropped paths) is a function of the step and the chunk, so both passes draw the same.
        seeds = np.random.SeedSequence([self.seed, step, self.ranks.rank, number])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        with self._precision(feature_M):
            return self.embed(feature_M).float()

    def objective(self, feature_M: Tensor, vector_MD: Tensor, contrastive: Tensor) -> Tensor:
        """Return the encoder's own loss of a batch, or the contrastive one if it has no objective of its own."""
        if not self.has_objective:
            return contrastive
        encoder: Any = self.encoder
        with self._precision(feature_M):
            loss: Tensor = encoder.objective(feature_M, vector_MD, contrastive)
        return loss

    def _precision(self, feature_M: Tensor) -> torch.autocast:
        return torch.autocast(feature_M.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16")

    def batch_loss(self, vector_MD: Tensor) -> Tensor:
        """Return the loss over the pairs of all processes, given this process's vectors (M, D)."""
        anchor_ND, positive_ND = (self.ranks.all_gather(half) for half in vector_MD.chunk(2))
        moment_N = torch.arange(len(anchor_ND), device=anchor_ND.device) // self.config.pairs_per_moment
        return self.loss(anchor_ND, positive_ND, moment_N)

    def _halve(self, error: RuntimeError, segments: int) -> None:
        if not _is_out_of_memory(error):
            raise error
        chunk = self.chunk or segments
        if self.ranks.world_size > 1 or chunk == 1 or self.has_objective:
            raise memory_error(self.config, f"a step of {segments} segments, {chunk} at a time,") from error
        self.chunk = -(-chunk // 2)
        self.encoder.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.warn(
            f"a step of {segments} segments does not fit into memory at once; continuing with {self.chunk} at a time "
            f"(train.batch_pairs = {self.config.batch_pairs} and its loss stay as they are, each segment is embedded "
            "twice)"
        )


@contextmanager
def explain_memory_errors(config: TrainConfig) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into a TrainingError that says what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise memory_error(config, "the audio of a step") from error


def memory_error(config: TrainConfig, what: str) -> TrainingError:
    """Return the error for a part of a step, named by `what`, that does not fit into memory."""
    return TrainingError(
        f"{what} does not fit into memory; lower train.batch_pairs = {config.batch_pairs} or the size of the encoder"
    )


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
