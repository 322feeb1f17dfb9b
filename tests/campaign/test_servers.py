"""The MLflow server and PostgreSQL, stopped and started at random while a run or a sweep needs them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from commands import RUN, Ended, finish, left_over, logged_in, new_store, numbers_of, start, statuses_in
from conftest import Campaign, assert_told
from mlflow_server import Server
from test_kill import sweep_command

SHARE = 0.08  # of the campaign's time, for each part
NUM_RUNS, NUM_SWEEPS = 4, 2
DOWN_S, UP_S = (0.0, 8.0), (0.0, 8.0)  # how long a server is away, and there
LIMIT_S = 600.0
# A dead server is to be noticed within the seconds that a run takes here.
QUICK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def disturb(
    command: Sequence[str | Path],
    log: Path,
    draw: random.Random,
    stop: Callable[[], object],
    restart: Callable[[], object],
    **variables: str,
) -> tuple[Ended, int]:
    """Run a command while its server stops and starts; return how it ended, and how often the server was stopped."""
    started, num_stops = start(command, log, **variables), 0
    while not started.has_ended():
        _wait(started.has_ended, draw.uniform(*UP_S))
        if started.has_ended():
            break
        stop()
        num_stops += 1
        _wait(started.has_ended, draw.uniform(*DOWN_S))
        restart()
    return started.wait(LIMIT_S), num_stops


def _wait(has_ended: Callable[[], bool], seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s and not has_ended():
        time.sleep(0.02)


def test_mlflow_in_a_run(campaign: Campaign, undisturbed: Path, server: Server, tmp_path: Path) -> None:
    """The run does not notice; `bench sync` delivers what is missing, once."""
    draw, end_s, stops, runs = campaign.draw("mlflow"), campaign.end_of(SHARE), 0, 0
    expected = logged_in(undisturbed / "mlflow.db")
    while runs < NUM_RUNS and (time.monotonic() < end_s or not runs):
        folder = tmp_path / str(runs)
        store = new_store(folder / "store", undisturbed)
        experiment = f"stopped-{campaign.seed}-{runs}"
        variables = QUICK | {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
        command = [*RUN, "--store", store]
        ended, num_stops = disturb(command, folder / "log", draw, server.kill, server.start, **variables)
        assert_told(ended, 0)
        assert_told(finish(["sync", "--store", store], folder / "sync.log", **variables), 0)
        assert numbers_of(store) == numbers_of(undisturbed)
        assert logged_in(server.database, experiment) == expected
        assert left_over(store) == []
        stops, runs = stops + num_stops, runs + 1
    result = f"{runs} runs, same numbers, delivered once by `sync`"
    campaign.record("MLflow killed and started during a run", stops, result)


def test_postgres_in_a_sweep(campaign: Campaign, undisturbed: Path, postgres: Any, tmp_path: Path) -> None:
    """Trials go on without the database, and what they found is told when it is back."""
    import optuna

    from bench.sweeps.study import silence_optuna
    from bench.sweeps.trials import REPEAT_OF

    silence_optuna()
    draw, end_s, stops, sweeps, num_trials = campaign.draw("postgres"), campaign.end_of(SHARE), 0, 0, 3
    values: dict[float, float] = {}
    while sweeps < NUM_SWEEPS and (time.monotonic() < end_s or not sweeps):
        folder = tmp_path / str(sweeps)
        store = new_store(folder / "store", undisturbed)
        command = [*sweep_command(folder, num_trials), "--storage", postgres.url]
        ended, num_stops = disturb(command, folder / "log", draw, postgres.stop, postgres.start)
        for again in range(5):
            if ended.code == 0:
                break
            assert_told(ended, 1, 2)
            ended = finish(command, folder / f"again-{again}.log")
        assert_told(ended, 0)
        assert all("Traceback" not in log.read_text() for log in store.glob("sweeps/*/worker-*.log"))
        (name,) = [path.name for path in (store / "sweeps").iterdir() if path.is_dir()]
        storage = optuna.storages.RDBStorage(postgres.url, engine_kwargs={"pool_pre_ping": True})
        trials = optuna.load_study(study_name=name, storage=storage).trials
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}, trials
        assert sum(REPEAT_OF not in trial.system_attrs for trial in trials) == num_trials
        for trial in trials:
            if trial.state.name == "COMPLETE":
                assert values.setdefault(trial.params["train.lr"], trial.value) == trial.value
        optuna.delete_study(study_name=name, storage=storage)
        assert_told(finish(["sync", "--store", store], folder / "sync.log"), 0)
        assert "RUNNING" not in statuses_in(store / "mlflow.db")
        assert left_over(store) == []
        stops, sweeps = stops + num_stops, sweeps + 1
    result = f"{sweeps} sweeps, same values, no trial lost"
    campaign.record("PostgreSQL stopped and started during a sweep", stops, result)
