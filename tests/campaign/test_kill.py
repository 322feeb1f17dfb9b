"""SIGKILL at random instants of a run, a sweep, a catalogue build and a sync.

A series is one command on one store, killed several times, each time after a random wait, then run to its end. What the
end computed has to be what an undisturbed command computes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from commands import (
    RUN,
    SETTINGS,
    Started,
    digests_of,
    finish,
    left_over,
    left_processes,
    logged_in,
    new_store,
    numbers_of,
    start,
    statuses_in,
)
from conftest import Campaign, assert_told, catalogue_command, trained_store
from mlflow_server import Server

IN_A_SERIES = 5
END_S = 30.0  # for what a killed process has started to end
NUM_SYNCED = 4  # runs
# Two settings only, so that trials of different sweeps have the same ones.
SPACE = """
preset = "tiny"
[budget]
"train.steps" = 6
[space]
"train.lr" = { choices = [1e-4, 1e-3] }
"""

Kill = Callable[[Started, Path], None]


def kill_command(started: Started, _folder: Path) -> None:
    started.kill()


def kill_workers(_started: Started, folder: Path) -> None:
    for pid in left_processes(folder, "bench.sweeps.worker"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_all(started: Started, folder: Path) -> None:
    kill_workers(started, folder)
    started.kill()


def disturb(
    campaign: Campaign,
    kind: str,
    num_kills: int,
    share: float,
    folder: Path,
    prepare: Callable[[Path], tuple[Sequence[str | Path], dict[str, str]]],
    check: Callable[[Path], None],
    longest_s: float,
    kills: Sequence[Kill] = (kill_command,),
) -> None:
    """Kill a command `num_kills` times, or as often as its share of the campaign's time allows, and check every series.

    `prepare` makes the folder of a series ready, and returns the command with variables of its environment.
    """
    draw, end_s = campaign.draw(f"kill {kind}"), campaign.end_of(share)
    killed = num_series = 0
    while killed < num_kills and (time.monotonic() < end_s or not num_series):
        series = folder / f"series-{num_series}"
        series.mkdir()
        command, variables = prepare(series)
        waits_s: list[float] = []
        for number in range(IN_A_SERIES):
            waits_s.append(round(draw.uniform(0, longest_s), 2))
            kill, started = draw.choice(kills), start(command, series / f"killed-{number}.log", **variables)
            until_s = time.monotonic() + waits_s[-1]
            while time.monotonic() < until_s and not started.has_ended():
                time.sleep(0.005)
            killed += not started.has_ended()
            kill(started, series)
            if kill is kill_workers:  # the command goes on, with another worker
                time.sleep(draw.uniform(0, longest_s / 2))
                started.kill()
            assert_told(ended := started.wait(), 0, -signal.SIGKILL)
            if ended.code == 0:
                break
        assert_nothing_lives(series)
        ended = finish(command, series / "end.log", **variables) if ended.code else ended
        assert_told(ended, 0)
        try:
            check(series)
        except AssertionError as error:
            error.add_note(f"seed {campaign.seed}, series {num_series}, waits {waits_s}; files in {series}; {ended}")
            raise
        shutil.rmtree(series)
        num_series += 1
    campaign.record(f"SIGKILL of a {kind}", killed, f"same numbers after each of {num_series} series")


def assert_nothing_lives(folder: Path) -> None:
    until_s = time.monotonic() + END_S
    while found := left_processes(folder):
        assert time.monotonic() < until_s, f"processes outlive the command that started them: {found}"
        time.sleep(0.2)


def test_killed_runs_end_with_the_same_numbers(campaign: Campaign, undisturbed: Path, tmp_path: Path) -> None:
    expected, logged = numbers_of(undisturbed), logged_in(undisturbed / "mlflow.db")

    def prepare(folder: Path) -> tuple[Sequence[str | Path], dict[str, str]]:
        return [*RUN, "--store", new_store(folder / "store", undisturbed)], {}

    def check(folder: Path) -> None:
        store = folder / "store"
        assert numbers_of(store) == expected
        assert logged_in(store / "mlflow.db") == logged
        assert left_over(store) == []

    disturb(campaign, "run", 35, 0.2, tmp_path, prepare, check, longest_s=12.0)


def sweep_command(folder: Path, num_trials: int) -> list[str | Path]:
    (folder / "space.toml").write_text(SPACE)
    budget = ("--trials", str(num_trials), "--workers", "1", "--pruner", "none", "--space", folder / "space.toml")
    return ["sweep", "--model", "now-playing", *SETTINGS, *budget, "--store", folder / "store"]


def trials_of(store: Path) -> pd.DataFrame:
    (path,) = store.glob("sweeps/*/trials.parquet")
    return pd.read_parquet(path)


def value_by_settings(trials: pd.DataFrame) -> dict[str, float]:
    done = trials[trials["state"] == "complete"]
    assert (done.groupby("param.train.lr")["value.segment_top1"].nunique() == 1).all()
    return dict(zip(done["param.train.lr"], done["value.segment_top1"], strict=True))


def test_killed_sweeps_end_with_the_same_values(campaign: Campaign, undisturbed: Path, tmp_path: Path) -> None:
    num_trials = 2
    (reference := tmp_path / "reference").mkdir()
    new_store(reference / "store", undisturbed)
    assert_told(finish(sweep_command(reference, 5), reference / "log"), 0)
    values, weights = value_by_settings(trials_of(reference / "store")), numbers_of(reference / "store")
    assert len(values) == 2

    def prepare(folder: Path) -> tuple[Sequence[str | Path], dict[str, str]]:
        new_store(folder / "store", undisturbed)
        return sweep_command(folder, num_trials), {}

    def check(folder: Path) -> None:
        store = folder / "store"
        trials = trials_of(store)
        repeated = set(trials["repeats"])
        lost = trials[(trials["state"] == "failed") & (trials["repeats"] < 0) & ~trials["number"].isin(repeated)]
        assert lost.empty and set(trials["state"]) <= {"complete", "failed"}, trials
        assert (trials["repeats"] < 0).sum() == num_trials, trials
        assert value_by_settings(trials).items() <= values.items()
        found = numbers_of(store)
        same = {name for name in found if name.startswith("weights/")} & weights.keys()
        assert all(found[name] == weights[name] for name in same)
        assert_told(finish(["sync", "--store", store], folder / "sync.log"), 0)
        assert set(statuses_in(store / "mlflow.db")) <= {"FINISHED", "KILLED", "FAILED"}
        abandoned = (trials["state"] == "failed") & (trials["repeats"] >= 0)  # its worker died twice, as documented
        assert [name for name in left_over(store) if not (abandoned.any() and name.endswith(".partial"))] == []

    kills = (kill_command, kill_workers, kill_all)
    disturb(campaign, "sweep", 20, 0.25, tmp_path, prepare, check, longest_s=20.0, kills=kills)


def test_killed_catalogue_builds_end_with_the_same_files(
    campaign: Campaign, undisturbed: Path, music: Path, catalogue: Path, tmp_path: Path
) -> None:
    expected = digests_of(catalogue)

    def prepare(folder: Path) -> tuple[Sequence[str | Path], dict[str, str]]:
        store = trained_store(folder / "store", undisturbed)
        return catalogue_command(folder / "made", store, music), {}

    def check(folder: Path) -> None:
        assert digests_of(folder / "made") == expected
        assert not list(folder.glob("*.partial")) and left_over(folder / "store") == []

    disturb(campaign, "catalogue build", 20, 0.1, tmp_path, prepare, check, longest_s=4.0)


def test_killed_syncs_deliver_everything_once(
    campaign: Campaign, undisturbed: Path, server: Server, tmp_path: Path
) -> None:
    (expected,) = logged_in(undisturbed / "mlflow.db").values()
    names: dict[Path, list[str]] = {}

    def prepare(folder: Path) -> tuple[Sequence[str | Path], dict[str, str]]:
        names[folder] = copy_runs(undisturbed, folder / "store")
        uri = server.uri if len(names) % 2 else f"sqlite:///{folder}/other.db"
        return ["sync", "--store", folder / "store"], {"MLFLOW_TRACKING_URI": uri}

    def check(folder: Path) -> None:
        is_file = (folder / "other.db").exists()
        logged = logged_in(folder / "other.db" if is_file else server.database)
        assert [logged.get(name) for name in names[folder]] == [expected] * NUM_SYNCED
        assert not set(statuses_in(folder / "other.db" if is_file else server.database)) - {"FINISHED"}
        assert left_over(folder / "store") == []

    disturb(campaign, "sync", 25, 0.15, tmp_path, prepare, check, longest_s=2.0)


def copy_runs(store: Path, folder: Path, number: int = NUM_SYNCED) -> list[str]:
    """Make a store of copies of a store's run, which no tracking store has; return their names."""
    (run,) = (path for path in (store / "runs").iterdir())
    names = []
    for copied in range(number):
        copy = folder / "runs" / f"{copied:016x}"
        shutil.copytree(run, copy)
        link: dict[str, Any] = json.loads((copy / "mlflow.json").read_text())
        names.append(f"copy-{uuid.uuid4().hex}")
        (copy / "mlflow.json").write_text(json.dumps(link | {"id": names[-1], "name": names[-1], "targets": {}}))
    return names
