"""PostgreSQL as the storage of sweeps on several machines: real, and without what it was told lost."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from sqlalchemy.exc import OperationalError


def storage(url: str) -> Any:
    # Ask before a connection is used whether it still stands: the server may have been away.
    return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def test_a_study_holds_its_trials_for_whoever_opens_it_next(postgres_url: str) -> None:
    study = optuna.create_study(study_name="held", storage=storage(postgres_url), direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("train.lr", 1e-4, 1e-2, log=True), n_trials=3)
    opened = optuna.load_study(study_name="held", storage=storage(postgres_url))
    assert [trial.params for trial in opened.trials] == [trial.params for trial in study.trials]
    assert opened.best_value == max(trial.params["train.lr"] for trial in study.trials)


def test_what_was_told_is_there_when_the_server_comes_back(postgres: Any) -> None:
    kept = storage(postgres.url)
    study = optuna.create_study(study_name="back", storage=kept)
    study.add_trial(optuna.trial.create_trial(value=1.5))
    postgres.stop()
    try:
        with pytest.raises((OperationalError, optuna.exceptions.StorageInternalError)):
            study.ask()
    finally:
        assert postgres.start()
    assert study.best_value == 1.5
    study.tell(study.ask(), 0.5)
    assert study.best_value == 0.5
