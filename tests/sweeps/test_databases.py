"""MLflow and Optuna in one database: refused before anything is written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bench.errors import ConfigError
from bench.logbook import check_tracking, sync
from bench.logbook.databases import is_same_database
from bench.logbook.uploader import connect, store_uri
from bench.store import Store
from bench.sweeps.study import open_storage

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def mlflows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with an MLflow database."""
    store = tmp_path_factory.mktemp("mlflow")
    connect("", store)
    return store


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("spelling", ["sqlite:///{}/mlflow.db", "sqlite+pysqlite:///{}/../{name}/mlflow.db?timeout=9"])
def test_database_of_mlflow_is_refused_as_the_storage_of_sweeps(mlflows: Path, tmp_path: Path, spelling: str) -> None:
    before = fingerprint(mlflows / "mlflow.db")
    for store in (mlflows, tmp_path):
        with pytest.raises(ConfigError, match="is MLflow's; give Optuna one of its own"):
            open_storage(spelling.format(mlflows, name=mlflows.name), Store(store))
    assert fingerprint(mlflows / "mlflow.db") == before


def test_database_that_mlflow_will_make_is_refused_before_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/x.db")
    for url in (f"sqlite:///{tmp_path}/x.db", store_uri(tmp_path / "store")):
        with pytest.raises(ConfigError, match="is MLflow's"):
            open_storage(url, Store(tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []


def test_database_of_optuna_is_refused_as_a_tracking_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    url = f"sqlite:///{tmp_path}/optuna.db"
    open_storage(url, Store(tmp_path / "store"))
    before = fingerprint(tmp_path / "optuna.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    for refused in (check_tracking, lambda: connect(url, tmp_path), lambda: sync(tmp_path, print)):
        with pytest.raises(ConfigError, match=r"optuna.db is Optuna's: .*; give MLflow one of its own"):
            refused()  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigError, match=r"optuna.db is Optuna's: .*; give MLflow one of its own"):
        open_storage(url, Store(tmp_path / "store"))
    assert fingerprint(tmp_path / "optuna.db") == before


def test_database_of_optuna_on_a_server_is_refused_as_a_tracking_store(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    open_storage(postgres_url, Store(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres_url)
    with pytest.raises(ConfigError, match="is Optuna's"):
        check_tracking()
    with pytest.raises(ConfigError, match="is Optuna's"):
        open_storage(postgres_url, Store(tmp_path))


UNKNOWN = ("", "http://127.0.0.1:9", "databricks", "file:///x", "postgresql://127.0.0.1:9/x", "http://[::1")


@pytest.mark.parametrize("uri", UNKNOWN)
def test_tracking_store_that_cannot_be_looked_into_is_not_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    check_tracking()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql+psycopg://me:a@host/x", "postgresql+psycopg2://you:b@HOST:5432/x", True),
        ("postgresql://localhost/x", "postgresql://127.0.0.1:5432/x?sslmode=require", True),
        ("postgresql://host/x", "postgresql://host/y", False),
        ("postgresql://host/x", "postgresql://host:5433/x", False),
        ("postgresql://host/x", "postgresql://host/x?options=-csearch_path%3Doptuna", False),
        ("mysql+pymysql://host/x", "postgresql://host/x", False),
        ("sqlite:////a/../b/x.db", "sqlite+pysqlite:////b/x.db", True),
        ("sqlite:////b/x.db", "SQLite:///file:/b/x.db?mode=rwc&uri=true", True),
        ("sqlite:///x.db", "sqlite:///./file.db", False),
        ("postgresql:///x", "postgres://localhost/x?connect_timeout=5", True),
        ("postgresql:///x?host=db&port=5433", "postgresql://db:5433/x", True),
        ("mariadb://host/x", "mysql+pymysql://host:3306/x", True),
        ("sqlite:////b/x.db", "", False),
        ("http://[::1", "sqlite:////b/x.db", False),
    ],
)
def test_addresses_of_one_database_are_seen_as_such(one: str, other: str, same: bool) -> None:
    assert is_same_database(one, other) is same
