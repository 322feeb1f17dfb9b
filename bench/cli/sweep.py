"""`bench sweep`: hyperparameter search with Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import (
    STORE,
    SYNTH,
    DataRoot,
    Dataset,
    OptionalModel,
    Set,
    Storage,
    StoreRoot,
    SweepPreset,
    check_dataset_is_given,
    format_store_option,
    open_store,
)
from bench.cli.output import print_next, print_report, print_result

group = typer.Typer(invoke_without_command=True)

Study = Annotated[
    str | None,
    typer.Argument(help="First characters of a study's name, or of the digest at its end; the latest if omitted."),
]


@group.callback()
def sweep(
    context: typer.Context,
    model: OptionalModel = None,
    trials: Annotated[int, typer.Option(help="Number of trials that the study is to have in total.")] = 50,
    workers: Annotated[
        int, typer.Option(help="Processes on this machine; each gets its own GPU, or a share of the cores.")
    ] = 1,
    space: Annotated[
        Path | None, typer.Option(help="TOML file of the search space.", show_default="that of the encoder")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="segment_top1, bytes_per_s or segments_per_s. Repeatable.", show_default="segment_top1"),
    ] = None,
    pruner: Annotated[str, typer.Option(help="Stops hopeless trials early: median, hyperband or none.")] = "median",
    study: Annotated[
        str | None, typer.Option(help="Continue this study; refused if its definition has changed since.")
    ] = None,
    storage: Storage = None,
    preset: SweepPreset = None,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    set_: Set = None,
) -> None:
    """Search for better settings with Optuna, and log every trial to MLflow.

    Each trial trains an encoder and evaluates it on held-out training tracks. Repeat the command to resume after an
    interruption; the same command on another machine joins in, given a shared --storage.
    """
    if context.invoked_subcommand is not None:
        return
    from bench.console import show_progress, warn
    from bench.registry import load_module

    basis, varied, where = _load_space(model, space, preset, dataset, set_ or [])
    if basis.config().data.dataset == SYNTH:
        check_dataset_is_given(basis.preset, dataset, None, set_, data_root)
    launch = load_module("sweeps.launch")
    request = launch.SweepRequest(
        basis, varied, where, trials, workers, tuple(objective or ("segment_top1",)), pruner, storage, study,
        data_root, open_store(store),
    )  # fmt: skip
    with show_progress() as progress:
        folder = launch.sweep(request, progress, warn, print)
    print_report("sweep", folder)
    options = format_store_option(store) + (" --storage ..." if storage else "")
    print_next(
        {
            f"bench sweep promote {folder.name}{options}": "train the best trial in full, and test it",
            f"bench ui{options}": "compare trials in the MLflow UI",
        }
    )


@group.command("promote")
def promote(
    study: Study = None,
    trial: Annotated[int | None, typer.Option(help="Trial to promote.", show_default="the best")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name in MLflow's model registry.", show_default="that of the encoder")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Make it champion although it is significantly worse than the preset.")
    ] = False,
    storage: Storage = None,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
) -> None:
    """Train the best trial at full budget, test it on the test grid, and register it in MLflow as champion.

    If the store has a run of the study's preset, the difference from it is shown; a model that is significantly worse
    is registered without the alias champion, and the exit code is 2.
    """
    from bench.console import show_progress, warn
    from bench.registry import load_module
    from bench.runs import find_study

    where = open_store(store)
    chosen = study or find_study(where, None).name
    with show_progress() as progress:
        made = load_module("sweeps.promote").promote(
            chosen, trial, name, storage, data_root, where, progress, warn, anyway
        )
    print_result(made.result)
    print(made.comparison.sentence)
    role = "alias champion" if made.is_champion else "without the alias champion"
    print(f"trial {made.trial} of {made.study} is version {made.version} of {made.model}, {role}")
    if not made.is_champion:
        warn("the alias champion was not set, as the preset is significantly better; promote with --anyway to set it")
        raise typer.Exit(2)
    option, key, preset = format_store_option(store), made.result.summary["run"], made.comparison.preset_run
    next_ = {f"bench run --checkpoint models:/{made.model}@champion{option}": "test it on other music"}
    if preset not in ("", key):
        next_[f"bench compare {preset[:6]} {key[:6]}{option}"] = "where it differs from the preset"
    print_next(next_)


@group.command("show")
def show(study: Study = None, store: StoreRoot = STORE) -> None:
    """Show the trials of a sweep, the best one, and the importance of each setting."""
    from bench.runs import find_study

    print_report("sweep", find_study(open_store(store), study))


def _load_space(
    model: str | None, space: Path | None, preset: str | None, dataset: str | None, overrides: list[str]
) -> tuple[Any, Any, Path]:
    """Return what the trials share, the space that they vary, and the file that it is in."""
    from bench.config import format_plugin_name
    from bench.console import warn
    from bench.errors import ConfigError
    from bench.registry import load, load_module

    if model is None:
        raise ConfigError("name an encoder: bench sweep --model NAME; `bench list encoder` shows them")
    spaces = load_module("sweeps.space")
    name = format_plugin_name(model)
    where = space or spaces.space_file(name)
    varied = spaces.load_space(where)
    basis = spaces.Basis(model, name, load("encoder", model), preset or varied.preset, dataset, tuple(overrides))
    if space is None:  # the encoder's own, written for one preset
        varied, sentences = spaces.narrow(varied, basis)
        for sentence in sentences:
            warn(sentence)
    return basis, varied, where
