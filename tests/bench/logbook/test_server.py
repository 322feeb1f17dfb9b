"""The logbook against an MLflow server on loopback that is down, hangs, and is killed midway."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow_server import Server
from ports import free_port

from bench.logbook import book as book_module
from bench.logbook import open_book, provenance, sync

mlflow = pytest.importorskip("mlflow")
TOP1 = "segment_top1_0.96s/noise"


class LimitedProxy(ThreadingHTTPServer):
    """A reverse proxy with basic auth and a limit of bodies, as nginx before an MLflow server."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.target = target.removeprefix("http://")
        self.limit_bytes, self.refusal = 9_000, 413
        self.uri = f"http://ann:s3cret%20pa%2Fss@127.0.0.1:{self.server_port}"


class ProxyHandler(BaseHTTPRequestHandler):
    server: LimitedProxy

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Basic " + base64.b64encode(b"ann:s3cret pa/ss").decode():
            return self._answer(401, b"<html></html>")
        if len(body) > self.server.limit_bytes:
            return self._answer(self.server.refusal, b"<html><h1>Request Entity Too Large</h1></html>")
        connection = http.client.HTTPConnection(self.server.target, timeout=20)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization", "content-length")}
        connection.request(self.command, self.path, body, kept)
        answer = connection.getresponse()
        self._answer(answer.status, answer.read(), answer.getheader("Content-Type") or "text/plain")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _answer(self, status: int, body: bytes, kind: str = "text/html") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def steps_of(server: Server, run_id: str) -> list[int]:
    return [m.step for m in server.client().get_metric_history(run_id, TOP1)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "FLUSH_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def opened(store: Path, warnings: list[str], key: str = "k") -> Any:
    return open_book(store / "runs" / key, experiment="fma/v1", name=key, store=store, warn=warnings.append)


def log_steps(book: Any, first: int, last: int) -> list[int]:
    steps = list(range(first, last, 5))
    for step in steps:
        book.metrics({TOP1: step / 100}, step=step)
    return steps


def wait_until_delivered(server: Server, book: Any, steps: list[int]) -> None:
    until = time.monotonic() + 20
    while steps_of(server, book.run_id) != steps:
        assert time.monotonic() < until, steps_of(server, book.run_id)
        time.sleep(0.05)


def test_server_killed_midway_costs_one_warning_and_sync_delivers_the_rest_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    warnings: list[str] = []
    with opened(tmp_path, warnings) as book:
        steps = log_steps(book, -10, 10)
        wait_until_delivered(server, book, steps)
        server.kill()
        steps += log_steps(book, 10, 30)
        time.sleep(1.0)  # several deliveries would have been due
        steps += log_steps(book, 30, 40)
        book.table("grid", pd.DataFrame({"top1": [0.5]}))
        book.dataset("fma", "0123456789abcdef", "eval", "fma_large")
    assert len(warnings) == 1
    assert "bench sync" in warnings[0]
    assert sync(tmp_path, warnings.append) == [("k", "failed")]
    out, err = capfd.readouterr()
    assert out + err == ""  # MLflow itself says nothing either

    server.start()
    del warnings[:]
    assert sync(tmp_path, warnings.append) == [("k", "delivered")]
    run = server.client().get_run(book.run_id)
    assert steps_of(server, book.run_id) == steps
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 1
    assert [f.path for f in server.client().list_artifacts(book.run_id)] == ["grid.json"]
    assert sync(tmp_path, warnings.append) == [("k", "up to date")]
    assert warnings == []


@pytest.fixture
def proxy(server: Server) -> Iterator[LimitedProxy]:
    """Give a proxy with basic auth before the server, which refuses bodies over LIMIT_BYTES."""
    proxy = LimitedProxy(server.uri)
    with proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        yield proxy
        proxy.shutdown()


def test_an_artefact_over_the_limit_of_a_proxy_is_named_and_holds_back_nothing_else(
    server: Server, proxy: LimitedProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    folder, warnings = tmp_path / "many", list[str]()
    folder.mkdir()
    for name, num_bytes in (("a.bin", 100), ("large.bin", 20_000), ("z.bin", 100)):
        (folder / name).write_bytes(bytes(num_bytes))
    with opened(tmp_path, warnings) as book:
        book.params({f"setting.{i}": "x" * 100 for i in range(200)})  # a batch over the limit is sent in parts
        book.artifact(folder / "large.bin")
        book.artifact(folder)
        book.artifact(folder / "a.bin")
    run = server.client().get_run(book.run_id)
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 200
    files = [file.path for under in ("", "many") for file in server.client().list_artifacts(book.run_id, under)]
    assert files == ["a.bin", "many", "many/a.bin", "many/z.bin"]
    (warning,) = warnings
    assert "artefact large.bin (20.0 kB): HTTP 413" in warning and "artefact many/large.bin (20.0 kB)" in warning
    assert "cannot be reached" not in warning

    del warnings[:]
    assert sync(tmp_path, warnings.append) == [("k", "delivered in part")]
    (warning,) = warnings
    assert "artefact large.bin (20.0 kB)" in warning and "many/large.bin (20.0 kB)" in warning
    proxy.limit_bytes = 1_000_000
    del warnings[:]
    assert sync(tmp_path, warnings.append) == [("k", "delivered")]
    assert sync(tmp_path, warnings.append) == [("k", "up to date")]
    assert warnings == []
    assert "large.bin" in [file.path for file in server.client().list_artifacts(book.run_id)]
    assert server.client().get_run(book.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("status", [500, 401])
def test_an_artefact_that_fails_for_a_moment_is_sent_later_and_the_status_at_once(
    server: Server, proxy: LimitedProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    proxy.refusal = status
    (tmp_path / "large.bin").write_bytes(bytes(20_000))
    warnings: list[str] = []
    with opened(tmp_path, warnings) as book:
        book.artifact(tmp_path / "large.bin")
        book.table("grid", pd.DataFrame({"top1": [0.5]}))
    assert server.client().get_run(book.run_id).info.status == "FINISHED"
    assert sync(tmp_path, warnings.append) == [("k", "failed")]
    proxy.limit_bytes = 1_000_000
    assert sync(tmp_path, warnings.append) == [("k", "delivered")]
    assert [file.path for file in server.client().list_artifacts(book.run_id)] == ["grid.json", "large.bin"]
    assert not any(part in "".join(warnings) for part in ("s3cret", "ann:", "ann@"))


def test_a_server_that_refuses_the_login_is_told_as_such(
    proxy: LimitedProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri.replace("ann", "bob"))
    warnings: list[str] = []
    with opened(tmp_path, warnings):
        pass
    assert sync(tmp_path, warnings.append) == [("k", "failed")]
    assert len(warnings) == 2 and not any("s3cret" in warning or "bob" in warning for warning in warnings)
    assert all("refuses user and password (HTTP 401)" in warning for warning in warnings)


def test_no_user_and_no_password_is_in_any_message_or_file(
    proxy: LimitedProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    monkeypatch.setattr(sys, "argv", ["bench", "sweep", "--storage", "postgresql://ann:s3cret@db/x"])
    proxy.limit_bytes = 0  # nothing that has a body is taken
    warnings: list[str] = []
    with opened(tmp_path, warnings) as book:
        book.tags(provenance())
    assert sync(tmp_path, warnings.append) == [("k", "failed")]
    assert len(warnings) == 2
    files = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "postgresql://db/x" in files
    assert not any(part in "".join(warnings) + files for part in ("s3cret", "ann:", "ann@"))


def test_sync_delivers_to_the_server_that_is_asked_for_although_another_has_the_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with opened(tmp_path, []) as book:
        steps = log_steps(book, 0, 20)
    assert sync(tmp_path, print) == [("k", "up to date")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert sync(tmp_path, print) == [("k", "delivered")]
    assert sync(tmp_path, print) == [("k", "up to date")]
    target = json.loads((tmp_path / "runs" / "k" / "mlflow.json").read_text())["targets"][server.uri]
    assert steps_of(server, target["run_id"]) == steps
    server.client().delete_run(target["run_id"])  # as a server whose database was lost
    assert sync(tmp_path, print) == [("k", "delivered")]


def test_a_server_that_hangs_midway_delays_nothing_and_gets_every_event_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    warnings: list[str] = []
    with opened(tmp_path, warnings) as book:
        steps = log_steps(book, 0, 10)
        wait_until_delivered(server, book, steps)
        server.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            steps += log_steps(book, 10, 30)
            assert time.monotonic() - started < 0.5
            time.sleep(2.5)  # the request in flight times out, and the server will still act on it later
        finally:
            server.signal(signal.SIGCONT)
    assert len(warnings) == 1
    assert sync(tmp_path, warnings.append) == [("k", "up to date")]  # it answered again when the run ended
    assert steps_of(server, book.run_id) == steps
    assert server.client().get_run(book.run_id).info.status == "FINISHED"


def test_two_syncs_at_once_deliver_every_event_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for key in "abcd":
        with opened(tmp_path, [], key) as book:
            log_steps(book, 0, 20)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ignored: a run remembers its experiment")
    outcomes: list[str] = []
    syncs = [threading.Thread(target=lambda: outcomes.extend(o for _, o in sync(tmp_path, print))) for _ in range(2)]
    for thread in syncs:
        thread.start()
    for thread in syncs:
        thread.join()
    assert "failed" not in outcomes
    assert outcomes.count("delivered") == 4
    client = server.client()
    experiment = client.get_experiment_by_name("fma/v1")
    runs = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name in "abcd"]
    assert sorted(r.info.run_name for r in runs) == list("abcd")
    assert all(steps_of(server, r.info.run_id) == [0, 5, 10, 15] for r in runs)


def test_no_server_at_the_start_costs_one_warning_and_the_run_is_kept_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    warnings: list[str] = []
    with opened(tmp_path, warnings) as book:
        assert book.run_id == ""
        log_steps(book, 0, 10)
    assert len(warnings) == 1
    folder = tmp_path / "runs" / "k"
    kinds = [json.loads(line)["kind"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert kinds.count("metrics") >= 2
    assert kinds[-1] == "status"
    assert "secret" not in "".join(path.read_text() for path in folder.iterdir())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync(tmp_path, warnings.append) == [("k", "failed")]  # it was meant for that server, not for this store


def test_a_server_that_never_answers_does_not_hold_up_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        warnings: list[str] = []
        started = time.monotonic()
        with opened(tmp_path, warnings) as book:
            log_steps(book, 0, 10)
        assert time.monotonic() - started < 20
        assert len(warnings) == 1
