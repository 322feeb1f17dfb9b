"""A real PostgreSQL for the tests: Debian's package, started on loopback in a folder that is gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

DEBIAN = Path("/usr/lib/postgresql")  # <version>/bin, which is not on the PATH
NEEDED = ("initdb", "postgres")
ACCOUNTS = ("postgres", "nobody")  # who it runs as where the tests run as root, which it refuses
ROLE = "bench"
START_S, STOP_S = 60.0, 20.0
PORTS_TRIED = 5  # another process may take a free port before the server does
# A test's database need not survive a crash of the machine, and many sessions of CI share a small one.
OPTIONS = (
    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "full_page_writes=off"),
    *("-c", "synchronous_commit=off", "-c", "shared_buffers=32MB", "-c", "max_connections=60"),
)


class Postgres:
    """A server in a folder of its own. It may be stopped and started again; it keeps its port and what it holds."""

    def __init__(self, programs: Path, folder: Path, account: str | None) -> None:
        self._programs, self._folder, self._account = programs, folder, account
        self._log = folder / "log"
        self._port = 0
        self._server: subprocess.Popen[bytes] | None = None
        data = ("--pgdata", str(folder / "data"))
        made = ("--auth", "trust", "--username", ROLE, "--encoding", "UTF8", "--locale", "C", "--no-sync")
        self._run("initdb", *data, *made).wait(START_S)
        for _ in range(PORTS_TRIED):
            self._port = free_port()
            if self.start():
                return
        raise RuntimeError(f"PostgreSQL did not start: {self._last_words()}")

    @property
    def url(self) -> str:
        """Return the address of its database, as SQLAlchemy and Optuna want it."""
        return f"postgresql+psycopg://{ROLE}@127.0.0.1:{self._port}/postgres"

    def start(self) -> bool:
        """Start the server and wait until it answers; return False if it ended instead."""
        folders = ("-D", str(self._folder / "data"), "-k", str(self._folder))
        self._server = self._run("postgres", *folders, "-p", str(self._port), *OPTIONS)
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._server.poll() is None:
            if self._answers():
                return True
            time.sleep(0.05)
        self.stop()
        return False

    def stop(self) -> None:
        """Stop the server, without waiting for those who are connected."""
        if self._server is None:
            return
        for ending in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # "fast", "immediate", and at once
            try:
                self._server.send_signal(ending)
                self._server.wait(STOP_S)
                break
            except subprocess.TimeoutExpired:
                continue
        self._server = None

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in the tests' terminal is not for the server, which they end themselves.
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder, start_new_session=True,
                user=self._account, group=_group(self._account), extra_groups=None if self._account is None else [],
            )  # fmt: skip

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _last_words(self) -> str:
        return " | ".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Give a PostgreSQL server of this process's own; skip, with the reason, where it is not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed; `pip install 'psycopg[binary]'`")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; `apt-get install postgresql`")
    account = _account()
    # Not pytest's own folder: that is closed to other accounts.
    folder = Path(tempfile.mkdtemp(prefix="bench-postgres-"))
    if account is not None:
        os.chown(folder, pwd.getpwnam(account).pw_uid, -1)
    server: Postgres | None = None
    try:
        server = Postgres(programs, folder, account)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """Return the address of a real PostgreSQL: `postgresql+psycopg://...`."""
    return postgres.url


def _programs() -> Path | None:
    """Return the folder of the newest PostgreSQL's programs, None where there is none."""
    by_version = sorted(DEBIAN.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    found = shutil.which("postgres")
    for folder in [*by_version, *([Path(found).parent] if found else [])]:
        if all((folder / program).is_file() for program in NEEDED):
            return folder
    return None


def _account() -> str | None:
    """Return the account to run as, None for one's own. Skips where root has none to change to."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    account = next((name for name in ACCOUNTS if name in known), None)
    if account is None:
        pytest.skip(f"PostgreSQL does not run as root, and there is no account {' or '.join(ACCOUNTS)}")
    return account


def _group(account: str | None) -> int | None:
    return None if account is None else pwd.getpwnam(account).pw_gid
