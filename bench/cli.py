"""The command line. Thin: heavy imports wait until a command needs them, so that help is instant."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.errors import BenchError, DataError

app = typer.Typer(
    help="Train, evaluate and track audio-fingerprint models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Prepare and check music, noise and rooms.", no_args_is_help=True)
app.add_typer(data_app, name="data")
speed_app = typer.Typer(help="Measure how fast an encoder is here, part by part, and the floor.", no_args_is_help=True)
app.add_typer(speed_app, name="speed")

catalogue_app = typer.Typer(help="Build and ask a catalogue of tracks.", no_args_is_help=True)
app.add_typer(catalogue_app, name="index")

sweep_app = typer.Typer(help="Search for better settings with Optuna, trial by trial.", invoke_without_command=True)
app.add_typer(sweep_app, name="sweep")

INTERRUPTED = 130
FORMATS = ("table", "csv", "json")

Model = Annotated[
    str, typer.Option("--model", "-m", help="Encoder: a name from `bench list`, or a path such as ./mine.py.")
]
Preset = Annotated[str, typer.Option(help="tiny (a demo), small (an hour of CPU) or paper (a GPU).")]
Dataset = Annotated[str | None, typer.Option(help="Music: fma, folder or synth (made up; the default).")]
DataRoot = Annotated[
    Path | None,
    typer.Option(envvar="BENCH_DATA", help="Folder that holds the music, and noise/ and rir/ if there are any."),
]
StoreRoot = Annotated[Path, typer.Option("--store", envvar="BENCH_STORE", help="Folder for all that is computed.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change a setting: path=value, such as train.lr=3e-4. Repeatable.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings, applied after the preset.")]
Against = Annotated[Path | None, typer.Option(help="The speed.json of an earlier measurement, to show the ratio to.")]
Format = Annotated[str, typer.Option("--format", help="table, csv or json.")]
Run = Annotated[str | None, typer.Option(help="The beginning of a run's key; the latest run if left out.")]
CatalogueFolder = Annotated[Path, typer.Argument(help="The catalogue's folder.")]
ModelFile = Annotated[
    str | None, typer.Option("--model", "-m", help="The encoder, where it is a file of your own (./mine.py).")
]
Trust = Annotated[bool, typer.Option("--trust", help="The catalogue is your own: load its index whatever its kind.")]

Storage = Annotated[
    str | None,
    typer.Option(
        envvar="BENCH_STORAGE",
        help="A database that workers on many machines share, such as postgresql+psycopg://user@host/sweeps; a file "
        "in the store if left out.",
    ),
]

STORE = Path("bench-store")


@app.command()
def run(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Encoder: a name from `bench list`, or a path such as ./mine.py."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="tiny (a demo), small (a CPU hour; the default), paper (a GPU), align-small ..."),
    ] = None,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    config: ConfigFile = None,
    set_: Set = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Test these weights instead of training: a model.safetensors, or models:/NAME@champion."),
    ] = None,
    task: Annotated[
        str, typer.Option(help="segments (queries in noise and rooms), alignment (of recorders), all, or validation.")
    ] = "all",
) -> None:
    """Train an encoder, test it on the SNR and t60 grids and on recorders, and log the run to MLflow.

    Whatever is in the store already is not computed again: running the same command again resumes.
    With --task alignment alone, training is that of align-small on the recordings in field/, if nothing else is named.
    """
    from bench.console import show_progress, warn
    from bench.errors import ConfigError
    from bench.registry import format_unknown
    from bench.results import submissions
    from bench.run import TASKS, RunContext
    from bench.run import run as run_model

    if task not in TASKS:
        raise ConfigError(format_unknown("task", task, list(TASKS)))
    if preset is None:
        preset = "align-small" if task == "alignment" else "small"
    if dataset is None and task == "alignment" and data_root is not None and (data_root / "field").is_dir():
        dataset = "field"
    weights, model, of_model = _weights(checkpoint, model, _store(store))
    plugin, settings = _settings(model, preset, dataset, config, [*of_model, *(set_ or [])])
    if data_root is not None and settings.data.dataset == "synth":
        warn(f"the music is made up, as no --dataset is named; {data_root} is looked through for noise and rooms alone")
    with show_progress() as progress:
        result = run_model(settings, RunContext(plugin, data_root, _store(store), progress, warn, weights), task)
    if result is None:  # a process of torchrun that helped to train
        return
    _show(result, "table")
    for path in submissions(_store(store).root / "runs" / result.summary["run"], result):
        print(f"without annotations: {path}")
    where = "" if store == STORE else f" --store {store}"
    _print_next(
        {
            f"bench ui{where}": "compare runs in the MLflow UI",
            f"bench results {result.summary['run'][:6]}{where} --format csv": "the numbers as a file",
            f"bench run -m {model} --preset {preset} --dataset folder --data-root ~/Music{where}": "your own music",
        }
    )


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="encoder, dataset, index or report; all if left out.")] = None,
) -> None:
    """List the encoders, data sets, indexes, reports and presets there are."""
    from bench.config import presets
    from bench.errors import ConfigError
    from bench.registry import KINDS, format_unknown, names

    if kind is not None and kind not in KINDS:
        raise ConfigError(format_unknown("kind of plug-in", kind, list(KINDS)))
    for each in [kind] if kind else KINDS:
        print(f"{each + ':':10s}{', '.join(names(each))}")
    if kind is None:
        print(f"{'preset:':10s}{', '.join(presets())}")


@app.command()
def results(
    run: Annotated[str | None, typer.Argument(help="The beginning of a run's key; the latest run if left out.")] = None,
    sequence: Annotated[
        str | None, typer.Option(help="The sequence search of the table, as in eval.sequences; rescore if left out.")
    ] = None,
    format_: Format = "table",
    store: StoreRoot = STORE,
) -> None:
    """Show the results of a finished run, as a table, CSV or JSON (under the published schema, of all searches)."""
    _check_format(format_)
    from bench.results import load_result

    _show(load_result(_store(store), run), format_, sequence)


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Beginnings of runs' keys; the others are compared with the first.")
    ],
    format_: Format = "table",
    store: StoreRoot = STORE,
) -> None:
    """Show the paper's tables of runs beside published numbers, and their paired differences from the first run."""
    _check_format(format_)
    from bench.registry import load
    from bench.results import load_result, load_settings

    report, paper, where = load("report", "compare"), load("report", "paper"), _store(store)
    results = [paper.with_settings(load_result(where, run), load_settings(where, run)) for run in runs]
    if format_ == "table":
        from rich.console import Console

        Console().print(report.render(*results))
    else:
        _print_frame(report.compare(results), format_)


@app.command()
def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Beginnings of runs' keys; all finished runs and sweeps if left out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    without_audio: Annotated[
        bool, typer.Option("--without-audio", help="Embed no sound and no picture of it, as in a file to be published.")
    ] = False,
    store: StoreRoot = STORE,
) -> None:
    """Write runs and sweeps into one HTML file that works offline: tables, curves, costs, failures, provenance."""
    from bench.errors import ConfigError
    from bench.registry import load
    from bench.store import write_text

    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ConfigError(f"--out must name a file in a folder that exists, got {out}")
    write_text(out, load("report", "html").render(_store(store), runs or (), audio=not without_audio))
    print(f"written to {out}, {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(help="The beginning of a run's key.")],
    data_root: DataRoot = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Test the weights of the run again instead of training.")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="The weights of a run that was given them.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Go on with other data or settings than the run's.")] = False,
    model: ModelFile = None,
    store: StoreRoot = STORE,
) -> None:
    """Compute a finished run again and show the differences: in code, libraries, machine, data, and numbers.

    It ends with 0 if the numbers are as can be expected, else with 1. The same command goes on after a kill.
    """
    from rich.console import Console

    from bench import reproduce as again
    from bench.console import show_progress, warn
    from bench.registry import load

    report, where = load("report", "reproduce"), _store(store)
    with show_progress() as progress:
        found = again.prepare_attempt(
            where, run, data_root, progress, warn, model=model, weights=checkpoint, keep_weights=keep_weights
        )
    Console().print(report.render_checks(found.record.run, found.checks))
    if not anyway:
        again.check_reproducible(found)
    minutes = found.record.seconds / 60
    print(f"the run took {minutes:.1f} min; computing anew in {found.context.store.root}", flush=True)
    with show_progress() as progress:
        outcome = again.reproduce(found, where, progress)
    if outcome is None:  # a process of torchrun that helped to train
        return
    Console().print(report.render(outcome))
    if not outcome.as_expected:
        raise typer.Exit(1)


@app.command()
def identify(
    recordings: Annotated[list[Path], typer.Argument(help="Audio files: mp3, ogg, flac or wav, of any rate.")],
    index: Annotated[Path, typer.Option("--index", "-i", help="A catalogue made by `bench index build`.")],
    top: Annotated[int, typer.Option(min=1, help="How many tracks to name.")] = 5,
    window: Annotated[float, typer.Option(min=1.0, help="Answer for each so many seconds of a recording.")] = 10.0,
    model: ModelFile = None,
    trust: Trust = False,
    format_: Format = "table",
) -> None:
    """Say which track a recording is, where in it, and whether to believe it.

    A recording that cannot be heard is named, and the others are answered.
    """
    _check_format(format_)
    import pandas as pd

    from bench.audio.decode import decode
    from bench.catalogue import build as identify
    from bench.catalogue import folder as catalogue
    from bench.console import show_progress
    from bench.registry import load

    opened = catalogue.read(index, model, trust=trust)
    found, unheard = {}, []
    with show_progress() as progress:
        for path in recordings:
            try:
                found[path] = list(identify.identify(opened, decode(path), top=top, window_s=window, progress=progress))
            except DataError as error:
                unheard.append(error)
    if format_ == "table":
        from rich.console import Console

        report = load("report", "identify")
        for path, answers in found.items():
            Console().print(report.render(path.name, answers))
    elif found:
        frames = [identify.frame(answers).assign(recording=str(path)) for path, answers in found.items()]
        _print_frame(pd.concat(frames, ignore_index=True), format_)
    for reason in unheard:
        print(f"error: {reason}", file=sys.stderr)
    if unheard:
        raise typer.Exit(DataError.exit_code)


@app.command()
def align(
    recordings: Annotated[
        list[Path], typer.Argument(help="Two recordings of a scene, or one file whose two channels they are.")
    ],
    run: Run = None,
    aligner: Annotated[
        str, typer.Option(help="One of `bench list aligner`, perhaps NAME:PRESET, or a path.")
    ] = "fingerprint-path",
    max_lag: Annotated[float, typer.Option(min=0.1, help="Seconds that one may be later than the other.")] = 5.0,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a row for each second to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the lag over the likeness of both (.png).")] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the second recording on the clock of the first (.wav or .flac).")
    ] = None,
    model: ModelFile = None,
    store: StoreRoot = STORE,
) -> None:
    """Find the offset and the drift between two recorders, and put one on the other's clock."""
    from tempfile import TemporaryDirectory

    from rich.console import Console

    from bench.align.pairs import open_pair
    from bench.align_pair import (
        align_one,
        check_writable,
        load_aligner,
        load_pair_embedder,
        similarity_matrix,
        write_aligned,
    )
    from bench.console import show_progress, warn
    from bench.errors import ConfigError
    from bench.registry import load
    from bench.store import write_text

    if len(recordings) > 2:
        raise ConfigError(f"give two recordings, or one with two channels; got {len(recordings)}")
    for path in (csv, plot, write):
        check_writable(path)
    plugin, settings = load_aligner(aligner)
    report = load("report", "lag-path")
    with show_progress() as progress, TemporaryDirectory() as scratch:
        ears, heard_by = load_pair_embedder(_store(store), run, model, progress)
        pair = open_pair(
            (recordings[0], recordings[-1]) if len(recordings) > 1 else recordings[0], Path(scratch), max_lag
        )
        found = align_one(pair, plugin.build(settings), ears, progress)
        if csv is not None:
            write_text(csv, found.keypoints().to_csv(index=False))
        if plot is not None:
            report.draw(found, similarity_matrix(pair, ears), plot)
        if write is not None:
            write_aligned(found, recordings[-1], None if len(recordings) > 1 else [1], write, progress)
    Console().print(report.render(found))
    print(f"by {aligner}, fingerprints of {heard_by}")
    if found.is_doubtful:
        warn(
            f"a confidence of {found.confidence:.2f}: the recordings may share no sound, or be more than {max_lag:g} s "
            "apart (--max-lag); do not rely on these numbers"
        )


@catalogue_app.command("build")
def catalogue_build(
    folder: CatalogueFolder,
    run: Run = None,
    index: Annotated[str, typer.Option(help="exact, falconn, or another of `bench list index`.")] = "exact",
    dataset: Annotated[str | None, typer.Option(help="Other music than the run's: fma, folder or synth.")] = None,
    data_root: DataRoot = None,
    test_side: Annotated[bool, typer.Option("--test-side", help="Only the test tracks, not those trained on.")] = False,
    false_accepts: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of strangers that may be taken for a track.")
    ] = 0.01,
    model: ModelFile = None,
    store: StoreRoot = STORE,
    set_: Set = None,
) -> None:
    """Fingerprint music with a run's encoder, index it, and find out which scores to believe."""
    from bench.catalogue.build import build, settings_for
    from bench.console import show_progress
    from bench.registry import load
    from bench.results import find_weights

    where = _store(store)
    settings, name = settings_for(where, run, index, dataset, model, set_ or [])
    weights = find_weights(where, run)
    with show_progress() as progress:
        made = build(
            folder, settings, name, weights, data_root, where,
            test_side=test_side, false_accepts=false_accepts, progress=progress,
        )  # fmt: skip
    from rich.console import Console

    Console().print(load("report", "catalogue").render(made))
    _print_next({f"bench identify RECORDING.wav --index {folder}": "which track is it?"})


@catalogue_app.command("info")
def catalogue_info(folder: CatalogueFolder, model: ModelFile = None, trust: Trust = False) -> None:
    """Show what a catalogue holds, what it takes, and the scores from which on it is believed."""
    from rich.console import Console

    from bench.catalogue.folder import read
    from bench.registry import load

    Console().print(load("report", "catalogue").render(read(folder, model, trust=trust)))


@catalogue_app.command("query")
def catalogue_query(
    folder: CatalogueFolder,
    vectors: Annotated[Path, typer.Argument(help="Fingerprints, a .npy file of shape (Q, D), float32.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many neighbours of each.")] = 20,
    format_: Format = "csv",
    model: ModelFile = None,
    trust: Trust = False,
) -> None:
    """Show the nearest fingerprints of given ones: track, time and similarity."""
    _check_format(format_)
    from bench.catalogue.folder import neighbours, read

    found = neighbours(read(folder, model, trust=trust), vectors, top_k)
    print(found.to_string(index=False)) if format_ == "table" else _print_frame(found, format_)


@catalogue_app.command("tune")
def catalogue_tune(
    folder: CatalogueFolder,
    recall: Annotated[float, typer.Option(min=0.5, max=1.0, help="Share of true nearest neighbours to find.")] = 0.99,
    index: Annotated[str, typer.Option(help="The index to tune, on the catalogue's fingerprints.")] = "falconn",
    model: ModelFile = None,
    trust: Trust = False,
) -> None:
    """Find the quickest settings of an index that find a wanted share of the true nearest neighbours."""
    from rich.console import Console

    from bench.catalogue.build import tune_index
    from bench.catalogue.folder import read
    from bench.console import show_progress
    from bench.registry import load

    opened = read(folder, model, trust=trust)
    with show_progress() as progress:
        trials = tune_index(opened, index, recall, progress)
    report = load("report", "tune")
    Console().print(report.render(index, recall, trials))
    _print_next({f"bench index build FOLDER {report.format_options(index, recall, trials)}": "a catalogue with these"})


@app.command()
def ui(
    store: StoreRoot = STORE,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless you know why.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; the first free one from 5000 if left out.")] = None,
) -> None:
    """Open the MLflow UI on this store's runs, and optuna-dashboard on its sweeps beside it."""
    from bench.logbook import serve

    serve(store, host, port)


@app.command()
def sync(store: StoreRoot = STORE) -> None:
    """Upload to MLflow what a tracking server that was down has missed."""
    from bench.console import warn
    from bench.logbook import sync as deliver

    outcomes = deliver(store, warn)
    for key, outcome in outcomes:
        print(f"{key}  {outcome}")
    if not outcomes:
        print(f"no run in {store}")
    if any(outcome == "failed" for _, outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended (torchaudio on a CPU torch).")] = False,
) -> None:
    """Check this machine: libraries, compiler, GPU, disk; say what to do about what is missing."""
    from bench import doctor as checks

    for line in checks.fix() if fix else []:
        print(line)
    findings = checks.diagnose()
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name:14s} {finding.detail}")
        if not finding.ok:
            print(f"     {'':14s} -> {finding.remedy}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@data_app.command("prepare")
def data_prepare(
    dataset: Dataset = "fma", data_root: DataRoot = None, store: StoreRoot = STORE, set_: Set = None
) -> None:
    """Decode the music, noise and rooms of a data set into the store, once; resumable."""
    from bench.console import show_progress
    from bench.data import prepare_data
    from bench.values import RATE_HZ

    settings = _data_settings(dataset, set_)
    with show_progress() as progress:
        data = prepare_data(settings, data_root, _store(store), progress)
    for name, corpus in (("music", data.music), ("noise", data.noise)):
        counts = corpus.tracks["split"].value_counts()
        sides = ", ".join(f"{counts.get(split, 0)} {split}" for split in ("train", "val", "test"))
        hours = corpus.tracks["num_samples"].sum() / RATE_HZ / 3600
        print(f"{name}: {len(corpus.tracks)} tracks ({sides}), {hours:.2f} h, digest {corpus.digest}")
        for row in corpus.select_unusable().to_dict("records"):
            print(f"  left out: {row['path'] or row['id']} ({row['status']}: {row['reason']})")
    for bank in data.banks:
        print(f"rooms: {len(bank.table)}, digest {bank.digest}")
        for row in bank.left_out.to_dict("records"):
            print(f"  left out: {row['name']} ({row['problem']})")
    print(f"queries: {len(data.queries.table)} a cell, digest {data.queries.key}")


@data_app.command("verify")
def data_verify(
    dataset: Dataset = "fma",
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    format_: Format = "table",
    set_: Set = None,
) -> None:
    """Report missing, corrupt, short, silent and duplicate tracks of a data set and its noise."""
    import pandas as pd

    from bench.audio.verify import verify
    from bench.console import show_progress
    from bench.data import prepare_corpora

    _check_format(format_)
    settings = _data_settings(dataset, set_)
    with show_progress() as progress:
        parts = []
        for name, source, corpus in prepare_corpora(settings, data_root, _store(store), progress):
            parts.append(verify(source, corpus, progress).assign(set=name))
    found = pd.concat(parts, ignore_index=True)
    if format_ != "table":
        _print_frame(found, format_)
    elif found.empty:
        print("no problem found")
    else:
        print(found.to_string(index=False))


@data_app.command("list")
def data_list() -> None:
    """List the data sets: what each holds, and where it comes from."""
    from bench import registry

    for name in registry.names("dataset"):
        plugin = registry.load("dataset", name)
        print(f"{name:16s}{plugin.KIND:7s}{(plugin.__doc__ or '').strip().splitlines()[0]}")


@speed_app.command("train")
def speed_train(
    model: Model,
    preset: Preset = "small",
    dataset: Dataset = None,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    set_: Set = None,
    steps: Annotated[int, typer.Option(min=1, help="How many steps to time.")] = 20,
    tracking: Annotated[
        int, typer.Option(min=0, help="Time it with and without MLflow too: so many times 20 s of each.")
    ] = 0,
    against: Against = None,
) -> None:
    """Time the training step: drawing, reading, degrading, features, forward, backward, optimiser; tracking."""
    _speed("train", _settings(model, preset, dataset, None, set_), data_root, store, steps, against, tracking)


@speed_app.command("embed")
def speed_embed(
    model: Model,
    preset: Preset = "small",
    store: StoreRoot = STORE,
    set_: Set = None,
    batches: Annotated[int, typer.Option(min=1, help="How many batches of 256 segments to time.")] = 20,
    against: Against = None,
) -> None:
    """Time the embedding of segments, as a database is embedded."""
    _speed("embed", _settings(model, preset, None, None, set_), None, store, batches, against)


@speed_app.command("search")
def speed_search(
    run: Annotated[str | None, typer.Option(help="The beginning of a run's key; the latest run if left out.")] = None,
    vectors: Annotated[
        int, typer.Option(help="Size of the database: all of the run's, and tracks made up from them.")
    ] = 7_300_000,
    index: Annotated[
        list[str] | None,
        typer.Option(help="An index, all its presets, or one of them as NAME:PRESET. Repeatable; all if left out."),
    ] = None,
    cell_snr: Annotated[float, typer.Option(help="Noise of the queries, in dB.")] = 5.0,
    length: Annotated[float, typer.Option(help="Length of the queries, in seconds.")] = 3.0,
    top_k: Annotated[int, typer.Option(help="How many neighbours of each query vector are asked for.")] = 20,
    queries: Annotated[int, typer.Option(help="How many of the run's queries are asked, at most.")] = 1000,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change an index: index.falconn.tables=10. Repeatable.")
    ] = None,
) -> None:
    """Compare indexes with brute force on the same vectors: recall, time, memory, seconds to build.

    The database is a run's fingerprints in a crowd of made-up tracks; the queries are the run's, in noise. Each index
    is built and measured in a process of its own. An index that is not installed or dies is a row that says so.
    """
    from rich.console import Console

    from bench.console import show_progress, warn
    from bench.registry import load, names
    from bench.speed.search import SearchSpeedOptions, measure_indexes

    report = load("report", "search-speed")
    wanted = SearchSpeedOptions(run, vectors, index or names("index"), cell_snr, length, top_k, queries, set_ or [])
    with show_progress() as progress:
        result, folder = measure_indexes(wanted, data_root, _store(store), progress, warn, report.draw)
    Console().print(report.render(result))
    print(f"kept in {folder}, with a picture")


@sweep_app.callback()
def sweep(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Encoder: a name, or a path such as ./mine.py.")
    ] = None,
    trials: Annotated[int, typer.Option(help="How many trials the study is to have in all.")] = 50,
    workers: Annotated[
        int, typer.Option(help="Processes here; each has a GPU of its own, or a share of the cores.")
    ] = 1,
    space: Annotated[
        Path | None, typer.Option(help="A TOML file of what to vary; the encoder's own if left out.")
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="segment_top1 (the default), bytes_per_s or segments_per_s. Repeatable.")
    ] = None,
    pruner: Annotated[str, typer.Option(help="What ends hopeless trials early: median, hyperband or none.")] = "median",
    study: Annotated[
        str | None, typer.Option(help="Go on with this study, refusing if what it is has changed.")
    ] = None,
    storage: Storage = None,
    preset: Annotated[str | None, typer.Option(help="Start from this preset instead of the space's own.")] = None,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
    set_: Set = None,
) -> None:
    """Search for better settings with Optuna, trial by trial, and log every trial to MLflow.

    Each trial trains an encoder and tests it on held-out training tracks. The same command goes on after any
    interruption, and joins in from other machines with a shared --storage.
    """
    if context.invoked_subcommand is not None:
        return
    from bench.config import format_plugin_name
    from bench.console import show_progress, warn
    from bench.errors import ConfigError
    from bench.registry import load, load_module

    if model is None:
        raise ConfigError("name an encoder: bench sweep --model NAME; `bench list encoder` shows them")
    spaces, launch = load_module("sweeps.space"), load_module("sweeps.launch")
    where = space or spaces.space_file(format_plugin_name(model))
    varied = spaces.load_space(where)
    basis = spaces.Basis(
        model, format_plugin_name(model), load("encoder", model), preset or varied.preset, dataset, tuple(set_ or ())
    )
    wanted = launch.SweepRequest(
        basis, varied, where, trials, workers, tuple(objective or ("segment_top1",)), pruner, storage, study,
        data_root, _store(store),
    )  # fmt: skip
    with show_progress() as progress:
        folder = launch.sweep(wanted, progress, warn, print)
    _show_sweep(folder)
    there = ("" if store == STORE else f" --store {store}") + (" --storage ..." if storage else "")
    _print_next(
        {
            f"bench sweep promote {folder.name}{there}": "train the best trial in full, and test it",
            f"bench ui{there}": "compare trials in the MLflow UI",
        }
    )


@sweep_app.command("promote")
def sweep_promote(
    study: Annotated[
        str | None,
        typer.Argument(help="The beginning of its name, or of the digest at its end; the latest if left out."),
    ] = None,
    trial: Annotated[int | None, typer.Option(help="Another trial than the best.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name in the registry; the encoder's if left out.")
    ] = None,
    storage: Storage = None,
    data_root: DataRoot = None,
    store: StoreRoot = STORE,
) -> None:
    """Train the best trial at full budget, test it on the test grid, and register it in MLflow as champion."""
    from bench.console import show_progress, warn
    from bench.registry import load_module
    from bench.results import find_study

    chosen = study or find_study(_store(store), None).name
    with show_progress() as progress:
        made = load_module("sweeps.promote").promote(
            chosen, trial, name, storage, data_root, _store(store), progress, warn
        )
    _show(made.result, "table")
    print(f"trial {made.trial} of {made.study} is version {made.version} of {made.model}, alias champion")
    where = "" if store == STORE else f" --store {store}"
    _print_next(
        {
            f"bench compare DEFAULT_RUN {made.result.summary['run'][:6]}{where}": "is it better than the preset?",
            f"bench run --checkpoint models:/{made.model}@champion{where}": "test it on other music",
        }
    )


@sweep_app.command("show")
def sweep_show(
    study: Annotated[str | None, typer.Argument(help="The beginning of its name; the latest if left out.")] = None,
    store: StoreRoot = STORE,
) -> None:
    """Show what a sweep has found: its trials, the best, and which settings matter."""
    from bench.results import find_study

    _show_sweep(find_study(_store(store), study))


def main() -> None:
    """Run the command line; errors meant for the user are one sentence and an exit code, never a traceback."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        app()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error}; what was computed is kept, run the same command again to go on", file=sys.stderr)
        sys.exit(1)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # typer's answer to Ctrl-C
            print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        raise


def _speed(
    kind: Any,
    settings: tuple[Any, Any],
    root: Path | None,
    store: Path,
    times: int,
    against: Path | None,
    pairs: int = 0,
) -> None:
    from rich.console import Console

    from bench.console import show_progress, warn
    from bench.registry import load
    from bench.run import RunContext
    from bench.speed.network import check_alike, measure_network, read_speed

    plugin, config = settings
    other = read_speed(against) if against else None
    with show_progress() as progress:
        speed, path = measure_network(
            kind, config, RunContext(plugin, root, _store(store), progress, warn), times, pairs
        )
    if other is not None:
        check_alike(speed, other)
    Console().print(load("report", "speed").render(speed, other))
    print(f"kept in {path}; give it to --against to compare another measurement with this one")


def _settings(
    model: str, preset: str, dataset: str | None, config: Path | None, overrides: list[str] | None
) -> tuple[Any, Any]:
    from bench.config import format_plugin_name, resolve
    from bench.registry import load

    plugin = load("encoder", model)
    files = [config] if config else []
    return plugin, resolve(
        format_plugin_name(model), plugin, preset, dataset=dataset, files=files, overrides=overrides or []
    )


def _weights(checkpoint: str | None, model: str | None, store: Any) -> tuple[Path | None, str, list[str]]:
    """Return the file of the weights to test, the encoder, and the settings of it that a registered model brings."""
    from bench.errors import ConfigError
    from bench.logbook import SCHEME, fetch_model

    if checkpoint is not None and checkpoint.startswith(SCHEME):
        from bench.config import assignment, format_plugin_name

        found = fetch_model(checkpoint, store)
        if model is not None and format_plugin_name(model) != found.encoder:
            raise ConfigError(f"{checkpoint} is of the encoder {found.encoder!r}, not of {model!r}; leave --model out")
        of_model = {name: value for name, value in found.settings.items() if name.startswith("model.")}
        return found.weights, model or found.encoder, [assignment(name, value) for name, value in of_model.items()]
    if model is None:
        raise ConfigError("name an encoder: bench run --model NAME; `bench list encoder` shows them")
    return (Path(checkpoint) if checkpoint else None), model, []


def _data_settings(dataset: str | None, overrides: list[str] | None) -> Any:
    # The data do not depend on the encoder; any one gives the settings their other sections.
    return _settings("random-projection", "small", dataset, None, overrides)[1]


def _store(root: Path) -> Any:
    from bench.store import Store

    return Store(root)


def _show_sweep(folder: Path) -> None:
    from rich.console import Console

    from bench.registry import load

    Console().print(load("report", "sweep").render(folder))


def _show(result: Any, format_: str, sequence: str | None = None) -> None:
    from bench.config import require
    from bench.score.rows import to_records

    if sequence is not None:
        require(
            format_ == "table", "--sequence is for --format table: rows are of all searches, by name", repr(format_)
        )
        _check_sequence(sequence, result.rows)
    if format_ == "table":
        from rich.console import Console

        from bench.registry import load

        if len(result.rows):
            Console().print(load("report", "grid").render(result, sequence))
        if len(result.alignment):
            Console().print(load("report", "alignment").render(result.alignment))
    elif not len(result.rows):
        from bench.align.evaluate import summarise_sets

        _print_frame(summarise_sets(result.alignment), format_)
    elif format_ == "json":
        import json

        print(json.dumps(to_records(result.rows), indent=1))
    else:
        _print_frame(result.rows, format_)


def _check_sequence(sequence: str, rows: Any) -> None:
    from bench.errors import ConfigError
    from bench.registry import format_unknown

    if rows.empty:
        raise ConfigError("--sequence names a search of queries, and this run aligned recorders alone; leave it out")
    known = sorted(rows["sequence"].unique())
    if sequence not in known:
        raise ConfigError(format_unknown("sequence search of this run", sequence, known))


def _check_format(format_: str) -> None:
    from bench.config import require

    require(format_ in FORMATS, f"--format must be one of {', '.join(FORMATS)}", repr(format_))


def _print_next(commands: dict[str, str]) -> None:
    width = max(map(len, commands))
    print("\nNext:", *(f"  {command:{width}s}   {why}" for command, why in commands.items()), sep="\n")


def _print_frame(frame: Any, format_: str) -> None:
    print(frame.to_csv(index=False).rstrip() if format_ == "csv" else frame.to_json(orient="records", indent=1))
