"""`bench data`: prepare, verify and list data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bench.cli.options import STORE, DataRoot, Format, PreparedDataset, Set, StoreRoot, open_store, resolve_settings
from bench.cli.output import check_format, print_frame

if TYPE_CHECKING:
    import pandas as pd

    from bench.data import BenchmarkData
    from bench.settings import RunConfig

group = typer.Typer(help="Prepare and check music, noise and room impulse responses.", no_args_is_help=True)


@group.command("prepare")
def prepare(
    dataset: PreparedDataset = "fma", data_root: DataRoot = None, store: StoreRoot = STORE, set_: Set = None
) -> None:
    """Decode music, noise and room impulse responses into the store, once. Repeat the command to resume it."""
    from bench.console import show_progress
    from bench.data import prepare_data

    with show_progress() as progress:
        data = prepare_data(_resolve_settings(dataset, set_), data_root, open_store(store), progress)
    _print_prepared(data)


@group.command("verify")
def verify(
    dataset: PreparedDataset = "fma",
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    format_: Format = "table",
    set_: Set = None,
) -> None:
    """Report missing, corrupt, short, silent, duplicate and repetitive tracks of a data set and its noise."""
    check_format(format_)
    found = _find_problems(_resolve_settings(dataset, set_), data_root, store)
    if format_ != "table":
        print_frame(found, format_)
    elif found.empty:
        print("no problem found")
    else:
        print(found.to_string(index=False))


@group.command("list")
def list_datasets() -> None:
    """List the data sets: name, kind and contents."""
    from bench import registry

    for name in registry.names("dataset"):
        plugin = registry.load("dataset", name)
        print(f"{name:16s}{plugin.KIND:7s}{(plugin.__doc__ or '').strip().splitlines()[0]}")


def _resolve_settings(dataset: str, overrides: list[str] | None) -> RunConfig:
    # The data do not depend on the encoder; any one gives the settings their other sections.
    return resolve_settings("random-projection", "small", dataset, overrides=overrides)[1]


def _print_prepared(data: BenchmarkData) -> None:
    from bench.values import RATE_HZ

    for name, corpus in (("music", data.music), ("noise", data.noise)):
        counts = corpus.tracks["split"].value_counts()
        sides = ", ".join(f"{counts.get(split, 0)} {split}" for split in ("train", "val", "test"))
        hours = corpus.tracks["num_samples"].sum() / RATE_HZ / 3600
        print(f"{name}: {len(corpus.tracks)} tracks ({sides}), {hours:.2f} h, digest {corpus.digest}")
        for row in corpus.select_unusable().to_dict("records"):
            print(f"  left out: {row['path'] or row['id']} ({row['status']}: {row['reason']})")
        for row in corpus.tracks[corpus.tracks["reason"] != ""].to_dict("records"):
            print(f"  {row['path'] or row['id']} {row['reason']}")
    banks = [("rooms", bank) for bank in data.banks]
    banks += [("measured test rooms", data.measured.bank)] if data.measured.rows_of else []
    for name, bank in banks:
        counts = bank.table["split"].value_counts()
        print(
            f"{name}: {len(bank.table)}, {counts.get('train', 0)} train, {counts.get('test', 0)} test, "
            f"digest {bank.digest}"
        )
        for row in bank.left_out.to_dict("records"):
            print(f"  left out: {row['name']} ({row['problem']})")
    for t60_s, rows in data.measured.rows_of.items():
        print(f"  measured at {t60_s:g} s: {', '.join(data.measured.bank.table['name'].iloc[rows])}")
    print(f"queries: {len(data.queries.table)} per cell, digest {data.queries.key}")


def _find_problems(settings: RunConfig, data_root: Path | None, store: Path) -> pd.DataFrame:
    """Return a row for each problem of the music and of its noise; the column `set` says which of the two."""
    import pandas as pd

    from bench.audio.verify import verify
    from bench.console import show_progress
    from bench.data import prepare_corpora

    parts = []
    with show_progress() as progress:
        for name, source, corpus in prepare_corpora(settings, data_root, open_store(store), progress):
            parts.append(verify(source, corpus, progress).assign(set=name))
    return pd.concat(parts, ignore_index=True)
