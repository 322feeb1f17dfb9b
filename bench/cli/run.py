"""`bench run`: train, evaluate and log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import (
    STORE,
    SYNTH,
    ConfigFile,
    DataRoot,
    Dataset,
    OptionalModel,
    RunPreset,
    Set,
    StoreRoot,
    Task,
    check_dataset_is_given,
    format_store_option,
    open_store,
    resolve_settings,
)
from bench.cli.output import print_next, print_result

if TYPE_CHECKING:
    from bench.results import Result
    from bench.store import Store


def run(
    model: OptionalModel = None,
    preset: RunPreset = None,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    config: ConfigFile = None,
    set_: Set = None,
    matcher: Annotated[
        str | None,
        typer.Option(
            help="Test a matcher instead of an encoder: a name from `bench list matcher`, with a preset of it after a "
            "colon (landmarks:audfprint), or a path such as ./mine.py."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Evaluate these weights instead of training: a model.safetensors, or models:/NAME@champion."),
    ] = None,
    task: Task = "all",
) -> None:
    """Train an encoder, evaluate it on degraded queries and on pairs of recorders, and log the run to MLflow.

    With --matcher, test a system that is not trained, such as a landmark hash, on the same queries.

    Whatever the store already holds is reused: repeat the command to resume an interrupted run.
    With --task alignment, the data set defaults to field if the data root has a folder field/.
    """
    from bench.console import show_progress, warn
    from bench.device import warn_of_busy_cores
    from bench.errors import ConfigError
    from bench.registry import format_unknown
    from bench.run import TASKS, RunContext
    from bench.run import run as run_model

    if task not in TASKS:
        raise ConfigError(format_unknown("task", task, list(TASKS)))
    if preset is None:
        preset = "align-small" if task == "alignment" else "small"
    if dataset is None:
        dataset = _choose_dataset(task, data_root)
    where = open_store(store)
    if matcher is not None:
        if model is not None or checkpoint is not None:
            raise ConfigError("--matcher tests a system of its own; give it without --model and --checkpoint")
        weights, chosen = None, f"--matcher {matcher}"
        plugin, settings = resolve_settings(matcher, preset, dataset, config, set_, kind="matcher")
    else:
        weights, model, model_settings = _choose_weights(checkpoint, model, where)
        chosen = f"-m {model}"
        plugin, settings = resolve_settings(model, preset, dataset, config, [*model_settings, *(set_ or [])])
    if settings.data.dataset == SYNTH:
        check_dataset_is_given(preset, dataset, config, set_, data_root)
    warn_of_busy_cores(warn)
    with show_progress() as progress:
        result = run_model(settings, RunContext(plugin, data_root, where, progress, warn, weights), task)
    if result is not None:  # it is None in all processes of torchrun but the first
        _print_run(result, where)
        _print_next_steps(result.summary["run"], chosen, preset, store)


def _choose_dataset(task: str, data_root: Path | None) -> str | None:
    """Return the data set of a run that names none: field recordings for alignment if there are any, else None."""
    has_field = task == "alignment" and data_root is not None and (data_root / "field").is_dir()
    return "field" if has_field else None


def _choose_weights(checkpoint: str | None, model: str | None, store: Store) -> tuple[Path | None, str, list[str]]:
    """Return the file of the weights to evaluate, the encoder, and the settings that a registered model brings."""
    from bench.errors import ConfigError
    from bench.logbook import SCHEME

    if checkpoint is not None and checkpoint.startswith(SCHEME):
        return _fetch_registered(checkpoint, model, store)
    if model is None:
        raise ConfigError(
            "name an encoder or a matcher: bench run --model NAME or --matcher NAME; `bench list` shows them"
        )
    return (Path(checkpoint) if checkpoint else None), model, []


def _fetch_registered(checkpoint: str, model: str | None, store: Store) -> tuple[Path, str, list[str]]:
    from bench.config import assignment, format_plugin_name
    from bench.errors import ConfigError
    from bench.logbook import fetch_model

    found = fetch_model(checkpoint, store)
    if model is not None and format_plugin_name(model) != found.encoder:
        raise ConfigError(f"{checkpoint} belongs to the encoder {found.encoder!r}, not to {model!r}; omit --model")
    model_settings = {name: value for name, value in found.settings.items() if name.startswith("model.")}
    return found.weights, model or found.encoder, [assignment(*item) for item in model_settings.items()]


def _print_run(result: Result, store: Store) -> None:
    from bench.results import submissions

    print_result(result)
    for path in submissions(store.root / "runs" / result.summary["run"], result):
        print(f"without annotations: {path}")


def _print_next_steps(key: str, chosen: str, preset: str, store: Path) -> None:
    option = format_store_option(store)
    print_next(
        {
            f"bench ui{option}": "compare runs in the MLflow UI",
            f"bench results {key[:6]}{option} --format csv": "the numbers as a file",
            f"bench run {chosen} --preset {preset} --dataset folder --data-root ~/Music{option}": "your own music",
        }
    )
