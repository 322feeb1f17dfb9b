"""Two processes at once on everything that they can share; both end well, with the numbers of one alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from commands import PREPARE, RUN, Ended, digests_of, left_over, logged_in, new_store, numbers_of, start
from conftest import Campaign, assert_told, catalogue_command, trained_store
from mlflow_server import Server
from test_kill import copy_runs, sweep_command, trials_of, value_by_settings


def both(campaign: Campaign, command: Sequence[str | Path], folder: Path, **variables: str) -> list[Ended]:
    """Start the same command twice, a random moment apart, and return how they ended."""
    first = start(command, folder / "first.log", **variables)
    time.sleep(campaign.draw(f"two {command[0]}").uniform(0, 3))
    second = start(command, folder / "second.log", **variables)
    return [first.wait(), second.wait()]


def test_run(campaign: Campaign, undisturbed: Path, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")  # the rooms are simulated as well
    for ended in both(campaign, [*RUN, "--store", store], tmp_path):
        assert_told(ended, 0)
    assert numbers_of(store) == numbers_of(undisturbed)
    assert logged_in(store / "mlflow.db") == logged_in(undisturbed / "mlflow.db")
    assert left_over(store) == []
    campaign.record("two at once: a run on an empty store", 2, "both the same numbers, one MLflow run")


def test_prepare(campaign: Campaign, undisturbed: Path, music: Path, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", undisturbed)
    command = ["data", "prepare", "--dataset", "folder", "--data-root", music, "--store", store, *PREPARE]
    for ended in both(campaign, command, tmp_path):
        assert_told(ended, 0)
    assert left_over(store) == []
    campaign.record("two at once: `data prepare`", 2, "prepared once")


def test_sweep(campaign: Campaign, undisturbed: Path, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", undisturbed)
    for ended in both(campaign, sweep_command(tmp_path, 3), tmp_path):
        assert_told(ended, 0)
    trials = trials_of(store)
    assert list(trials["state"]) == ["complete"] * 3 and (trials["repeats"] < 0).all()
    assert value_by_settings(trials)
    assert {status for status, _ in logged_in(store / "mlflow.db").values()} == {"FINISHED"}
    assert left_over(store) == []
    campaign.record("two at once: a sweep", 2, "each trial once")


def test_catalogue_build(campaign: Campaign, undisturbed: Path, music: Path, catalogue: Path, tmp_path: Path) -> None:
    store = trained_store(tmp_path / "store", undisturbed)
    ends = both(campaign, catalogue_command(tmp_path / "made", store, music), tmp_path)
    for ended in ends:
        assert_told(ended, 0, 2)
    assert sorted(ended.code for ended in ends) == [0, 2], ends
    assert all("exists already" in ended.output for ended in ends if ended.code == 2)
    assert digests_of(tmp_path / "made") == digests_of(catalogue)
    assert not list(tmp_path.glob("*.partial")) and left_over(store) == []
    campaign.record("two at once: a catalogue of the same name", 2, "one is built, the other told so")


def test_sync(campaign: Campaign, undisturbed: Path, server: Server, tmp_path: Path) -> None:
    (expected,) = logged_in(undisturbed / "mlflow.db").values()
    names = copy_runs(undisturbed, tmp_path / "store")
    ends = both(campaign, ["sync", "--store", tmp_path / "store"], tmp_path, MLFLOW_TRACKING_URI=server.uri)
    for ended in ends:
        assert_told(ended, 0)
    logged = logged_in(server.database)
    assert [logged.get(name) for name in names] == [expected] * len(names)
    campaign.record("two at once: a sync", 2, "delivered once")
