"""Measures a whole run, stage by stage: seconds, peak memory, and the floor where the arithmetic of a stage is known.

The run is a real one, in a new store, so that nothing of it is found finished. Its stages are what the store builds and
times, and the parts inside them. A part ends when the device has finished it, so that on a GPU parts that would overlap
do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.degrade.cells import list_cells, validation_config
from bench.degrade.queries import hop_samples
from bench.errors import BenchError
from bench.fingerprint import num_segments, resample_to
from bench.results import Result
from bench.run import RunContext, Task, build_encoder, check_run, run, set_up_device
from bench.settings import RunConfig
from bench.speed.isolated import status_mib
from bench.speed.network import PASSES_OF_STEP, Stopwatch, flop_of, keep, matrix_rate, read_record
from bench.store import Store
from bench.values import RATE_HZ

WHOLE = "run"  # the stage that contains all others
TRAINING, FORWARD, BACKWARD = f"{WHOLE}/weights", f"{WHOLE}/weights/forward", f"{WHOLE}/weights/backward"
DATABASE, EMBED = f"{WHOLE}/fingerprints", f"{WHOLE}/hits/mix and embed"
PRODUCT = f"{WHOLE}/hits/scan"  # one product serves the impostors, `diagonal` and exact search
LEAST_SHARE = 0.01  # of either run: shorter stages are not judged, as they vary more than that
SAME_WORK = ("kind", "preset", "dataset", "task", "work")
RESET_PEAK = "5"  # Linux, Documentation/filesystems/proc.rst, clear_refs


@dataclass(frozen=True)
class Stage:
    """What one stage took in all."""

    path: str
    """Its name after those of the stages that contain it, such as run/weights/forward."""

    times: int
    """How often it ran."""

    seconds: float
    """Time of the stage with those inside it."""

    peak_mib: float
    """Peak memory, of this process on the CPU and of tensors on a GPU; 0 where it cannot be measured."""

    floor_s: float | None = None
    """What its arithmetic takes at the rate of a large matrix product; None if its amount is not known."""


@dataclass(frozen=True)
class RunSpeed:
    """What a run took, stage by stage."""

    encoder: str
    preset: str
    dataset: str
    task: str
    device: str

    work: dict[str, int]
    """Numbers of training steps, of database vectors and of query vectors."""

    matrix_tflops: float
    """The rate of a large matrix product in fp32, measured after the run."""

    stages: tuple[Stage, ...]
    """The stages in the order in which they began; the first is the whole run."""

    kind: str = "run"

    @property
    def whole(self) -> Stage:
        """Return the whole run."""
        return self.stages[0]

    def rest_s(self, stage: Stage) -> float:
        """Return the time of a stage outside those that it contains."""
        inside = [each for each in self.stages if each.path.rpartition("/")[0] == stage.path]
        return stage.seconds - sum(each.seconds for each in inside)

    def numbers(self) -> dict[str, float]:
        """Return all measurements by name, as metrics for MLflow."""
        numbers = {f"{stage.path}_s": stage.seconds for stage in self.stages}
        floors = {f"floor/{stage.path}_s": stage.floor_s for stage in self.stages if stage.floor_s is not None}
        return numbers | floors | {"memory_mib": self.whole.peak_mib, "matrix_tflops": self.matrix_tflops}


@dataclass
class StageRecorder:
    """Times stages inside each other, and reads their peak memory."""

    stopwatch: Stopwatch
    peaks_mib: dict[str, float] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the work inside the context as one stage, inside the stage that is being measured."""
        path = f"{self.inside[-1]}/{name}" if self.inside else name
        self._note_peak()
        self.inside.append(path)
        self.peaks_mib.setdefault(path, 0.0)
        try:
            with self.stopwatch.part(path):
                yield
            self._note_peak()
        finally:
            self.inside.pop()

    def stages(self) -> tuple[Stage, ...]:
        """Return all stages that were finished, in the order in which they began."""
        times_ms = self.stopwatch.parts_ms
        return tuple(
            Stage(path, len(times_ms[path]), sum(times_ms[path]) / 1000, peak_mib)
            for path, peak_mib in self.peaks_mib.items()
            if path in times_ms
        )

    def _note_peak(self) -> None:
        """Count the peak since the last call for all stages in progress."""
        peak_mib = take_peak_mib(self.stopwatch.device)
        for path in self.inside:
            self.peaks_mib[path] = max(self.peaks_mib[path], peak_mib)


def take_peak_mib(device: torch.device) -> float:
    """Return the peak memory since the last call and start anew; 0 where the system cannot."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 2**20
    peak_mib = status_mib("self", "VmHWM")
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return 0.0
    return peak_mib


def measure_run(config: RunConfig, context: RunContext, task: Task) -> tuple[RunSpeed, Path]:
    """Measure a run in a new store, which is removed again; return the measurement and its file in the store.

    Raises: as `run`.
    """
    check_run(config, context)
    device = set_up_device(config)
    recorder = StageRecorder(Stopwatch(device))
    context.store.root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=context.store.root, prefix="speed-", ignore_cleanup_errors=True) as scratch:
        empty = replace(context, store=Store(Path(scratch), recorder.stage))
        with recorder.stage(WHOLE):
            result = run(config, empty, task)
    if result is None:
        raise BenchError("bench speed run measures one process; start it without torchrun")
    encoder = build_encoder(context.plugin, config).to(device)
    tested = replace(config, eval=validation_config(config.eval)) if task == "validation" else config
    speed = _tell(recorder.stages(), result, encoder, tested, task, device)
    return speed, keep(speed, config, context)


def read_run_speed(path: Path) -> RunSpeed:
    """Return the measurement of a run in a file. Raises: ConfigError if the file holds none."""

    def build(values: Any) -> RunSpeed:
        return RunSpeed(**values | {"stages": tuple(Stage(**stage) for stage in values["stages"])})

    return read_record(path, build)


def check_no_slower(speed: RunSpeed, other: RunSpeed, allowed: float) -> None:
    """Raise BenchError if a stage is slower than in the other run by more than the share `allowed` of its time.

    Stages below LEAST_SHARE of both runs are not judged.
    """
    before = {stage.path: stage for stage in other.stages}
    slower = [
        f"{stage.path} took {stage.seconds:.3g} s, {stage.seconds / before[stage.path].seconds:.2f} times the "
        f"{before[stage.path].seconds:.3g} s before"
        for stage in speed.stages
        if stage.path in before
        and max(stage.seconds / speed.whole.seconds, before[stage.path].seconds / other.whole.seconds) >= LEAST_SHARE
        and stage.seconds > (1 + allowed) * before[stage.path].seconds
    ]
    if slower:
        raise BenchError(
            f"slower by more than {100 * allowed:g} %: {'; '.join(slower)}; measure both again on a quiet machine, or "
            "find what changed"
        )


def count_query_vectors(config: RunConfig, queries: int, segment_samples: int) -> int:
    """Return how many vectors the queries of all cells and lengths have; a short query is extended to one segment."""
    hop = hop_samples(config.eval)
    per_query = sum(
        num_segments(max(round(length_s * RATE_HZ), segment_samples), segment_samples, hop)
        for length_s in config.eval.lengths_s
    )
    return queries * len(list_cells(config.eval)) * per_query


def reckon_floors(
    work: Mapping[str, int], step_flop: float, segment_flop: float, dim: int, rates: tuple[float, float, float]
) -> dict[str, float]:
    """Return the seconds that the arithmetic of each stage takes, by path.

    `step_flop` is that of a forward pass over a batch. `rates` are the operations per second of a large product in the
    precisions of training, of embedding, and in fp32, in which is searched.
    """
    train_rate, embed_rate, search_rate = rates
    forward_s = work["steps"] * step_flop / train_rate
    product_s = 2 * work["query_vectors"] * work["database_vectors"] * dim / search_rate
    return {
        TRAINING: PASSES_OF_STEP * forward_s,
        FORWARD: forward_s,
        BACKWARD: (PASSES_OF_STEP - 1) * forward_s,
        DATABASE: work["database_vectors"] * segment_flop / embed_rate,
        EMBED: work["query_vectors"] * segment_flop / embed_rate,
        PRODUCT: product_s,
    }


def _tell(
    stages: Sequence[Stage], result: Result, encoder: Any, config: RunConfig, task: str, device: torch.device
) -> RunSpeed:
    """Return the measurement of a run, with the floors of this machine."""
    segment_samples = round(encoder.segment_s * RATE_HZ)
    queries = result.summary.get("queries_per_cell", 0)
    work = {
        "steps": sum(stage.times for stage in stages if stage.path == FORWARD),
        "database_vectors": result.summary.get("database_vectors", 0),
        "query_vectors": count_query_vectors(config, queries, segment_samples),
    }
    with torch.inference_mode():
        wave_BT = torch.randn(2, segment_samples, device=device)
        feature_B = encoder.features(resample_to(wave_BT, encoder.rate_hz))
    segment_flop = flop_of(encoder, feature_B) / 2
    rate = {name: matrix_rate(device, name) for name in {config.train.precision, config.eval.precision, "fp32"}}
    rates = (rate[config.train.precision], rate[config.eval.precision], rate["fp32"])
    floors = reckon_floors(work, 2 * config.train.batch_pairs * segment_flop, segment_flop, encoder.dim, rates)
    on_gpu = device.type == "cuda"
    return RunSpeed(
        encoder=config.encoder, preset=config.preset, dataset=config.data.dataset, task=task,
        device=torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        work=work, matrix_tflops=rate["fp32"] / 1e12,
        stages=tuple(replace(stage, floor_s=floors.get(stage.path) or None) for stage in stages),
    )  # fmt: skip
