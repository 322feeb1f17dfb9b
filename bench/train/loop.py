"""The training loop, with its validations and checkpoints. After a kill it resumes from the last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.data import TrainingSet, split_tracks
from bench.fingerprint import Embedder
from bench.settings import RunConfig, TrainConfig
from bench.store import Store, read_json, write_json
from bench.timing import Timer, untimed
from bench.train import checkpoint
from bench.train.checkpoint import WEIGHTS
from bench.train.hard_negatives import prepare_hard_negatives
from bench.train.pool import TrainingPool, load_pool
from bench.train.prefetch import Ready, prefetch
from bench.train.ranks import ALONE, Ranks
from bench.train.step import LOG_EVERY_STEPS, TrainingError, TrainingStep, build_step
from bench.train.validation import Validation, build_validation, top1
from bench.values import RATE_HZ, Progress

RESUME, HISTORY = "resume.safetensors", "history.json"

Curve = list[tuple[int, dict[str, float]]]
Watch = Callable[[dict[str, float], int], None]
"""Called as watch(values, step) with each new point of the training curves."""


def watch_nothing(values: dict[str, float], step: int) -> None:
    """Ignore the point."""


def fit(
    folder: Path,
    encoder: nn.Module,
    config: RunConfig,
    training_set: TrainingSet,
    store: Store,
    device: torch.device,
    watch: Watch,
    progress: Progress,
    warn: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> None:
    """Train the encoder; leave the best weights by validation top-1, and the curves, in `folder`.

    Hard negatives come from `store`, which keeps them for the next training run on the same tracks.

    If `folder` holds the checkpoint of an interrupted call with the same arguments, training resumes from it with the
    same draws, so that on one machine it ends with the same weights. Of several processes only the first writes, and
    the others read what it wrote.
    Raises: DataError if there is nothing to train on; TrainingError if the loss is not finite or a step
    does not fit into memory; ConfigError if the batch cannot be divided equally among the processes.
    """
    ranks.share(config.train.batch_pairs)
    segment_samples = round(encoder.segment_s * RATE_HZ)  # type: ignore[operator, arg-type]
    music = training_set.music
    train, val = split_tracks(music)
    with store.timed("load"):
        task = build_validation(training_set, val, segment_samples, config.train.val_queries)
        hard_negatives = prepare_hard_negatives(
            store, music, train, segment_samples, config.train.hard_negatives_per_track, progress
        )
        pool = load_pool(training_set, train, config.train, segment_samples, device, hard_negatives)
    _warn_of_overlaps(pool, config.train, warn)
    encoder = _sync_batch_norm(encoder.to(device), ranks, warn)
    step = build_step(pool, encoder, config.train, config.seed, device, ranks, warn)
    run = _Run(step, device, folder, watch, task, store.timed)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        run.resume()
        run.check_ranks_agree()
        run.train(progress)
    progress("training", config.train.steps, config.train.steps)
    if run.writes:
        write_json(folder / HISTORY, run.history)
        (folder / RESUME).unlink(missing_ok=True)


def _warn_of_overlaps(pool: TrainingPool, config: TrainConfig, warn: Callable[[str], None]) -> None:
    """Warn of tracks too short for several segments: overlapping segments would be negatives of nearly themselves."""
    needed = pool.segment_samples * config.segments_per_track
    short = int((pool.music.lengths[pool.tracks] < needed).sum()) if config.segments_per_track > 1 else 0
    if short:
        warn(
            f"{short} of {len(pool.tracks)} training tracks are too short for {config.segments_per_track} segments "
            "that do not overlap: a segment may be a negative of nearly itself; set train.segments_per_track=1, "
            "with neighbours_per_track=0 and hard_negatives_per_track=0, or a longer data.min_track_s"
        )


def _sync_batch_norm(encoder: nn.Module, ranks: Ranks, warn: Callable[[str], None]) -> nn.Module:
    """Return the encoder, with any batch normalisation taken over all processes; warns where that is impossible."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if ranks.world_size == 1 or not norms:
        return encoder
    if norms[0].running_mean is not None and norms[0].running_mean.is_cuda:
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)  # type: ignore[no-untyped-call]
        return synchronised
    warn("batch normalisation cannot be shared on CPUs: each process normalises over its own part of the batch")
    return encoder


def load_history(folder: Path) -> Curve:
    """Return the training curves of a finished run, as points (step, values)."""
    return [(int(step), values) for step, values in read_json(folder / HISTORY)]


@dataclass
class _Run:
    """The state of a training run; what changes is in the resume checkpoint."""

    step: TrainingStep
    device: torch.device
    folder: Path
    watch: Watch
    task: Validation
    timed: Timer = untimed

    done: int = 0
    """Steps taken."""

    saved: int = 0
    """Steps taken at the last checkpoint."""

    best: float = -1.0
    """The best validation top-1 so far; -1 before the first validation."""

    worse: int = 0
    """Validations since the best one."""

    unchecked: list[Tensor] = field(default_factory=list)
    """Losses not yet checked to be finite, the latest last; checking waits for the device."""

    history: Curve = field(default_factory=list)
    """The points of the training curves."""

    @property
    def config(self) -> TrainConfig:
        """Return the settings of the training."""
        return self.step.config

    @property
    def encoder(self) -> nn.Module:
        """Return the encoder in training."""
        return self.step.stepper.encoder

    @property
    def ranks(self) -> Ranks:
        """Return the rank of this process, and how many train together."""
        return self.step.stepper.ranks

    @property
    def writes(self) -> bool:
        """Return whether this process writes the checkpoints."""
        return self.ranks.rank == 0

    def train(self, progress: Progress) -> None:
        """Take the remaining steps, with validations and checkpoints."""
        config, stepper = self.config, self.step.stepper
        steps = config.steps if stepper.trainable else 0
        with prefetch(
            self.step.pool, config, stepper.seed, self.ranks, self.device, self.done, steps, self.timed
        ) as batches:
            for ready in batches:
                if self.should_stop():
                    break
                progress("training", self.done, steps)
                self.advance(ready)
                if self.done % config.val_every_steps == 0 or self.done == steps:
                    with self.timed("validate"):
                        self.validate()
                if self.done % config.checkpoint_every_steps == 0:
                    with self.timed("checkpoint"):
                        self.save()
        if self.best < 0:
            self.validate()  # no step was taken: the untrained encoder

    def advance(self, ready: Ready) -> None:
        """Take one step, and record its metrics every LOG_EVERY_STEPS."""
        loss = self.step.take(ready, self.timed)
        self.done = ready.step + 1
        self.unchecked.append(loss)
        if ready.step % LOG_EVERY_STEPS == 0:
            self.check()
            self._add_point(self.step.metrics(ready, loss))

    def check(self) -> None:
        """Wait for the device. Raises: TrainingError if a loss since the last check, or a weight, is not finite."""
        losses = torch.stack(self.unchecked).tolist() if self.unchecked else []
        first = self.done - len(losses)
        self.unchecked.clear()
        bad = [
            f"the loss is {loss} at step {step}" for step, loss in enumerate(losses, first) if not math.isfinite(loss)
        ]
        if not bad and not _is_finite(self.step.stepper.trainable):
            bad = [f"weights are not finite after step {self.done - 1}"]
        if bad:
            raise TrainingError(
                f"{bad[0]} (seed {self.step.stepper.seed}); the last good checkpoint is that of step {self.saved}; "
                f"lower train.lr = {self.config.lr:g} or raise train.temperature = {self.config.temperature:g}"
            )

    def validate(self) -> None:
        """Validate the encoder, and save its weights if they are the best so far."""
        self.check()
        encoder: Any = self.encoder.eval()
        embedder = Embedder(encoder, self.device, self.config.precision, "")
        score = self.ranks.broadcast_first(top1(self.task, embedder) if self.writes else 0.0, self.device)
        self._add_point({"val/top1_50ms": score})
        self.worse = 0 if score > self.best else self.worse + 1
        if score > self.best:
            self.best = score
            if self.writes:
                state = {"step": self.done, "val_top1": score}
                checkpoint.save(self.folder / WEIGHTS, self.encoder.state_dict(), state)
            self.save()  # a run that resumes must know the score of the saved weights

    def should_stop(self) -> bool:
        """Return whether the last `train.patience` validations brought no improvement."""
        return 0 < self.config.patience <= self.worse

    def save(self) -> None:
        """Write the resume checkpoint."""
        self.check()
        self.saved = self.done
        if not self.writes:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        moments = checkpoint.optimiser_tensors(self.step.optimiser)
        tensors |= {f"optimiser.{name}": tensor for name, tensor in moments.items()}
        state = {
            "done": self.done, "best": self.best, "worse": self.worse,
            "chunk": self.step.stepper.chunk, "history": self.history,
        }  # fmt: skip
        checkpoint.save(self.folder / RESUME, tensors, state)

    def resume(self) -> None:
        """Resume from the checkpoint in the folder, if there is one."""
        if not (self.folder / RESUME).exists():
            return
        tensors, state = checkpoint.load(self.folder / RESUME)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.encoder.load_state_dict(parts["model"])
        checkpoint.restore_optimiser(self.step.optimiser, parts["optimiser"])
        self.done, self.best, self.worse = state["done"], state["best"], state["worse"]
        self.step.stepper.chunk = state["chunk"]
        self.saved = self.done
        self.history = [(step, values) for step, values in state["history"]]
        for step, values in self.history:  # a new process's watcher has not seen them
            self.watch(values, step)

    def check_ranks_agree(self) -> None:
        """Wait for the other processes. Raises: TrainingError if they resume from another step."""
        if self.ranks.broadcast_first(float(self.done), self.device) != self.done:
            raise TrainingError("the processes found different checkpoints; start them all on the same --store")

    def _add_point(self, values: dict[str, float]) -> None:
        self.history.append((self.done, values))
        self.watch(values, self.done)


def _is_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether all tensors are finite. Waits for the device once, however many tensors."""
    norms = torch._foreach_norm(list(tensors)) if tensors else [torch.zeros(())]
    return bool(torch.stack(norms).isfinite().all())
