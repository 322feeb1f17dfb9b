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
from bench.config import RunConfig, TrainConfig
from bench.degrade.room import RoomBank
from bench.errors import BenchError, DataError
from bench.fingerprint import Embedder, at_rate
from bench.store import digest, read_json, write_json
from bench.train import checkpoint
from bench.train.losses import nt_xent
from bench.train.pairs import Material, degrade_pairs, draw_pairs, mask_patches, material
from bench.train.schedules import learning_rate
from bench.train.validation import top1, validation_of
from bench.values import RATE_HZ, Ints, Progress

WEIGHTS, RESUME, HISTORY = "model.safetensors", "resume.safetensors", "history.json"
LOG_EVERY_STEPS = 10
VAL_SHARE = 20  # one in so many training tracks is held out where a data set has no validation side

Curve = list[tuple[int, dict[str, float]]]
Watch = Callable[[dict[str, float], int], None]
"""Called as watch(metrics, step) with the points of the training curves as they come."""


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


class TrainingError(BenchError):
    """Says that the numbers of a training went bad, and where."""


def fit(
    folder: Path,
    encoder: nn.Module,
    config: RunConfig,
    data: TrainingSet,
    device: torch.device,
    watch: Watch,
    progress: Progress,
) -> None:
    """Train the encoder; leave the best weights by validation top-1, and the curves, in `folder`.

    `folder` may hold what an interrupted call with the same arguments left: training goes on from there
    with the same draws, so that on one machine it ends with the same weights.
    Raises: DataError if there is nothing to train on; TrainingError if the loss is not finite.
    """
    size = round(encoder.segment_s * RATE_HZ)  # type: ignore[operator, arg-type]
    train, val = (
        material(data.music, tracks, data.noise, data.banks, config.train, size, device)
        for tracks in _sides(data.music)
    )
    task = validation_of(val, config.train)
    run = _Run(encoder.to(device), config.train, config.seed, device, folder, watch)
    run.resume()
    steps = config.train.steps if run.trainable else 0
    for step in range(run.done, steps):
        progress("training", step, steps)
        run.advance(train)
        if run.done % config.train.val_every_steps == 0 or run.done == steps:
            run.keep_if_best(top1(task, run.embedder()))
        if run.done % config.train.checkpoint_every_steps == 0:
            run.save()
    if not run.history or not (folder / WEIGHTS).exists():
        run.keep_if_best(top1(task, run.embedder()))  # no step at all: the untrained encoder
    progress("training", steps, steps)
    write_json(folder / HISTORY, run.history)
    (folder / RESUME).unlink(missing_ok=True)


def history(folder: Path) -> Curve:
    """Return the points of the training curves of a finished training: (step, values)."""
    return [(int(step), values) for step, values in read_json(folder / HISTORY)]


def _sides(music: Corpus) -> tuple[Ints, Ints]:
    train, val = music.numbers("train"), music.numbers("val")
    if len(train) < 2:
        raise DataError(f"training needs at least 2 usable tracks, got {len(train)}; `bench data verify` says why")
    held_out = 0 if len(val) else max(1, len(train) // VAL_SHARE)
    return (train[:-held_out], train[-held_out:]) if held_out else (train, val)


@dataclass
class _Run:
    """What changes while training goes on; all of it is in the resume checkpoint."""

    encoder: nn.Module
    config: TrainConfig
    seed: int
    device: torch.device
    folder: Path
    watch: Watch
    done: int = 0
    saved: int = 0
    best: float = -1.0
    unchecked: list[Tensor] = field(default_factory=list)
    history: Curve = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trainable = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(self.trainable or [torch.zeros(0)], lr=self.config.lr)

    def advance(self, source: Material) -> None:
        """Take one step of the optimiser."""
        step = self.done
        self.encoder.train()
        rate = learning_rate(self.config, step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self._loss(source, step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.done = step + 1
        self.unchecked.append(loss.detach())
        if step % LOG_EVERY_STEPS == 0:
            self.check()
            self._point({"train/loss": loss.item(), "train/lr": rate})

    def check(self) -> None:
        """Raise TrainingError if a loss since the last check, or a weight, is not finite; it waits for the device."""
        losses = torch.stack(self.unchecked).tolist() if self.unchecked else []
        first = self.done - len(losses)
        self.unchecked.clear()
        bad = [
            f"the loss is {loss} at step {step}" for step, loss in enumerate(losses, first) if not math.isfinite(loss)
        ]
        if not bad and not all(bool(weights.isfinite().all()) for weights in self.trainable):
            bad = [f"weights are not finite after step {self.done - 1}"]
        if bad:
            raise TrainingError(
                f"{bad[0]} (seed {self.seed}); the last good checkpoint is that of step {self.saved}; lower "
                f"train.lr = {self.config.lr:g} or raise train.temperature = {self.config.temperature:g}"
            )

    def _loss(self, source: Material, step: int) -> Tensor:
        draws = draw_pairs(source, self.config, self.seed, step).to(self.device)
        anchor_BT, positive_BT = degrade_pairs(draws, source)
        rate_hz: Any = self.encoder.rate_hz
        features: Any = self.encoder.features
        with torch.no_grad():
            anchor_B, positive_B = (features(at_rate(wave, rate_hz)) for wave in (anchor_BT, positive_BT))
            positive_B = mask_patches(positive_B, self.config, self.seed, step)
        embed: Any = self.encoder.embed
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            vector_MD = embed(torch.cat([anchor_B, positive_B]))
        anchor_ND, positive_ND = vector_MD.float().chunk(2)
        return nt_xent(anchor_ND, positive_ND, self.config.temperature)

    def embedder(self) -> Embedder:
        """Return the encoder as it is now, ready to embed."""
        encoder: Any = self.encoder.eval()
        return Embedder(encoder, self.device, self.config.precision, "")

    def keep_if_best(self, val_top1: float) -> None:
        """Record a validation and keep the weights if none was better."""
        self.check()
        self._point({"val/top1_50ms": val_top1})
        if val_top1 > self.best:
            self.best = val_top1
            state = {"step": self.done, "val_top1": val_top1}
            checkpoint.save(self.folder / WEIGHTS, self.encoder.state_dict(), state)

    def save(self) -> None:
        """Write all that is needed to go on from here."""
        self.check()
        tensors = {f"model.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        moments = checkpoint.optimiser_tensors(self.optimiser)
        tensors |= {f"optimiser.{name}": tensor for name, tensor in moments.items()}
        state = {"done": self.done, "best": self.best, "history": self.history}
        checkpoint.save(self.folder / RESUME, tensors, state)
        self.saved = self.done

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
        self.done, self.best = state["done"], state["best"]
        self.saved = self.done
        self.history = [(step, values) for step, values in state["history"]]

    def _point(self, values: dict[str, float]) -> None:
        self.history.append((self.done, values))
        self.watch(values, self.done)
