"""`bench ui`: the MLflow UI on loopback, on the store that the runs were logged to."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench.errors import ConfigError, StoreError
from bench.logbook.courier import connect, first_line, own_uri, wanted_uri

FIRST_PORT = 5000  # MLflow's own default
PORTS_TRIED = 50
START_S = 90.0  # three seconds as a rule; the server migrates an old database first
STOP_S = 10.0


def serve(store: Path, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Run the MLflow UI until Ctrl-C; print its address once it answers.

    With no `port` the first free one from 5000 is taken. MLflow refuses requests that name a host other
    than loopback or a private address (DNS rebinding); who serves under another name sets MLflow's own
    MLFLOW_SERVER_ALLOWED_HOSTS.
    Raises: ConfigError if the port is taken; StoreError if there is no run to show or it does not start.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or own_uri(store)
    if uri.startswith(("http://", "https://")):
        print(f"MLFLOW_TRACKING_URI is a server, which has the UI itself: open {uri}", flush=True)
        return
    if uri == own_uri(store) and not (store / "mlflow.db").is_file():
        raise _nothing(store)
    page = _first_page(store)
    log = store / "mlflow-ui.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    asked = None if port is None else _checked(host, port)
    while not _served(uri, store, host, asked or _first_free(host), page, log):
        if asked is not None:
            raise _taken(host, asked)


def _served(uri: str, store: Path, host: str, port: int, page: str, log: Path) -> bool:
    """Run the server until Ctrl-C; return at once, False, if another one took the port a moment before."""
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches only us, and we end the server with its workers.
        server = subprocess.Popen(
            _command(uri, store, host, port), stdout=output, stderr=output, env=_environment(), start_new_session=True
        )
    try:
        if not _answers(server, host, port, log):
            return False
        print(f"MLflow UI: http://{host}:{port}/{page}  (Ctrl-C ends it)", flush=True)
        if server.wait() != 0:
            raise StoreError(f"the MLflow UI ended by itself; its last words are in {log}")
    except KeyboardInterrupt:
        print("MLflow UI ended", flush=True)
    finally:
        _end(server)
    return True


def _first_page(store: Path) -> str:
    """Return the address of the newest run's experiment, below the server's own.

    MLflow 3 opens on its pages for chat models, also from its list of experiments; asked for one
    experiment's training runs it stays with those. Raises: StoreError if the database is unusable or empty.
    """
    try:
        client = connect(wanted_uri(), store)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)
    except Exception as error:
        raise StoreError(f"the MLflow database of {store.resolve()} cannot be read: {first_line(error)}") from error
    if not runs:
        raise _nothing(store)
    return f"#/experiments/{runs[0].info.experiment_id}/runs?workflowType=machine_learning"


def _nothing(store: Path) -> StoreError:
    return StoreError(
        f"no run was logged to MLflow in {store.resolve()}; start one with `bench run`, upload unsent ones "
        f"with `bench sync`, or name another folder with --store"
    )


def _command(uri: str, store: Path, host: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)),
        *("--backend-store-uri", uri, "--default-artifact-root", (store.resolve() / "mlartifacts").as_uri()),
    ]


def _environment() -> dict[str, str]:
    # Without the job runner, a feature for language models, the server is one process instead of a dozen.
    defaults = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return defaults | os.environ


def _checked(host: str, port: int) -> int:
    if not _is_free(host, port):
        raise _taken(host, port)
    return port


def _taken(host: str, port: int) -> ConfigError:
    return ConfigError(f"port {port} of {host} is taken; choose another with --port, or leave --port out")


def _first_free(host: str) -> int:
    for port in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        if _is_free(host, port):
            return port
    raise ConfigError(f"ports {FIRST_PORT} to {port} of {host} are all taken; choose another with --port")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _answers(server: subprocess.Popen[bytes], host: str, port: int, log: Path) -> bool:
    """Wait until the server answers; return False if it ended because another one had its port."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=1):
                if _listens(server, port):  # and not one that took the port a moment before
                    return True
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    words = log.read_text(encoding="utf-8", errors="replace").strip()
    # Its own words and not a look at the port now: the other one may have gone again.
    if server.poll() is not None and f"[Errno {errno.EADDRINUSE}]" in words:
        return False
    tail = words.splitlines()[-3:]
    raise StoreError(f"the MLflow UI did not start; {log} ends with: {' | '.join(tail)}")


def _listens(server: subprocess.Popen[bytes], port: int) -> bool:
    """Return whether the server or a worker of it has the port."""
    import psutil

    try:
        family = [ours := psutil.Process(server.pid), *ours.children(recursive=True)]
        return any(socket.laddr.port == port for one in family for socket in one.net_connections() if socket.laddr)
    except psutil.NoSuchProcess:
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(STOP_S)
        except ProcessLookupError:
            return  # the whole group is gone
        except subprocess.TimeoutExpired:
            continue
