"""Measures how fast an encoder trains and embeds on this machine, part by part, and how close that is to the floor.

The floor is the larger of two times: the arithmetic at the measured rate of a matrix product, and the least memory
traffic at the measured rate of a copy. Both rates are measured in the same call. Parts are timed one after another,
waiting for the device after each; the whole is timed as it runs, with parts overlapping.

Shape legend: B pairs, T samples, D dimensions.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from bench.config import flatten
from bench.data import TrainingSet, prepare_training
from bench.errors import ConfigError
from bench.fingerprint import BATCH, Embedder, resample_to
from bench.logbook import open_book, provenance
from bench.run import RunContext, build_encoder, check_run, set_up_device
from bench.settings import RunConfig, require
from bench.speed.tracking_cost import block_steps, measure_overhead
from bench.store import Store, digest, write_json
from bench.train.hard_negatives import prepare_hard_negatives
from bench.train.loop import Watch
from bench.train.pairs import degrade_pairs
from bench.train.pool import load_pool
from bench.train.prefetch import PREFETCH_STEPS, Ready, make_batch, prefetch, start_transform_workers
from bench.train.ranks import ALONE
from bench.train.step import LOG_EVERY_STEPS, TrainingStep, build_step, explain_memory_errors
from bench.values import RATE_HZ, Progress

RECORD = "speed.json"
MATRIX = 4096  # side of the square matrices whose product gives the rate
COPY_BYTES = 1 << 28
WARM_UP = 3  # repetitions before timing starts
BEST_OF = 5  # timings of a product or a copy
FLOAT_BYTES = 4
# A training step reads each weight for the forward and the backward pass, writes and reads its gradient, and reads and
# writes the weight and both moments of Adam.
PASSES_OVER_WEIGHTS = 10
PASSES_OF_STEP = 3  # for each product of the forward pass the backward pass computes two
Kept = TypeVar("Kept")


class Record(Protocol):
    """A measurement that is kept: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def kind(self) -> str:
        """Return what was measured."""
        ...

    def numbers(self) -> dict[str, float]:
        """Return all measurements by name, as metrics for MLflow."""
        ...


@dataclass(frozen=True)
class Speed:
    """The measured speed of an encoder. Times are in ms per step (training) or per batch (embedding)."""

    kind: str
    """"train" or "embed"."""

    encoder: str
    preset: str
    device: str
    precision: str

    segments: int
    """Segments per step or batch."""

    parts_ms: dict[str, float]
    """The median time of each part."""

    whole_ms: float
    """The mean time of the whole."""

    memory_mib: float
    """Peak memory."""

    parameters: int

    gflop: float
    """Floating-point operations of a step or batch, in units of 10^9."""

    matrix_tflops: float
    """The rate of a large matrix product."""

    copy_gb_s: float
    """The rate of a large copy, counting both reading and writing."""

    arithmetic_ms: float
    """What `gflop` takes at `matrix_tflops`."""

    traffic_ms: float
    """What the least memory traffic takes at `copy_gb_s`."""

    tracking: dict[str, float] = field(default_factory=dict)
    """What `bench.speed.tracking_cost.measure_alternately` returns; empty if it was not measured."""

    @property
    def segments_per_s(self) -> float:
        """Return how many segments are trained on or embedded per second."""
        return 1000 * self.segments / self.whole_ms

    @property
    def floor_ms(self) -> float:
        """Return the least time that this machine could need."""
        return max(self.arithmetic_ms, self.traffic_ms)

    def numbers(self) -> dict[str, float]:
        """Return all measurements by name, as metrics for MLflow."""
        metrics = {f"part/{name}_ms": value for name, value in self.parts_ms.items()}
        for name in ("whole_ms", "segments_per_s", "memory_mib", "gflop", "matrix_tflops", "copy_gb_s"):
            metrics[name] = getattr(self, name)
        metrics |= {f"tracking/{name}": value for name, value in self.tracking.items()}
        return metrics | {
            "floor/arithmetic_ms": self.arithmetic_ms,
            "floor/traffic_ms": self.traffic_ms,
            "floor/times": self.whole_ms / self.floor_ms,
        }


def measure_network(
    kind: Literal["train", "embed"], config: RunConfig, context: RunContext, times: int, pairs: int = 0
) -> tuple[Speed, Path]:
    """Measure an encoder; return the measurement and its file in the store, and log it to MLflow.

    `times` is the number of steps or batches. If `pairs` is not 0, the cost of tracking per training step is measured
    too, in this many pairs of blocks of steps.
    """
    check_run(config, context)
    device = set_up_device(config)
    encoder = build_encoder(context.plugin, config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if kind == "train":
        training_set = prepare_training(config, context.root, context.store, context.progress)
        with explain_memory_errors(config.train):
            training = build_training(encoder, config, training_set, context.store, device, context.progress)
            speed = measure_training(training, times, context.progress)
            if pairs:
                steps = block_steps(times, speed.whole_ms)
                speed = replace(speed, tracking=measure_tracking(training, steps, pairs, context))
    else:
        speed = measure_embedding(encoder, config, device, times, context.progress)
    return speed, keep(speed, config, context)


def keep(speed: Record, config: RunConfig, context: RunContext) -> Path:
    """Write a measurement into the store, log it to MLflow, and return its file."""
    name = f"{speed.kind}-{config.encoder}-{digest(asdict(speed), time.time())[:6]}"
    folder = context.store.root / "speed" / name
    with open_book(folder, experiment="speed", name=name, store=context.store.root, warn=context.warn) as book:
        write_json(folder / RECORD, asdict(speed))
        book.params(flatten(config))
        book.tags(provenance() | {"bench.task": f"speed-{speed.kind}", "bench.encoder": config.encoder})
        book.metrics(speed.numbers(), 0)
    return folder / RECORD


def read_speed(path: Path) -> Speed:
    """Return the measurement in a file. Raises: ConfigError if the file holds none."""
    return read_record(path, lambda values: Speed(**values))


def read_record(path: Path, build: Callable[[Any], Kept]) -> Kept:
    """Return what `build` makes of the values in a file. Raises: ConfigError if they are of no such measurement."""
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is no record of `bench speed` ({error}); give a {RECORD} that it wrote") from error


def check_alike(speed: Kept, other: Kept, names: Sequence[str] = ("kind", "segments")) -> None:
    """Raise ConfigError if two measurements are not of the same work, which has these names."""
    for name in names:
        value, other_value = getattr(speed, name), getattr(other, name)
        require(value == other_value, f"--against must be a measurement with the same {name}, {value}", other_value)


@dataclass(frozen=True)
class Training:
    """A training whose steps can be measured; each step changes the encoder's weights."""

    step: TrainingStep
    config: RunConfig
    device: torch.device

    def prefetch(self, steps: int) -> AbstractContextManager[Iterator[Ready]]:
        """Yield the batches of so many steps, prefetched as in a real training."""
        return prefetch(self.step.pool, self.config.train, self.config.seed, ALONE, self.device, 0, steps)


def build_training(
    encoder: Any, config: RunConfig, training_set: TrainingSet, store: Store, device: torch.device, progress: Progress
) -> Training:
    """Return a training with the configured batch size on the run's music."""
    train, music = config.train, training_set.music
    size, tracks = round(encoder.segment_s * RATE_HZ), music.numbers("train")
    hard_negatives = prepare_hard_negatives(store, music, tracks, size, train.hard_negatives_per_track, progress)
    pool = load_pool(training_set, tracks, train, size, device, hard_negatives)
    step = build_step(pool, encoder.to(device), train, config.seed, device, ALONE, _refuse_chunks)
    return Training(step, config, device)


def measure_training(training: Training, steps: int, progress: Progress) -> Speed:
    """Measure training steps, part by part and as a whole."""
    config, train, device = training.config, training.config.train, training.device
    step, pool = training.step, training.step.pool
    stopwatch = Stopwatch(device)

    def in_parts(number: int) -> None:
        ready = make_batch(pool, train, config.seed, number, ALONE, device, transform, stopwatch.part)
        step.take(ready, stopwatch.part)

    # 1. Part by part.
    with start_transform_workers(train.transforms, 1) as transform:
        _repeat(in_parts, steps, stopwatch, "parts", progress)
        ready = make_batch(pool, train, config.seed, 0, ALONE, device, transform)
    # 2. The whole, overlapped. There are more batches than steps, so that prefetching costs the last steps as much as
    # the first ones.
    with training.prefetch(WARM_UP + steps + PREFETCH_STEPS) as batches:
        whole_ms = _mean_ms(lambda _: step.take(next(batches)), steps, stopwatch, "whole steps", progress)
    peak = _peak_memory(device)
    feature_M = step.stepper.features(*degrade_pairs(ready.batch, pool), ready.batch.stripe_BC22)
    weights = sum(p.numel() for p in step.stepper.trainable)
    # 3. The floor. For each product of the forward pass the backward pass computes two: the gradients of the inputs
    # and of the weights. (The first layer needs no gradient of its inputs; in these encoders that is less than 1 %.)
    flop = PASSES_OF_STEP * flop_of(step.stepper.encoder, feature_M)
    traffic = PASSES_OVER_WEIGHTS * FLOAT_BYTES * weights + 2 * feature_M.numel() * FLOAT_BYTES
    return _speed(
        "train", config, device, train.precision, stopwatch, whole_ms, peak, len(feature_M), weights, flop, traffic
    )


def measure_tracking(training: Training, steps: int, pairs: int, context: RunContext) -> dict[str, float]:
    """Measure training steps with and without the logbook, in `pairs` pairs of blocks of `steps` steps."""
    num_batches = WARM_UP + 2 * pairs * steps + PREFETCH_STEPS
    with training.prefetch(num_batches) as batches:

        def take(number: int, watch: Watch) -> None:
            ready = next(batches)
            loss = training.step.take(ready)
            if number % LOG_EVERY_STEPS == 0:
                watch(training.step.metrics(ready, loss), number)

        for _ in range(WARM_UP):
            training.step.take(next(batches))
        wait = Stopwatch(training.device).wait
        return measure_overhead(take, wait, pairs, steps, context.store.root, context.warn, context.progress)


def measure_embedding(encoder: Any, config: RunConfig, device: torch.device, batches: int, progress: Progress) -> Speed:
    """Measure the embedding of batches of noise segments, as for a database, part by part and as a whole."""
    encoder = encoder.to(device).eval()
    embedder = Embedder(encoder, device, config.eval.precision, "")
    draw = torch.Generator().manual_seed(0)
    wave_BT = torch.randint(-8000, 8000, (BATCH, embedder.segment_samples), generator=draw, dtype=torch.int16)
    stopwatch = Stopwatch(device)
    bf16 = config.eval.precision == "bf16"

    @torch.inference_mode()
    def in_parts(_: int) -> None:
        with stopwatch.part("to device"):
            moved_BT = wave_BT.to(device).float()
        with stopwatch.part("features"):
            feature_B = encoder.features(resample_to(moved_BT, encoder.rate_hz))
        with stopwatch.part("network"), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            vector_BD = encoder.embed(feature_B)
        with stopwatch.part("to host"):
            vector_BD.cpu()

    _repeat(in_parts, batches, stopwatch, "parts", progress)
    samples = wave_BT.numpy()
    whole_ms = _mean_ms(lambda _: embedder(samples), batches, stopwatch, "whole batches", progress)
    peak = _peak_memory(device)
    with torch.inference_mode():
        feature_B = encoder.features(resample_to(wave_BT.to(device).float(), encoder.rate_hz))
    weights = sum(p.numel() for p in encoder.parameters())
    flop = flop_of(encoder, feature_B)
    traffic = FLOAT_BYTES * (weights + feature_B.numel()) + wave_BT.numel() * 2
    return _speed(
        "embed", config, device, config.eval.precision, stopwatch, whole_ms, peak, BATCH, weights, flop, traffic
    )


def flop_of(encoder: Any, feature_B: Tensor) -> float:
    """Return the floating-point operations of a forward pass, counting a multiplication and an addition as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.embed(feature_B[:2])  # two, as batch normalisation in training needs
    return float(counter.get_total_flops() * len(feature_B) / 2)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the rate of a product of large matrices in operations per second, best of BEST_OF."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    side = MATRIX if device.type == "cuda" else MATRIX // 2
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    return float(2 * side**3 / _best_s(lambda: left @ right, device))


def copy_rate(device: torch.device) -> float:
    """Return the rate of a copy of 256 MiB in bytes per second, read and written counted, best of BEST_OF."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _best_s(lambda: target.copy_(source), device)


@dataclass
class Stopwatch:
    """Times the parts of repeated work on a device; a part ends when the device has finished it."""

    device: torch.device
    parts_ms: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the work inside the context as one part."""
        began_s = time.perf_counter()
        yield
        self.wait()
        self.parts_ms.setdefault(name, []).append(1000 * (time.perf_counter() - began_s))

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def medians(self) -> dict[str, float]:
        """Return the median time of each part in ms."""
        return {name: statistics.median(times) for name, times in self.parts_ms.items()}


def _repeat(work: Callable[[int], None], times: int, stopwatch: Stopwatch, stage: str, progress: Progress) -> None:
    """Repeat work that times its parts, and forget the warm-up."""
    for i in range(times + WARM_UP):
        progress(stage, i, times + WARM_UP)
        if i == WARM_UP:
            stopwatch.parts_ms.clear()
        work(i)
    progress(stage, times + WARM_UP, times + WARM_UP)


def _mean_ms(work: Callable[[int], object], times: int, stopwatch: Stopwatch, stage: str, progress: Progress) -> float:
    """Return the mean time of repeated work, without waiting for the device in between."""
    for i in range(WARM_UP):
        work(i)
    stopwatch.wait()
    began_s = time.perf_counter()
    for i in range(times):
        progress(stage, i, times)
        work(i)
    stopwatch.wait()
    spent_s = time.perf_counter() - began_s
    progress(stage, times, times)
    return 1000 * spent_s / times


def _speed(
    kind: str, config: RunConfig, device: torch.device, precision: str, stopwatch: Stopwatch, whole_ms: float,
    peak: float, segments: int, weights: int, flop: float, traffic: float,
) -> Speed:  # fmt: skip
    """Return the measurement, with the floor of this machine; `peak` and `traffic` are in bytes."""
    flop_per_s, bytes_per_s = matrix_rate(device, precision), copy_rate(device)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    return Speed(
        kind=kind, encoder=config.encoder, preset=config.preset, device=name, precision=precision,
        segments=segments, parts_ms=stopwatch.medians(), whole_ms=whole_ms, memory_mib=peak / 2**20,
        parameters=weights, gflop=flop / 1e9, matrix_tflops=flop_per_s / 1e12, copy_gb_s=bytes_per_s / 1e9,
        arithmetic_ms=1000 * flop / flop_per_s, traffic_ms=1000 * traffic / bytes_per_s,
    )  # fmt: skip


def _peak_memory(device: torch.device) -> float:
    """Return the peak memory so far in bytes: of tensors on a GPU, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    stopwatch = Stopwatch(device)
    for _ in range(WARM_UP + BEST_OF):
        with stopwatch.part("work"):
            work()
    return min(stopwatch.parts_ms["work"][WARM_UP:]) / 1000


def _refuse_chunks(problem: str) -> None:
    raise ConfigError(f"{problem}; lower train.batch_pairs, because only unchunked steps are measured")
