"""The options that several commands share, each spelled once, and the settings and the store they stand for."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bench.config import SystemKind
    from bench.settings import RunConfig
    from bench.store import Store

STORE = Path("bench-store")
SYNTH = "synth"  # the data set of synthetic music, the default

_MODEL = typer.Option("--model", "-m", help="Encoder: a name from `bench list encoder`, or a path such as ./mine.py.")
_PRESETS = "Preset of settings: tiny (a demo), small (an hour on a CPU), paper (a GPU) or another of `bench list`."
_DATASETS = "Data set: fma, folder, synth (synthetic music) or another of `bench data list`."
_RUN = "First characters of a run's key; the latest run if omitted."

Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
ModelFile = Annotated[
    str | None, typer.Option("--model", "-m", help="Path of the encoder's file, if it is your own (./mine.py).")
]
IndexFile = Annotated[
    str | None, typer.Option("--index-file", help="Path of the index's file, if it is your own (./myindex.py).")
]

Preset = Annotated[str, typer.Option("--preset", help=_PRESETS)]
RunPreset = Annotated[
    str | None, typer.Option("--preset", help=_PRESETS, show_default="small; align-small with --task alignment")
]
SweepPreset = Annotated[str | None, typer.Option("--preset", help=_PRESETS, show_default="that of the search space")]

Dataset = Annotated[str | None, typer.Option("--dataset", help=_DATASETS, show_default="synth")]
PreparedDataset = Annotated[str, typer.Option("--dataset", help=_DATASETS)]
OtherDataset = Annotated[str | None, typer.Option("--dataset", help=_DATASETS, show_default="that of the run")]

DataRoot = Annotated[
    Path | None,
    typer.Option(envvar="BENCH_DATA", help="Folder that holds the music, and optionally noise/ and rir/."),
]
StoreRoot = Annotated[
    Path, typer.Option("--store", envvar="BENCH_STORE", help="Folder for everything that is computed.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="BENCH_STORAGE",
        help="Database shared by workers on several machines, such as postgresql+psycopg://user@host/sweeps.",
        show_default="a file in the store",
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change a setting: path=value, such as train.lr=3e-4. Repeatable.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file of settings, applied on top of the preset.")
]
Task = Annotated[
    str,
    typer.Option(
        help="What to evaluate: segments (queries in noise and rooms), alignment (pairs of recorders), validation "
        "(held-out training tracks) or all."
    ),
]
Format = Annotated[str, typer.Option("--format", help="Output format: table, csv or json.")]

Run = Annotated[str | None, typer.Option("--run", help=_RUN)]
RunArgument = Annotated[str | None, typer.Argument(help=_RUN)]
CatalogueFolder = Annotated[Path, typer.Argument(help="Folder of the catalogue.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Load an index even if a malicious file could exploit its library: trusted files only."
    ),
]


def open_store(root: Path) -> Store:
    """Return the store in a folder."""
    from bench.store import Store

    return Store(root)


def format_store_option(store: Path) -> str:
    """Return the --store that a suggested command needs, with a space before it; empty for the default store."""
    return "" if store == STORE else f" --store {store}"


def check_dataset_is_given(
    preset: str, dataset: str | None, config: Path | None, overrides: list[str] | None, data_root: Path | None
) -> None:
    """Warn if nobody has said which music to use, so that it is synthetic. Raises: ConfigError for the preset `paper`.

    A paper's recipe takes days, and trained on synthetic music it says nothing about the paper.
    """
    from bench.config import read_user_settings
    from bench.console import warn
    from bench.errors import ConfigError

    data = read_user_settings([config] if config else [], overrides or []).get("data", {})
    if dataset is not None or (isinstance(data, dict) and "dataset" in data):
        return
    if preset == "paper":
        raise ConfigError(
            "the preset paper needs a data set, such as --dataset fma --data-root FOLDER; to train it on synthetic "
            "music all the same, say --dataset synth"
        )
    unused = f", and {data_root} is only searched for noise and rooms" if data_root is not None else ""
    warn(f"no --dataset is given, so the music is synthetic{unused}; its scores say nothing about real music")


def resolve_settings(
    model: str,
    preset: str,
    dataset: str | None = None,
    config: Path | None = None,
    overrides: list[str] | None = None,
    kind: SystemKind = "encoder",
) -> tuple[ModuleType, RunConfig]:
    """Return the plug-in of an encoder or matcher, and the settings of a run of it. Raises: PluginError, ConfigError.

    The name of a matcher may have a preset after a colon.
    """
    from bench.config import format_plugin_name, load_plugin, resolve
    from bench.registry import load

    plugin = load_plugin(kind, model)[0] if kind == "matcher" else load(kind, model)
    files = [config] if config else []
    return plugin, resolve(
        format_plugin_name(model), plugin, preset, dataset=dataset, files=files, overrides=overrides or [], kind=kind
    )
