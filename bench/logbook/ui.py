"""`bench ui`: serves the MLflow UI for a store's runs, and optuna-dashboard for its sweeps, on loopback."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bench.errors import ConfigError, StoreError
from bench.logbook.databases import ARTEFACTS
from bench.logbook.uploader import connect, first_line, store_uri, user_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOOPBACK = "127.0.0.1"
PORTS_TRIED = 50
START_S = 90.0  # a start takes 3 s, and longer if the server migrates an old database
STOP_S = 10.0  # after SIGTERM, before SIGKILL
SWEEPS = Path("sweeps", "journal.log")  # in a store: the trials of sweeps on one machine
TRAINING_PAGES = "workflowType=machine_learning"  # otherwise MLflow 3 opens its pages for chat models
CURVE = re.compile(r"segment_top1_([\d.]+)s/noise")
NEWEST_FIRST, FINISHED = ["attributes.start_time DESC"], "attributes.status = 'FINISHED'"
RUNS_COMPARED = 1000  # the newest runs, among which one of each encoder is looked for
# wsgiref, which optuna-dashboard's run_server uses, has no signal handler: SIGTERM ends it.
DASHBOARD = "import sys, optuna_dashboard as o; o.run_server(sys.argv[1], host=sys.argv[2], port=int(sys.argv[3]))"


@dataclass(frozen=True)
class Server:
    """A server that runs in a separate process."""

    name: str

    command: Callable[[str, int], list[str]]
    """Returns the command line for a host and a port."""

    health: str
    """The path of a page that answers once the server is ready."""

    log: Path

    first_port: int
    """The first port to try if the user gives none."""

    environment: Mapping[str, str] = field(default_factory=dict)


def serve(store: Path, host: str = LOOPBACK, port: int | None = None) -> None:
    """Run the MLflow UI until Ctrl-C; print the addresses of its pages once it answers.

    Without `port` the first free port from 5000 is used. MLflow refuses requests for a host other than loopback or a
    private address (against DNS rebinding); to serve under another name, set MLflow's MLFLOW_SERVER_ALLOWED_HOSTS. If
    the store has sweeps, optuna-dashboard shows them, on loopback.
    Raises: ConfigError if the port is taken; StoreError if there is no run to show or the server does not start.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or store_uri(store)
    if uri.startswith(("http://", "https://")):
        print(f"MLFLOW_TRACKING_URI is a server, which serves the UI itself: open {user_uri()}", flush=True)
        return
    if uri == store_uri(store) and not (store / "mlflow.db").is_file():
        raise _no_runs_error(store)
    pages = _pages(store)
    mlflow = _mlflow(uri, store)
    try:
        with ExitStack() as running:
            process, used_port = running.enter_context(_run_server(mlflow, host, port))
            for name, page in pages.items():
                print(f"{name}: http://{host}:{used_port}/{page}", flush=True)
            if (store / SWEEPS).is_file():
                print(f"sweeps: {_start_dashboard(store, running)}", flush=True)
            print("Ctrl-C ends it", flush=True)
            if process.wait() != 0:
                raise StoreError(f"the {mlflow.name} stopped unexpectedly; see {mlflow.log}, then run `bench ui` again")
    except KeyboardInterrupt:
        print(f"{mlflow.name} ended", flush=True)


def _mlflow(uri: str, store: Path) -> Server:
    def command(host: str, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)),
            *("--default-artifact-root", (store.resolve() / ARTEFACTS).as_uri()),
        ]

    # Without the job runner, a feature for language models, the server is one process and not a dozen.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # The URI may contain a password, and every user of the machine can read a command line.
    environment = quiet | {"MLFLOW_BACKEND_STORE_URI": uri}
    return Server("MLflow UI", command, "health", store / "mlflow-ui.log", 5000, environment)


def _optuna(store: Path) -> Server:
    def command(host: str, port: int) -> list[str]:
        return [sys.executable, "-c", DASHBOARD, str((store / SWEEPS).resolve()), host, str(port)]

    return Server("optuna-dashboard", command, "api/studies", store / "optuna-dashboard.log", 8080)


def _start_dashboard(store: Path, running: ExitStack) -> str:
    """Start optuna-dashboard for the store's sweeps; return its address, or the reason why there is none."""
    if find_spec("optuna_dashboard") is None:
        return 'optuna-dashboard shows them; install it with `pip install "afp-bench[dashboard]"`'
    try:
        _, port = running.enter_context(_run_server(_optuna(store), LOOPBACK, None))
    except (ConfigError, StoreError) as error:
        return str(error)
    return f"http://{LOOPBACK}:{port}/dashboard/"


def _pages(store: Path) -> dict[str, str]:
    """Return the paths of the pages to open, by title.

    They are the experiment of the newest run, and the newest comparison of systems if there is one.
    Raises: StoreError if the database is unusable or empty.
    """
    try:
        client = connect(user_uri(), store)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, order_by=NEWEST_FIRST, max_results=1)
        if not runs:
            raise _no_runs_error(store)
        comparison = _comparison(client, experiments)
    except (ConfigError, StoreError):
        raise
    except Exception as error:
        raise StoreError(f"the MLflow database of {store.resolve()} cannot be read: {first_line(error)}") from error
    pages = {"MLflow UI": f"#/experiments/{runs[0].info.experiment_id}/runs?{TRAINING_PAGES}"}
    return pages | ({"top-1 over SNR of all systems": comparison} if comparison else {})


def _comparison(client: MlflowClient, experiments: list[str]) -> str:
    """Return the page that draws top-1 over SNR for the newest run of each system; empty if there are fewer than two.

    All are of one experiment, the one with the newest such runs. Trials of sweeps are left out.
    """
    newest: dict[str, dict[str, Run]] = {}
    for run in client.search_runs(experiments, FINISHED, order_by=NEWEST_FIRST, max_results=RUNS_COMPARED):
        if "mlflow.parentRunId" not in run.data.tags and any(CURVE.fullmatch(key) for key in run.data.metrics):
            system = run.data.tags.get("bench.encoder") or run.data.tags.get("bench.matcher", "")
            newest.setdefault(run.info.experiment_id, {}).setdefault(system, run)
    for experiment, by_system in newest.items():
        common = set.intersection(*(set(run.data.metrics) for run in by_system.values()))
        lengths = {float(match[1]): key for key in common if (match := CURVE.fullmatch(key))}
        if lengths and len(by_system) > 1:
            # Systems differ most at the shortest query length.
            return _chart([run.info.run_id for run in by_system.values()], lengths[min(lengths)], experiment)
    return ""


def _chart(runs: list[str], metric: str, experiment: str) -> str:
    """Return MLflow's page with one chart of a metric over its step for several runs."""
    parameters = {"runs": runs, "metric": metric, "experiments": [experiment], "plot_metric_keys": [metric]}
    query = "&".join(f"{name}={quote(json.dumps(value, separators=(',', ':')))}" for name, value in parameters.items())
    return f"#/metric?{query}&x_axis=step&show_point=true&{TRAINING_PAGES}"


def _no_runs_error(store: Path) -> StoreError:
    return StoreError(
        f"no run was logged to MLflow in {store.resolve()}; start one with `bench run`, upload unsent ones "
        f"with `bench sync`, or name another folder with --store"
    )


@contextmanager
def _run_server(server: Server, host: str, port: int | None) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Yield the process and the port of a server that answers; stop it afterwards.

    Raises: ConfigError if the port is taken; StoreError if the server does not start.
    """
    fixed_port = None if port is None else _check_port(host, port)
    while True:
        used_port = fixed_port or _first_free(host, server.first_port)
        server.log.parent.mkdir(parents=True, exist_ok=True)
        with server.log.open("wb") as output:
            # In a new session Ctrl-C reaches only this process, which then stops the server with its workers.
            process = subprocess.Popen(
                server.command(host, used_port),
                stdout=output,
                stderr=output,
                env={**server.environment, **os.environ},
                start_new_session=True,
            )
        try:
            if _answers(process, server, host, used_port):
                yield process, used_port
                return
        finally:
            _end(process)
        if fixed_port is not None:  # another process took it a moment before
            raise _build_port_error(host, fixed_port)


def _check_port(host: str, port: int) -> int:
    if not _is_free(host, port):
        raise _build_port_error(host, port)
    return port


def _build_port_error(host: str, port: int) -> ConfigError:
    return ConfigError(f"port {port} of {host} is taken; choose another with --port, or leave --port out")


def _first_free(host: str, first: int) -> int:
    for port in range(first, first + PORTS_TRIED):
        if _is_free(host, port):
            return port
    raise ConfigError(f"ports {first} to {port} of {host} are all taken; choose another with --port")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _answers(process: subprocess.Popen[bytes], server: Server, host: str, port: int) -> bool:
    """Wait until the server answers; return False if it stopped because another process has its port."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/{server.health}", timeout=1):
                if _listens(process, port):  # and not another server that took the port a moment before
                    return True
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    log = server.log.read_text(encoding="utf-8", errors="replace").strip()
    # The log says why; the port may be free again by now.
    if process.poll() is not None and f"[Errno {errno.EADDRINUSE}]" in log:
        return False
    tail = log.splitlines()[-3:]
    raise StoreError(f"the {server.name} did not start; {server.log} ends with: {' | '.join(tail)}")


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Return whether the server or one of its workers listens on the port."""
    import psutil

    try:
        processes = [parent := psutil.Process(process.pid), *parent.children(recursive=True)]
        return any(socket.laddr.port == port for each in processes for socket in each.net_connections() if socket.laddr)
    except psutil.NoSuchProcess:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop_signal)
            process.wait(STOP_S)
        except ProcessLookupError:
            return  # the whole group is gone
        except subprocess.TimeoutExpired:
            continue
