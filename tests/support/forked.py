"""Commands of the product in processes that do not pay for the imports, some seconds of the processor for each.

One process, started with the first command, imports the heavy libraries and forks for every command. The fork runs the
package as `python -P -m bench` does and ends as an interpreter ends: its arguments, environment, output, exit code and
the signals that it gets are those of a program of its own. Two things are not: the seed of Python's hashes is the same
in all forks, and nothing is imported late. A test of either starts `NEW_PROCESS`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

NEW_PROCESS = (sys.executable, "-P", "-m", "bench")
HEAVY = (
    *("torch", "torch._dynamo", "torchaudio", "mlflow", "optuna", "pandas", "soundfile", "falconn", "faiss"),
    *("pyroomacoustics", "scipy.signal", "matplotlib.figure", "mlflow.store.tracking.sqlalchemy_store"),
    *("bench.run", "bench.cli", "bench.catalogue.build", "bench.align_pair"),
)
LIMIT_S = 300.0  # of one command, on a machine that does other things as well
LONGEST_REQUEST_BYTES = 1 << 17  # the environment and the arguments
SERVE = "import sys; sys.path.insert(0, sys.argv.pop()); import forked; sys.path.pop(0); forked.serve(int(sys.argv[1]))"


def import_heavy_libraries() -> None:
    """Import what commands need, once for all of them. No thread may run in a process that forks."""
    os.environ["MLFLOW_LOGGING_LEVEL"] = "CRITICAL"  # the product sets it before it imports MLflow
    for name in HEAVY:
        with contextlib.suppress(ModuleNotFoundError):  # an index is optional
            importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)  # sums are done in one order, so that a run repeats to the bit


class Started:
    """A command that may be running; a part of what `subprocess.Popen` is for a program."""

    def __init__(self, arguments: tuple[str, ...], status: IO[str], stdout: IO[str], stderr: IO[str]) -> None:
        self.arguments, self._status, self._stdout, self.stderr = arguments, status, stdout, stderr
        self.pid = int(status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, minus the number of the signal that killed it; None while it runs."""
        return self._await(0)

    def wait(self, timeout: float = LIMIT_S) -> int:
        """Return its exit code, once it has ended. What it starts and leaves behind is not waited for."""
        code = self._await(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return code

    def communicate(self, timeout: float = LIMIT_S) -> tuple[str, str]:
        """Return its stdout and the rest of its stderr, once it has ended; after `timeout` seconds it is killed."""
        late = threading.Event()
        killer = threading.Timer(timeout, lambda: (late.set(), self.send_signal(signal.SIGKILL)))
        killer.start()
        rest = self.stderr.read()  # to the end of all that it started and that writes there
        self.wait()
        killer.cancel()
        if late.is_set():
            raise subprocess.TimeoutExpired(self.arguments, timeout, stderr=rest)
        self.stderr.close()
        with self._stdout:
            self._stdout.seek(0)
            return self._stdout.read(), rest

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, and nothing that it started."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _await(self, limit_s: float) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], limit_s)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode


def start(*arguments: str, **variables: str) -> Started:
    """Start `bench` with these arguments, and with variables beside those of this process."""
    return _start("", arguments, variables)


def start_code(code: str, *arguments: str, **variables: str) -> Started:
    """Start some code, as `python -P -c` does."""
    return _start(code, arguments, variables)


def _start(code: str, arguments: tuple[str, ...], variables: Mapping[str, str]) -> Started:
    environment = os.environ | variables
    request = {"code": code, "arguments": arguments, "environment": environment, "folder": os.getcwd()}
    (status, told), (errors, written) = os.pipe(), os.pipe()
    stdout = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - `communicate` closes it
    try:
        socket.send_fds(_forker(), [json.dumps(request).encode()], [stdout.fileno(), written, told])
    finally:
        os.close(told), os.close(written)
    return Started(arguments, os.fdopen(status), stdout, os.fdopen(errors, encoding="utf-8"))


def finish(*arguments: str, timeout: float = LIMIT_S, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `bench` to its end, as `start` does."""
    started = start(*arguments, **variables)
    stdout, stderr = started.communicate(timeout)
    return subprocess.CompletedProcess(arguments, started.wait(), stdout, stderr)


@cache
def _forker() -> socket.socket:
    """Return the way to the process that forks, which ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", "-c", SERVE, str(theirs.fileno()), str(Path(__file__).parent)]
    # A session of its own: Ctrl-C in the tests' terminal is not for the commands, as whose tests then end.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(number: int) -> None:
    """Fork for each request that comes through a socket, and tell how each fork ended, until the socket is closed."""
    import_heavy_libraries()
    assert threading.active_count() == 1, "a thread does not live on in a fork, which may wait for it"
    gc.freeze()  # what is there is shared with the forks, as long as nobody writes to it
    requests = socket.socket(fileno=number)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}  # what to tell it through, by process
    while True:
        ready, _, _ = select.select([requests, ended], [], [])
        if ended in ready:
            os.read(ended, 1 << 10)
            _tell_ended(running)
        if requests in ready:
            message, descriptors, _, _ = socket.recv_fds(requests, LONGEST_REQUEST_BYTES, 3)
            if not message:
                return
            stdout, stderr, status = descriptors
            pid = os.fork()
            if not pid:
                break
            running[pid] = status
            os.write(status, f"{pid}\n".encode())
            os.close(stdout), os.close(stderr)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in (ended, wake, status, *running.values()):
        os.close(descriptor)
    requests.close()
    _be_command(json.loads(message), stdout, stderr)


def _tell_ended(running: dict[int, int]) -> None:
    for pid in list(running):
        found, code = os.waitpid(pid, os.WNOHANG)
        if found:
            status = running.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it
                os.write(status, f"{os.waitstatus_to_exitcode(code)}\n".encode())
            os.close(status)


def _be_command(request: Mapping[str, Any], stdout: int, stderr: int) -> None:
    """Become `python -P -m bench`: whatever it raises ends this process as it ends any other."""
    for descriptor, stream in ((stdout, 1), (stderr, 2)):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    at_once = "PYTHONUNBUFFERED" in os.environ
    sys.stdout, sys.stderr = (
        os.fdopen(1, "w", 1 if at_once else -1, encoding="utf-8", closefd=False),
        os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False),
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["-c" if request["code"] else "bench", *request["arguments"]]
    if request["code"]:
        exec(request["code"], {"__name__": "__main__"})
        return
    runpy.run_module("bench", run_name="__main__", alter_sys=True)
