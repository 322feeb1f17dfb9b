"""A whole sweep as a user runs it: killed, gone on with, promoted, and its model tested again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import pytest

from bench.store import read_frame, read_json

SPACE = """
preset = "tiny"
[budget]
"train.steps" = 40
"train.val_every_steps" = 10
[space]
"train.lr" = { low = 1e-4, high = 1e-2, log = true }
"train.snr_db" = { choices = [[0.0, 20.0], [5.0, 15.0]] }
"""
# What makes a run of seconds of the preset for a demo.
SMALL = (
    "music.num_train=12", "music.num_val=4", "music.num_test=6", "music.seconds=8.0",
    "train.steps=60", "train.batch_pairs=8", "train.segments_per_track=1", "train.neighbours_per_track=0",
    "train.checkpoint_every_steps=5", "train.val_queries=16", "eval.snr_db=[10.0]",
    "eval.t60_s=[0.3]", "eval.noise_reverb_t60_s=0.3", "eval.rooms_per_t60=1", "eval.max_queries=12",
    "eval.indexes=['exact']",
)  # fmt: skip
PATIENCE_S = 240
LOAD = """
from pathlib import Path
import mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/now-playing@champion")
found = model.predict({"segments": np.random.default_rng(0).standard_normal((3, 15_360)).astype(np.float32)})
norms = np.linalg.norm(found, axis=1)
folder = Path(mlflow.artifacts.download_artifacts("models:/now-playing@champion"))
print(*found.shape, norms.min(), norms.max(), ",".join(p.suffix[1:] for p in folder.rglob("*") if p.suffix))
"""

pytestmark = pytest.mark.slow


def bench(*arguments: str) -> list[str]:
    sets = [part for setting in SMALL for part in ("--set", setting)]
    more = sets if arguments[0] == "run" or arguments[:2] == ("sweep", "-m") else []
    return [*arguments, *more]


def done(*arguments: str) -> str:
    ended = forked.finish(*bench(*arguments), timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def workers() -> list[int]:
    """Return the worker processes that are alive on this machine, of this test's parent or none."""
    found = subprocess.run(["pgrep", "-f", "bench.sweeps.worker"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, rooms: Path) -> tuple[Path, str]:
    """Run a sweep of three trials by two workers that is killed with all its processes while it trains, then again."""
    folder = tmp_path_factory.mktemp("sweep")
    space, store = folder / "space.toml", folder / "store"
    space.write_text(SPACE)
    store.mkdir()
    (store / "rooms").symlink_to(rooms)
    command = ("sweep", "-m", "now-playing", "--space", str(space), "--trials", "3", "--workers", "2")
    command = (*command, "--store", str(store), "--pruner", "none")
    process = forked.start(*bench(*command))
    before = set(workers())
    wait_for(lambda: list(store.glob("weights/*.partial/resume.safetensors")), process)
    killed = {pid for pid in workers() if store_of(pid) == str(store)} - before | {process.pid}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=20)
    return store, done(*command)


def store_of(pid: int) -> str:
    """Return the store of a worker, by the log that it writes to."""
    log = Path(f"/proc/{pid}/fd/1").resolve()
    return str(log.parents[2])


def wait_for(condition: Any, process: forked.Started) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, "".join(process.communicate())[-3000:]
        assert time.monotonic() < until
        time.sleep(0.1)


def study_folder(store: Path) -> Path:
    (path,) = store.glob("sweeps/*/study.json")
    return path.parent


def test_killed_sweep_goes_on_by_the_same_command(sweep: tuple[Path, str]) -> None:
    store, output = sweep
    trials = read_frame(study_folder(store) / "trials.parquet")
    ended = trials[trials["state"] == "complete"]
    assert len(ended) == 3
    lost = trials[trials["state"] == "failed"]
    assert 1 <= len(lost) <= 2
    for row in lost.to_dict("records"):
        (again,) = trials[trials["repeats"] == row["number"]].to_dict("records")
        assert again["param.train.lr"] == row["param.train.lr"]
        assert again["state"] == "complete"
    assert "3 complete" in output and "the best so far" in output
    assert ended["param.train.lr"].iloc[0] == pytest.approx(1e-3) or (ended["param.train.lr"] == 1e-3).any()


def test_trials_are_runs_under_the_study_in_mlflow(sweep: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    store, _ = sweep
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if "validation" in e.name]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("bench.kind") == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3
    assert {run.info.status for run in children} == {"FINISHED"}
    assert all("val/top1_50ms" in run.data.metrics for run in children)
    assert parent.info.status == "FINISHED"
    assert len(client.get_metric_history(parent.info.run_id, "sweep/segment_top1")) == 3
    assert "Sweep of now-playing" in parent.data.tags["mlflow.note.content"]


def test_same_command_again_has_nothing_to_do(sweep: tuple[Path, str]) -> None:
    store, _ = sweep
    before = read_frame(study_folder(store) / "trials.parquet")
    space = store.parent / "space.toml"
    done("sweep", "-m", "now-playing", "--space", str(space), "--trials", "3", "--store", str(store))
    assert read_frame(study_folder(store) / "trials.parquet").equals(before)


def test_interrupted_sweep_ends_its_workers_and_puts_the_trial_back(sweep: tuple[Path, str]) -> None:
    store, _ = sweep
    space = store.parent / "long.toml"
    space.write_text(SPACE.replace('"train.steps" = 40', '"train.steps" = 100000'))
    command = ("sweep", "-m", "now-playing", "--space", str(space), "--trials", "1", "--store", str(store))
    process = forked.start(*bench(*command))
    wait_for(lambda: list(store.glob("weights/*.partial/resume.safetensors")), process)
    mine = [pid for pid in workers() if store_of(pid) == str(store)]
    process.send_signal(signal.SIGINT)
    output = "".join(process.communicate(timeout=90))
    assert process.returncode == 130, output[-2000:]
    assert "interrupted; repeat the command to resume" in output
    assert "Traceback" not in output
    assert mine and not set(mine) & set(workers())
    study = next(path for path in store.glob("sweeps/*/study.json") if read_json(path)["budget"]["train.steps"] > 40)
    trials = read_frame(study.parent / "trials.parquet")
    assert trials["state"].tolist() == ["waiting"]
    for log in study.parent.glob("worker-*.log"):
        assert "Traceback" not in log.read_text()
    for path in study.parent.iterdir():
        path.unlink()  # other tests look for the one sweep of this store


def test_best_trial_is_promoted_registered_and_tested_again_from_the_registry(sweep: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    store, _ = sweep
    folder = study_folder(store)
    output = done("sweep", "promote", folder.name.rpartition(".")[2], "--store", str(store))
    assert "is version 1 of now-playing, alias champion" in output
    itself, none = "has the settings of the preset tiny itself", "no finished run of the preset tiny with the same data"
    assert itself in output or none in output
    key = read_json(folder / "study.json")["promoted"]["run"]
    settings = read_json(store / "runs" / key / "config.json")
    best = read_frame(folder / "trials.parquet").set_index("number").loc[read_json(folder / "study.json")["best"][0]]
    assert settings["train.steps"] == 60  # that of the user, not the budget of trials
    assert settings["train.lr"] == best["param.train.lr"]
    assert json.dumps(settings["train.snr_db"]) == best["param.train.snr_db"]
    uri = f"sqlite:///{store / 'mlflow.db'}"
    # In a process of its own: mlflow keeps the tracking store in the environment, which other tests inherit.
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", LOAD], capture_output=True, text=True, timeout=PATIENCE_S,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    rows, dim, shortest, longest, suffixes = loaded.stdout.split()
    assert (rows, dim) == ("3", "128")
    assert float(shortest) == pytest.approx(1, abs=1e-5) == float(longest)
    assert not {"pkl", "pickle", "pt"} & set(suffixes.split(",")) and "safetensors" in suffixes
    version = MlflowClient(uri).get_model_version_by_alias("now-playing", "champion")
    assert "## Evaluation" in version.description
    done("run", "-m", "now-playing", "--preset", "tiny", "--task", "segments", "--store", str(store))
    promoted = done("sweep", "promote", folder.name.rpartition(".")[2], "--anyway", "--store", str(store))
    assert itself in promoted or "95 % interval" in promoted
    tested = done(
        "run", "--checkpoint", "models:/now-playing@champion", "--preset", "tiny", "--task", "segments",
        "--store", str(store),
    )  # fmt: skip
    again = json.loads(done("results", "--store", str(store), "--format", "json"))
    first = json.loads(done("results", key, "--store", str(store), "--format", "json"))
    assert "segment-level top-1" in tested
    assert [row["value"] for row in again] == [row["value"] for row in first]


def test_sweep_outlasts_a_database_that_goes_away_while_it_trains(sweep: tuple[Path, str], postgres: Any) -> None:
    store, _ = sweep
    more = ("--storage", postgres.url, "--study", "outlasting", "--trials", "1", "--store", str(store))
    command = bench("sweep", "-m", "now-playing", "--space", str(store.parent / "space.toml"), *more)
    before = {*store.glob("weights/*.partial")}  # of the sweep that was interrupted

    def training() -> list[Path]:
        return [p for p in store.glob("weights/*.partial") if p not in before and (p / "resume.safetensors").is_file()]

    # Another seed, or the result would be found in the store.
    process = forked.start(*command, "--set", "seed=7")
    wait_for(training, process)
    postgres.stop()
    try:
        wait_for(lambda: not training(), process)
    finally:
        assert postgres.start()
    output = "".join(process.communicate(timeout=PATIENCE_S))
    assert process.returncode == 0, output[-3000:]
    assert "Traceback" not in output
    assert "1 complete" in output
    assert not list((store / "sweeps" / "outlasting").glob("untold-*.json"))


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("models:/nobody@champion", "no model at models:/nobody@champion"),
        ("models:/now-playing", "is named models:/NAME@champion"),
    ],
)
def test_wrong_address_of_a_model_is_one_sentence(sweep: tuple[Path, str], uri: str, told: str) -> None:
    store, _ = sweep
    ended = forked.finish(*bench("run", "--checkpoint", uri, "--store", str(store)), timeout=PATIENCE_S)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
