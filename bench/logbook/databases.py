"""Looks into databases: keeps MLflow and Optuna apart, and finds the artefacts of a store that was moved.

MLflow and Optuna both keep the version of their tables in `alembic_version`, so one database cannot serve both.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from bench.errors import ConfigError
from bench.logbook.redact import without_password

MLFLOW_TABLES, OPTUNA_TABLES = {"experiments", "runs"}, {"studies", "trials"}
KINDS = {"postgres": "postgresql", "mariadb": "mysql"}  # other names of the same kind of server
DEFAULT_PORTS = {"postgresql": "5432", "mysql": "3306", "mssql": "1433"}
CONNECT_S = 5  # a server that takes longer is looked at again by whoever opens it for use
ARTEFACTS = "mlartifacts"
PLACES = (  # where MLflow's tables hold addresses of artefacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)


def check_not_optunas(uri: str) -> None:
    """Check that an MLflow tracking URI is not a database of Optuna's. Raises: ConfigError before anything is written.

    A database that already has the tables of both is left to MLflow.
    """
    tables = _list_tables(uri)
    if tables >= OPTUNA_TABLES and not tables >= MLFLOW_TABLES:
        raise ConfigError(
            f"the database {without_password(uri)} is Optuna's: it has the trials of sweeps; give MLflow one of its "
            "own in MLFLOW_TRACKING_URI"
        )


def check_not_mlflows(url: str, *tracking_uris: str) -> None:
    """Check that a storage of sweeps is no database of MLflow's. Raises: ConfigError before anything is written.

    `tracking_uris` are databases that MLflow will log to, and which perhaps do not exist yet.
    """
    is_shared = any(is_same_database(url, each) for each in tracking_uris)
    if is_shared:
        check_not_optunas(url)  # then MLflow is to have another
    if is_shared or _list_tables(url) >= MLFLOW_TABLES:
        raise ConfigError(
            f"the database {without_password(url)} is MLflow's; give Optuna one of its own with --storage (or "
            "BENCH_STORAGE), or leave it out on a single machine"
        )


def is_same_database(one: str, other: str) -> bool:
    """Return whether two addresses are of one database, whatever their driver, user and spelling."""
    return _identify(one) == _identify(other)


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an address of SQLite, None of any other."""
    scheme, _, rest = uri.partition("://")
    is_file = scheme.partition("+")[0].lower() == "sqlite" and rest.startswith("/") and len(rest) > 1
    # A file may be written as a URI of SQLite's own: sqlite:///file:x.db?uri=true.
    return Path(unquote(rest[1:].partition("?")[0]).removeprefix("file:")) if is_file else None


def create_whole(path: Path, create: Callable[[Path], object]) -> None:
    """Create an SQLite database that is whole whenever it exists; call it under a lock.

    `create` makes it under another name. One in which a kill left a part of the tables could never be opened again.
    """
    beginning = path.with_name(f".{path.name}.tmp")
    for left in (beginning, beginning.with_name(f"{beginning.name}-journal")):
        left.unlink(missing_ok=True)
    create(beginning)
    os.replace(beginning, path)


def relocate_artefacts(database: Path, folder: Path) -> None:
    """Let the artefacts that a store's MLflow database names be those in `folder`, if the store was moved or copied.

    Only addresses that end in the name of that folder are changed: they were written by a store at another place.
    """
    place = folder.as_uri()
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        locations = connection.execute("SELECT artifact_location FROM experiments").fetchall()
        formers = {each for (each,) in locations if each and each.endswith(f"/{ARTEFACTS}") and each != place}
        for table, column in PLACES if formers else ():
            if column not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
                continue  # of another version of MLflow
            for former in formers:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (place, len(former) + 1, former, len(former) + 1, f"{former}/"),
                )


def _list_tables(uri: str) -> set[str]:
    """Return the tables of a database, without making it; none if it is not a database or does not answer."""
    path = sqlite_path(uri)
    if (path is not None and not path.is_file()) or "://" not in uri or uri.startswith(("http", "file")):
        return set()
    import sqlalchemy

    options = {} if path is not None else {"connect_timeout": CONNECT_S}
    try:
        engine = sqlalchemy.create_engine(uri, connect_args=options)
        try:
            return set(sqlalchemy.inspect(engine).get_table_names())
        finally:
            engine.dispose()
    except Exception:  # whoever opens it for use says why it cannot be reached
        return set()


def _identify(uri: str) -> tuple[object, ...]:
    """Return what two addresses of one database have in common."""
    path = sqlite_path(uri)
    if path is not None:
        return ("sqlite", path.resolve())
    try:
        parts = urlsplit(without_password(uri))
    except ValueError:  # such as `http://[::1`: whoever connects to it says so
        return ("unknown", uri)
    kind = parts.scheme.partition("+")[0]
    kind = KINDS.get(kind, kind)
    query = parse_qs(parts.query)  # where PostgreSQL takes a host and a port too; without a host it is this machine
    host = parts.hostname or query.get("host", ["localhost"])[0]
    port = parts.netloc.rpartition(":")[2]
    port = port if port.isdigit() else query.get("port", [DEFAULT_PORTS.get(kind, "")])[0]
    host = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}.get(host, host)
    # A schema of its own within a PostgreSQL database (?options=-csearch_path=...) is as good as a database.
    return (kind, host, port, parts.path.strip("/"), parts.query if "search_path" in unquote(parts.query) else "")
