"""Bad inputs by kind: no traceback, soon an end, an exit code as documented, and a message that names the input."""

from __future__ import annotations

import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bad_inputs import (
    Input,
    file_inputs,
    name_inputs,
    random_arguments,
    server_inputs,
    setting_inputs,
    sound,
    toml_inputs,
    wav,
)
from commands import Ended, finish
from conftest import Campaign
from test_kill import copy_runs

LIMIT_S = 120.0  # for one input; a server that hangs is given up after two attempts of ten seconds
NUM_NAMES, NUM_SETTINGS, NUM_ARGUMENTS = 70, 80, 20
SHARE = 0.25
SECRET = "s3cret"

Kinds = dict[str, Callable[[Path, random.Random], Iterator[Input]]]


def faults(ended: Ended, token: str) -> list[str]:
    """Return what is wrong with how a bad input ended."""
    found = []
    if "Traceback" in ended.output:
        found.append("a traceback")
    if ended.code not in (0, 1, 2):
        found.append(f"exit code {ended.code} after {ended.seconds:.0f} s")
    if ended.code and not ended.output.strip():
        found.append("no message")
    if ended.code and token not in ended.output:
        found.append(f"nothing that names {token}")
    if SECRET in ended.output:
        found.append("the password")
    return found


def try_all(campaign: Campaign, kind: str, inputs: Iterator[Input], folder: Path) -> None:
    end_s, bad, num_inputs, num_refused = campaign.end_of(SHARE), [], 0, 0
    for each in inputs:
        if time.monotonic() > end_s:
            break
        ended = finish(each.arguments, folder / "logs" / "log", LIMIT_S, **each.variables)
        num_inputs, num_refused = num_inputs + 1, num_refused + (ended.code != 0)
        if found := faults(ended, each.token):
            bad.append(f"{', '.join(found)}: {each.arguments!r} {each.variables!r}\n{ended}")
            (folder / "faults.txt").write_text("\n\n".join(bad), encoding="utf-8", errors="backslashreplace")
    assert not bad, f"seed {campaign.seed}: {len(bad)} of {num_inputs}\n" + "\n\n".join(bad)
    campaign.record(f"bad inputs: {kind}", num_inputs, f"{num_refused} refused by name, the others could be used")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.wav").write_bytes(wav(sound()))
    return tmp_path / "in"


def test_files(campaign: Campaign, catalogue: Path, folder: Path, tmp_path: Path) -> None:
    try_all(campaign, "audio files", file_inputs(folder, catalogue, campaign.draw("files")), tmp_path)


def test_names(campaign: Campaign, undisturbed: Path, catalogue: Path, folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed / "runs", store / "runs")
    draw = campaign.draw("names")
    try_all(campaign, "names", name_inputs(store, catalogue, folder, draw, NUM_NAMES), tmp_path)


def test_settings(campaign: Campaign, folder: Path, tmp_path: Path) -> None:
    from bench.cli.options import resolve_settings
    from bench.config import flatten

    names = sorted(flatten(resolve_settings("now-playing", "tiny", "synth")[1]))
    try_all(campaign, "settings", setting_inputs(names, folder, campaign.draw("settings"), NUM_SETTINGS), tmp_path)


def test_toml(campaign: Campaign, folder: Path, tmp_path: Path) -> None:
    try_all(campaign, "TOML files", toml_inputs(folder, campaign.draw("toml")), tmp_path)


def test_arguments(campaign: Campaign, tmp_path: Path) -> None:
    try_all(campaign, "arguments", random_arguments(campaign.draw("arguments"), NUM_ARGUMENTS), tmp_path)


def test_servers(campaign: Campaign, undisturbed: Path, folder: Path, tmp_path: Path) -> None:
    stores = (tmp_path / f"store-{number}" for number in range(1_000))

    def new_store() -> Path:
        copy_runs(undisturbed, store := next(stores), 1)
        return store

    with bad_servers() as addresses:
        try_all(campaign, "servers", server_inputs(new_store, folder, addresses), tmp_path)


@contextmanager
def bad_servers() -> Iterator[dict[str, str]]:
    """Give addresses of servers on loopback that hang, fail, or answer something else, while they are there."""
    hanging = socket.create_server(("127.0.0.1", 0))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (Failing, Page)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    ports = [hanging.getsockname()[1], *(server.server_port for server in servers)]
    yield {name: f"http://127.0.0.1:{port}" for name, port in zip(("hanging", "failing", "page"), ports, strict=True)}
    for server in servers:
        server.shutdown()
        server.server_close()
    hanging.close()


class Failing(BaseHTTPRequestHandler):
    """Fails whatever is asked."""

    status, body = 500, b"out of order"

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_PUT = do_PATCH = do_GET


class Page(Failing):
    """Answers with a page, as a router's login."""

    status, body = 200, b"<html>welcome</html>"
