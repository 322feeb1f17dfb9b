"""The training loop: draw, degrade, embed, compare, step. Killed at any step, it goes on from its last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.audio.pcm import Corpus
from bench.degrade.room import RoomBank
from bench.errors import DataError
from bench.fingerprint import Embedder
from bench.settings import RunConfig, TrainConfig
from bench.store import digest, read_json, write_json
from bench.train import checkpoint
from bench.train.optimisers import optimiser_of, set_rate
from bench.train.pairs import degrade_pairs
from bench.train.pool import TrainingPool, load_pool
from bench.train.prefetch import Ready, prefetch
from bench.train.ranks import ALONE, Ranks
from bench.train.schedules import learning_rate
from bench.train.step import Stepper, TrainingError, explain_memory_errors
from bench.train.validation import Validation, build_validation, top1
from bench.values import RATE_HZ, Ints, Progress

WEIGHTS, RESUME, HISTORY = "model.safetensors", "resume.safetensors", "history.json"
LOG_EVERY_STEPS = 10
VAL_SHARE = 20  # one in so many training tracks is held out where a data set has no validation side

Curve = list[tuple[int, dict[str, float]]]
Watch = Callable[[dict[str, float], int], None]
"""Called as watch(metrics, step) with the points of the training curves as they come."""


def watch_nothing(values: dict[str, float], step: int) -> None:
    """Watches nothing."""


@dataclass(frozen=True)
class TrainingSet:
    """All the audio that training may see."""

    music: Corpus
    noise: Corpus
    banks: Sequence[RoomBank]

    @property
    def digest(self) -> str:
        """Return the content key of what is trained on; the test side has no part in it."""
        music, noise = (corpus.tracks[["id", "sha256", "split"]] for corpus in (self.music, self.noise))
        heard = (music[music["split"] != "test"], noise[noise["split"] == "train"])
        rooms = [[sha256(bank.response(i).tobytes()).hexdigest() for i in bank.numbers("train")] for bank in self.banks]
        return digest([rows.to_numpy().tolist() for rows in heard], rooms)

    @property
    def digests(self) -> dict[str, str]:
        """Return digests of the parts by their content: a bank's own has the times of files, which a copy changes."""
        measured = [(b.table["name"].tolist(), sha256(b.samples.tobytes()).hexdigest()) for b in self.banks[1:]]
        rooms = digest(self.banks[0].digest, measured)
        return {"music": self.music.digest, "noise": self.noise.digest, "rooms": rooms}


def fit(
    folder: Path,
    encoder: nn.Module,
    config: RunConfig,
    data: TrainingSet,
    device: torch.device,
    watch: Watch,
    progress: Progress,
    warn: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> None:
    """Train the encoder; leave the best weights by validation top-1, and the curves, in `folder`.

    `folder` may hold what an interrupted call with the same arguments left: training goes on from there
    with the same draws, so that on one machine it ends with the same weights. Of several processes the
    first alone writes, and the others read what it wrote.
    Raises: DataError if there is nothing to train on; TrainingError if the loss is not finite or a step
    does not fit into memory; ConfigError if the batch cannot be shared among the processes.
    """
    ranks.share(config.train.batch_pairs)
    size = round(encoder.segment_s * RATE_HZ)  # type: ignore[operator, arg-type]
    train, val = split_tracks(data.music)
    task = build_validation(data.music, val, data.noise, data.banks, size, config.train.val_queries)
    source = load_pool(data.music, train, data.noise, data.banks, config.train, size, device)
    _warn_of_overlaps(source, config.train, warn)
    stepper = Stepper(_sync_batch_norm(encoder.to(device), ranks, warn), config.train, config.seed, ranks, warn)
    run = _Run(stepper, device, folder, watch, task)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        run.resume()
        run.check_ranks_agree()
        run.train(source, progress)
    progress("training", config.train.steps, config.train.steps)
    if run.writes:
        write_json(folder / HISTORY, run.history)
        (folder / RESUME).unlink(missing_ok=True)


def _warn_of_overlaps(source: TrainingPool, config: TrainConfig, warn: Callable[[str], None]) -> None:
    """Say so where tracks are too short for several segments: the same moment would be a pair and its own negative."""
    wanted = source.segment_samples * config.segments_per_track
    short = int((source.music.lengths[source.tracks] < wanted).sum()) if config.segments_per_track > 1 else 0
    if short:
        warn(
            f"{short} of {len(source.tracks)} training tracks are too short for {config.segments_per_track} segments "
            "that do not overlap: a moment may be told from nearly itself; set train.segments_per_track=1, "
            "with neighbours_per_track=0 and hard_negatives_per_track=0, or a longer data.min_track_s"
        )


def _sync_batch_norm(encoder: nn.Module, ranks: Ranks, warn: Callable[[str], None]) -> nn.Module:
    """Return the encoder with batch normalisation over all processes, where there are several and it has any."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if ranks.world_size == 1 or not norms:
        return encoder
    if norms[0].running_mean is not None and norms[0].running_mean.is_cuda:
        together: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)  # type: ignore[no-untyped-call]
        return together
    warn("batch normalisation cannot be shared on CPUs: each process normalises over its own part of the batch")
    return encoder


def load_history(folder: Path) -> Curve:
    """Return the points of the training curves of a finished training: (step, values)."""
    return [(int(step), values) for step, values in read_json(folder / HISTORY)]


def split_tracks(music: Corpus) -> tuple[Ints, Ints]:
    """Return the tracks to train on, and those held out to validate on. Raises: DataError if there are too few."""
    train, val = music.numbers("train"), music.numbers("val")
    if len(train) < 2:
        raise DataError(f"training needs at least 2 usable tracks, got {len(train)}; `bench data verify` says why")
    held_out = 0 if len(val) else max(1, len(train) // VAL_SHARE)
    return (train[:-held_out], train[-held_out:]) if held_out else (train, val)


@dataclass
class _Run:
    """What changes while training goes on; all of it is in the resume checkpoint."""

    stepper: Stepper
    device: torch.device
    folder: Path
    watch: Watch
    task: Validation
    done: int = 0
    saved: int = 0
    best: float = -1.0
    worse: int = 0
    unchecked: list[Tensor] = field(default_factory=list)
    history: Curve = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config, self.encoder, self.ranks = self.stepper.config, self.stepper.encoder, self.stepper.ranks
        self.trainable = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimiser = optimiser_of(self.config, self.trainable or [torch.zeros(0)], self.device)
        self.writes = self.ranks.rank == 0

    def train(self, source: TrainingPool, progress: Progress) -> None:
        """Take the steps that are left, with validations and checkpoints among them."""
        config = self.config
        steps = config.steps if self.trainable else 0
        with prefetch(source, config, self.stepper.seed, self.ranks, self.device, self.done, steps) as served:
            for step in served:
                if self.should_stop():
                    break
                progress("training", self.done, steps)
                self.advance(step, source)
                if self.done % config.val_every_steps == 0 or self.done == steps:
                    self.validate()
                if self.done % config.checkpoint_every_steps == 0:
                    self.save()
        if self.best < 0:
            self.validate()  # no step at all: the untrained encoder

    def advance(self, served: Ready, source: TrainingPool) -> None:
        """Take one step of the optimiser."""
        self.encoder.train()
        rate = learning_rate(self.config, served.step)
        set_rate(self.optimiser, rate)
        with explain_memory_errors(self.config):
            heard = degrade_pairs(served.batch, source)
            feature_M = self.stepper.features(*heard, served.batch.stripe_BC22)
        loss = self.stepper.backpropagate(feature_M, served.step)
        self.ranks.sum_gradients(self.trainable)
        self.optimiser.step()
        self.done = served.step + 1
        self.unchecked.append(loss)
        if served.step % LOG_EVERY_STEPS == 0:
            self.check()
            self._add_point(
                {"train/loss": loss.item(), "train/lr": rate, "train/silent_redrawn": float(served.redrawn)}
            )

    def check(self) -> None:
        """Raise TrainingError if a loss since the last check, or a weight, is not finite; it waits for the device."""
        losses = torch.stack(self.unchecked).tolist() if self.unchecked else []
        first = self.done - len(losses)
        self.unchecked.clear()
        bad = [
            f"the loss is {loss} at step {step}" for step, loss in enumerate(losses, first) if not math.isfinite(loss)
        ]
        if not bad and not _is_finite(self.trainable):
            bad = [f"weights are not finite after step {self.done - 1}"]
        if bad:
            raise TrainingError(
                f"{bad[0]} (seed {self.stepper.seed}); the last good checkpoint is that of step {self.saved}; lower "
                f"train.lr = {self.config.lr:g} or raise train.temperature = {self.config.temperature:g}"
            )

    def validate(self) -> None:
        """Record a validation and keep the weights if none was better."""
        self.check()
        encoder: Any = self.encoder.eval()
        embedder = Embedder(encoder, self.device, self.config.precision, "")
        found = self.ranks.broadcast_first(top1(self.task, embedder) if self.writes else 0.0, self.device)
        self._add_point({"val/top1_50ms": found})
        self.worse = 0 if found > self.best else self.worse + 1
        if found > self.best:
            self.best = found
            if self.writes:
                state = {"step": self.done, "val_top1": found}
                checkpoint.save(self.folder / WEIGHTS, self.encoder.state_dict(), state)
            self.save()  # a run that goes on must know how good the weights are that it may replace

    def should_stop(self) -> bool:
        """Return whether validations have not become better for too long."""
        return 0 < self.config.patience <= self.worse

    def save(self) -> None:
        """Write all that is needed to go on from here."""
        self.check()
        self.saved = self.done
        if not self.writes:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        moments = checkpoint.optimiser_tensors(self.optimiser)
        tensors |= {f"optimiser.{name}": tensor for name, tensor in moments.items()}
        state = {
            "done": self.done, "best": self.best, "worse": self.worse,
            "piece": self.stepper.chunk, "history": self.history,
        }  # fmt: skip
        checkpoint.save(self.folder / RESUME, tensors, state)

    def resume(self) -> None:
        """Go on from the resume checkpoint if there is one."""
        if not (self.folder / RESUME).exists():
            return
        tensors, state = checkpoint.load(self.folder / RESUME)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.encoder.load_state_dict(parts["model"])
        checkpoint.restore_optimiser(self.optimiser, parts["optimiser"])
        self.done, self.best, self.worse = state["done"], state["best"], state["worse"]
        self.stepper.chunk = state["piece"]
        self.saved = self.done
        self.history = [(step, values) for step, values in state["history"]]
        for step, values in self.history:  # who watches may be another process than the one that was killed
            self.watch(values, step)

    def check_ranks_agree(self) -> None:
        """Wait for the other processes. Raises: TrainingError if they would go on from another step."""
        if self.ranks.broadcast_first(float(self.done), self.device) != self.done:
            raise TrainingError("the processes found different checkpoints; start them all on the same --store")

    def _add_point(self, values: dict[str, float]) -> None:
        self.history.append((self.done, values))
        self.watch(values, self.done)


def _is_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether every number is finite; one wait for the device, however many tensors."""
    norms = torch._foreach_norm(list(tensors)) if tensors else [torch.zeros(())]
    return bool(torch.stack(norms).isfinite().all())
