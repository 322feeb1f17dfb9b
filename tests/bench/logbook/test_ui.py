"""`serve` and the provenance tags."""

from __future__ import annotations

import errno
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import torch

from bench import registry
from bench.config import resolve
from bench.errors import ConfigError, StoreError
from bench.logbook import open_book, provenance, serve, ui
from bench.logbook.provenance import _git, labels

pytest.importorskip("mlflow")
SERVE = "import sys; from pathlib import Path; from bench.logbook import serve; serve(Path(sys.argv[1]))"


@pytest.fixture(autouse=True)
def _no_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_ui_shows_the_store_on_loopback_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with open_book(tmp_path / "runs" / "k", experiment="fma/v1", name="k", store=tmp_path, warn=print):
        pass
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"(http://127\.0\.0\.1:\d+)/", line)
        assert found is not None, line + (tmp_path / "mlflow-ui.log").read_text()
        base = found.group(1)
        query = f"{base}/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=fma/v1"
        with urllib.request.urlopen(query, timeout=10) as answer:
            assert json.load(answer)["experiment"]["name"] == "fma/v1"
        foreign = urllib.request.Request(query, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign, timeout=10)
    finally:
        server.send_signal(signal.SIGINT)
    assert "ended" in server.communicate(timeout=20)[0]
    assert server.returncode == 0
    # By now another test's server may have the port, but it does not know this run.
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(query, timeout=2)


def test_ui_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run was logged"):
        serve(tmp_path)


def test_a_port_in_use_is_refused_by_name_and_passed_over_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "_pages", lambda store: {"MLflow UI": ""})
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken"):
            serve(tmp_path, port=port)
    taken = ui._first_free("127.0.0.1", 5000)
    with socket.create_server(("127.0.0.1", taken)):
        assert ui._first_free("127.0.0.1", 5000) > taken


# A page that another test has left open in its browser may ask as well.
ANSWER_UNTIL_HEALTHY = """
import http.server, sys, threading, time
heard = []
class Yes(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        heard.append(self.path)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Yes)
threading.Thread(target=server.serve_forever, daemon=True).start()
while "/health" not in heard:
    time.sleep(0.05)
time.sleep(2)
"""


def _serve_instead(monkeypatch: pytest.MonkeyPatch, store: Path, program: Callable[[], str]) -> None:
    """Make `serve` start a program of our own in MLflow's place; it is told its port."""

    def command(host: str, port: int) -> list[str]:
        return [sys.executable, "-c", program(), str(port)]

    server = ui.Server("MLflow UI", command, "health", store / "mlflow-ui.log", 5000)
    monkeypatch.setattr(ui, "_mlflow", lambda uri, store: server)


def test_a_port_that_another_server_takes_meanwhile_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(ui, "_pages", lambda store: {"MLflow UI": ""})
    _serve_instead(monkeypatch, tmp_path, lambda: ANSWER_UNTIL_HEALTHY)
    free = ui._first_free("127.0.0.1", 5000)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, free])
        monkeypatch.setattr(ui, "_first_free", lambda host, first: next(ports))
        serve(tmp_path)
        assert f"http://127.0.0.1:{free}/" in capsys.readouterr().out
        monkeypatch.setattr(ui, "_check_port", lambda host, port: port)
        with pytest.raises(ConfigError, match=f"port {taken} of 127.0.0.1 is taken"):
            serve(tmp_path, port=taken)


def test_a_port_that_was_taken_and_is_free_again_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(ui, "_pages", lambda store: {"MLflow UI": ""})
    refused = f"raise SystemExit('ERROR: [Errno {errno.EADDRINUSE}] error while attempting to bind on address')"
    programs = iter([refused, ANSWER_UNTIL_HEALTHY])
    _serve_instead(monkeypatch, tmp_path, lambda: next(programs))
    serve(tmp_path)
    assert "MLflow UI: http://127.0.0.1:" in capsys.readouterr().out


def test_a_database_that_is_none_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        serve(tmp_path)


def test_a_server_that_cannot_start_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(ui, "_pages", lambda store: {"MLflow UI": ""})
    _serve_instead(monkeypatch, tmp_path, lambda: "print('no luck')")
    with pytest.raises(StoreError, match=r"did not start.*mlflow-ui\.log.*no luck"):
        serve(tmp_path)


def test_the_users_own_server_is_pointed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    serve(tmp_path)
    assert "http://tracking.example:5000" in capsys.readouterr().out


def test_the_comparison_is_of_the_newest_run_of_each_encoder(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("fma/v1")
    curves = ["segment_top1_3s/noise", "segment_top1_0.96s/noise", "segment_top1_0.96s/noise_reverb"]

    def run(at_ms: int, encoder: str, status: str = "FINISHED", **tags: str) -> str:
        made = client.create_run(experiment, at_ms, {"bench.encoder": encoder} | tags).info.run_id
        for name in curves:
            client.log_metric(made, name, 0.5, step=10)
        client.set_terminated(made, status)
        return str(made)

    run(1, "one")
    assert list(ui._pages(tmp_path)) == ["MLflow UI"]  # nothing to compare it with
    other, one = run(2, "other"), run(3, "one")
    run(4, "other", "KILLED")
    run(5, "third", **{"mlflow.parentRunId": one})  # a trial of a sweep
    lone = client.create_experiment("speed")
    client.create_run(lone, 6)
    pages = ui._pages(tmp_path)
    assert pages["MLflow UI"].startswith(f"#/experiments/{lone}/runs?")
    page, _, query = pages["top-1 over SNR of all systems"].partition("?")
    told = {name: values[0] for name, values in parse_qs(query).items()}
    assert page == "#/metric"
    assert json.loads(told["runs"]) == [one, other]
    assert json.loads(told["experiments"]) == [experiment]
    assert json.loads(told["metric"]) == "segment_top1_0.96s/noise"
    assert json.loads(told["plot_metric_keys"]) == ["segment_top1_0.96s/noise"]
    assert told["x_axis"] == "step"


def _sweep(store: Path) -> None:
    optuna = pytest.importorskip("optuna")
    (store / ui.SWEEPS).parent.mkdir(parents=True)
    backend = optuna.storages.journal.JournalFileBackend(str(store / ui.SWEEPS))
    optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="now-playing-v1-abc")


def test_sweeps_are_shown_beside_mlflow_and_end_with_it(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    with open_book(tmp_path / "runs" / "k", experiment="fma/v1", name="k", store=tmp_path, warn=print):
        pass
    _sweep(tmp_path)
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert "MLflow UI: http://" in server.stdout.readline()
        line = server.stdout.readline()
        found = re.search(r"sweeps: (http://127\.0\.0\.1:\d+)/dashboard/", line)
        assert found is not None, line
        studies = f"{found.group(1)}/api/studies"
        with urllib.request.urlopen(studies, timeout=10) as answer:
            assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["now-playing-v1-abc"]
    finally:
        server.send_signal(signal.SIGINT)
    assert "MLflow UI ended" in server.communicate(timeout=20)[0]
    assert server.returncode == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(studies, timeout=2)


def test_without_optuna_dashboard_the_way_to_get_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "find_spec", lambda name: None)
    with ExitStack() as running:
        assert 'pip install "afp-bench[dashboard]"' in ui._start_dashboard(tmp_path, running)


def test_a_sweep_that_optuna_cannot_read_is_told_and_does_not_end_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    (tmp_path / ui.SWEEPS).parent.mkdir()
    (tmp_path / ui.SWEEPS).write_text('{"op_code": 0}\n')
    with ExitStack() as running:
        told = ui._start_dashboard(tmp_path, running)
    assert "optuna-dashboard did not start" in told
    assert "optuna-dashboard.log" in told


def test_labels_are_what_runs_are_filtered_by() -> None:
    settings = resolve("random-projection", registry.load("encoder", "random-projection"), "tiny")
    assert labels(settings, torch.device("cpu"), "abc") == {
        "bench.encoder": "random-projection",
        "bench.preset": "tiny",
        "bench.data_digest": "abc",
        "bench.device": "cpu",
    }


def test_provenance_names_code_command_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/bench", "run", "--model", "a b"])
    tags = provenance()
    assert tags["bench.cmd"] == "bench run --model 'a b'"
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("bench run", "LOCAL")
    assert tags["bench.version"]
    assert int(tags["bench.cores"]) >= 1
    assert float(tags["bench.memory_gib"]) > 0
    assert tags["bench.lib.numpy"]
    assert all(isinstance(value, str) for value in tags.values())


def test_provenance_has_the_commit_of_a_checkout_and_sees_a_change(tmp_path: Path) -> None:
    package = tmp_path / "bench"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert _tags_of(package) == {}
    for command in (["init", "-q"], ["add", "."], [*IDENTITY, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    (package / "notes.txt").write_text("no source")
    clean = _tags_of(package)
    assert (len(clean["bench.git"]), clean["bench.dirty"]) == (40, "false")
    (package / "mine.py").write_text("new = 1")
    assert _tags_of(package)["bench.dirty"] == "true"


def test_provenance_of_a_copy_inside_another_checkout_names_no_commit(tmp_path: Path) -> None:
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    installed = tmp_path / ".venv" / "bench"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert _tags_of(installed) == {}


def test_provenance_does_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "bench.git" not in provenance()


IDENTITY = ["-c", "user.name=t", "-c", "user.email=t@example"]


def _tags_of(package: Path) -> dict[str, str]:
    return _git(package)
