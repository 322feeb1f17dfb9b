"""`bench speed`: how fast training, embedding and search are on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.cli.options import (
    STORE,
    SYNTH,
    ConfigFile,
    DataRoot,
    Dataset,
    Model,
    PreparedDataset,
    Preset,
    Run,
    Set,
    StoreRoot,
    Task,
    open_store,
    resolve_settings,
)
from bench.cli.output import print_table

if TYPE_CHECKING:
    from bench.settings import RunConfig

group = typer.Typer(help="Measure how fast training, embedding and search are on this machine.", no_args_is_help=True)

PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
Against = Annotated[Path | None, typer.Option(help="speed.json of an earlier measurement, to compare with.")]


@group.command("train")
def train(
    model: Model,
    preset: Preset = "small",
    dataset: Dataset = None,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    set_: Set = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps to time.")] = 20,
    tracking: Annotated[
        int, typer.Option(min=0, help="Also time it with and without MLflow: this many times 20 s of each.")
    ] = 0,
    against: Against = None,
) -> None:
    """Time the training step by part: sampling, reading, degrading, features, forward, backward, optimiser.

    The floor is the time that the arithmetic or the memory traffic of a step would take alone, whichever is longer.
    """
    plugin, settings = resolve_settings(model, preset, dataset, overrides=set_)
    _measure("train", plugin, settings, data_root, store, steps, against, tracking)


@group.command("embed")
def embed(
    model: Model,
    preset: Preset = "small",
    store: StoreRoot = STORE,
    set_: Set = None,
    batches: Annotated[int, typer.Option(min=1, help="Number of batches of 256 segments to time.")] = 20,
    against: Against = None,
) -> None:
    """Time the embedding of segments, as they are embedded for a database."""
    plugin, settings = resolve_settings(model, preset, overrides=set_)
    _measure("embed", plugin, settings, None, store, batches, against)


@group.command("run")
def run(
    model: Model,
    preset: Preset = "tiny",
    dataset: PreparedDataset = SYNTH,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    config: ConfigFile = None,
    set_: Set = None,
    task: Task = "all",
    against: Against = None,
    fail_above: Annotated[
        str | None,
        typer.Option(help="With --against: exit code 1 if a stage is slower by more than this, such as 5%."),
    ] = None,
) -> None:
    """Time a whole run by stage, computing all of it anew: seconds, peak memory, and how far above the floor.

    The floor is what the arithmetic of a stage takes alone. With --against, each stage is compared with before.
    """
    from bench.console import show_progress, warn
    from bench.device import warn_of_busy_cores
    from bench.errors import ConfigError
    from bench.registry import format_unknown, load
    from bench.run import TASKS, RunContext
    from bench.speed.network import check_alike
    from bench.speed.stages import SAME_WORK, check_no_slower, measure_run, read_run_speed

    if task not in TASKS:
        raise ConfigError(format_unknown("task", task, list(TASKS)))
    allowed = _parse_allowed(fail_above, against)
    earlier = read_run_speed(against) if against else None
    plugin, settings = resolve_settings(model, preset, dataset, config, set_)
    warn_of_busy_cores(warn)
    with show_progress() as progress:
        context = RunContext(plugin, data_root, open_store(store), progress, warn)
        speed, path = measure_run(settings, context, task)
    if earlier is not None:
        check_alike(speed, earlier, SAME_WORK)
    print_table(load("report", "speed").render_run(speed, earlier))
    print(f"kept in {path}; give it to --against to compare another measurement with this one")
    if earlier is not None and allowed is not None:
        check_no_slower(speed, earlier, allowed)


@group.command("search")
def search(
    run: Run = None,
    vectors: Annotated[
        int, typer.Option(help="Size of the database: the run's fingerprints, filled up with synthetic distractors.")
    ] = 7_300_000,
    index: Annotated[
        list[str] | None,
        typer.Option(
            help="Index to measure: NAME for all its presets, or NAME:PRESET. Repeatable.", show_default="all indexes"
        ),
    ] = None,
    cell_snr: Annotated[float, typer.Option(help="Signal-to-noise ratio of the queries, in dB.")] = 5.0,
    length: Annotated[float, typer.Option(help="Length of the queries, in seconds.")] = 3.0,
    top_k: Annotated[int, typer.Option(help="Number of neighbours per query vector.")] = 20,
    queries: Annotated[int, typer.Option(help="Largest number of the run's queries to use.")] = 1000,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of an index: index.falconn.tables=10. Repeatable."),
    ] = None,
) -> None:
    """Compare indexes with brute force on the same vectors: recall, time, memory, seconds to build.

    The database is a run's fingerprints among synthetic distractors; the queries are the run's, in noise. Each index
    is built and measured in its own process; one that is not installed or crashes is listed as such.
    """
    from bench.console import show_progress, warn
    from bench.registry import load, names
    from bench.speed.search import SearchSpeedOptions, measure_indexes

    report = load("report", "search-speed")
    wanted = SearchSpeedOptions(run, vectors, index or names("index"), cell_snr, length, top_k, queries, set_ or [])
    with show_progress() as progress:
        result, folder = measure_indexes(wanted, data_root, open_store(store), progress, warn, report.draw)
    print_table(report.render(result))
    print(f"kept in {folder}, with a plot")


def _parse_allowed(fail_above: str | None, against: Path | None) -> float | None:
    """Return by which share of its time a stage may be slower, None if there is no limit. Raises: ConfigError."""
    from bench.settings import require

    if fail_above is None:
        return None
    percent = PERCENT.fullmatch(fail_above.strip())
    require(percent is not None, "--fail-above must be a percentage such as 5%", repr(fail_above))
    require(against is not None, "--fail-above needs --against, the measurement to compare with", against)
    return float(percent[1]) / 100  # type: ignore[index]


def _measure(
    kind: Literal["train", "embed"],
    plugin: ModuleType,
    settings: RunConfig,
    data_root: Path | None,
    store: Path,
    times: int,
    against: Path | None,
    tracking: int = 0,
) -> None:
    """Measure and print the speed of a network, beside that of the earlier measurement in `against`."""
    from bench.console import show_progress, warn
    from bench.device import warn_of_busy_cores
    from bench.registry import load
    from bench.run import RunContext
    from bench.speed.network import check_alike, measure_network, read_speed

    earlier = read_speed(against) if against else None
    warn_of_busy_cores(warn)
    with show_progress() as progress:
        context = RunContext(plugin, data_root, open_store(store), progress, warn)
        speed, path = measure_network(kind, settings, context, times, tracking)
    if earlier is not None:
        check_alike(speed, earlier)
    print_table(load("report", "speed").render(speed, earlier))
    print(f"kept in {path}; give it to --against to compare another measurement with this one")
