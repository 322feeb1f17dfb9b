"""What all parts of the campaign have: a seed, a time, a finished run that nothing disturbed, and a table at the end.

`make campaign` runs it, and docs/reliability.md explains it. Two settings in the environment:

- BENCH_CAMPAIGN_MINUTES (30): about how long all parts take together, on two cores. A part ends with its share of it.
- BENCH_CAMPAIGN_SEED: that of all random draws. A new one each time, shown at the beginning and in every failure.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import RUN, Ended, finish, new_store
from forked import import_heavy_libraries
from mlflow_server import Server
from postgres_server import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]
MINUTES, SEED = "BENCH_CAMPAIGN_MINUTES", "BENCH_CAMPAIGN_SEED"
RESULTS = pytest.StashKey[list[tuple[str, int, str]]]()
TRACK_S = 1.9  # below two seconds, calibrating a catalogue embeds one segment per excerpt


@dataclass
class Campaign:
    """The settings of a campaign, and what it has found so far."""

    seed: int
    minutes: float
    results: list[tuple[str, int, str]] = field(default_factory=list)
    """Rows of the table: what was tried, how often, and what came of it."""

    def draw(self, part: str) -> random.Random:
        """Return the random numbers of a part, which do not depend on the others."""
        return random.Random(f"{self.seed} {part}")

    def end_of(self, share: float) -> float:
        """Return when a part that begins now and has this share of the time must begin nothing new."""
        return time.monotonic() + 60 * self.minutes * share

    def record(self, what: str, number: int, result: str) -> None:
        """Add a row to the table."""
        self.results.append((what, number, result))


def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed, once for all processes and parts."""
    os.environ.setdefault(SEED, str(time.time_ns() % 1_000_000))
    config.stash[RESULTS] = []


def pytest_report_header() -> str:
    return f"campaign: {SEED}={os.environ[SEED]} {MINUTES}={os.environ.get(MINUTES, '30')}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of docs/reliability.md."""
    if rows := config.stash[RESULTS]:
        terminalreporter.section(f"campaign, seed {os.environ[SEED]}")
        for what, number, result in rows:
            terminalreporter.write_line(f"| {what} | {number} | {result} |")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.campaign)


@pytest.fixture(scope="session")
def campaign(pytestconfig: pytest.Config) -> Campaign:
    return Campaign(int(os.environ[SEED]), float(os.environ.get(MINUTES, "30")), pytestconfig.stash[RESULTS])


@pytest.fixture(scope="session", autouse=True)
def _libraries() -> None:
    import_heavy_libraries()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the store of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store = new_store(folder / "store")
    ended = finish([*RUN, "--store", store], folder / "log")
    assert ended.code == 0, ended
    return store


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of short tracks, each of chords of its own."""
    folder = tmp_path_factory.mktemp("music")
    time_T = np.arange(round(16_000 * TRACK_S)) / 16_000
    for number in range(6):
        draw = np.random.default_rng(number)
        wave_T = sum(np.sin(2 * np.pi * hz * time_T) for hz in draw.uniform(200, 3000, 5)) / 10
        fade_T = 0.5 + 0.5 * np.sin(2 * np.pi * draw.uniform(1, 4) * time_T)
        soundfile.write(folder / f"track{number}.wav", wave_T * fade_T + draw.normal(0, 0.01, len(time_T)), 16_000)
    return folder


@pytest.fixture(scope="session")
def catalogue(undisturbed: Path, music: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a catalogue of `music` that nothing disturbed."""
    folder = tmp_path_factory.mktemp("catalogue")
    store = trained_store(folder / "store", undisturbed)
    ended = finish(catalogue_command(folder / "made", store, music), folder / "log")
    assert ended.code == 0, ended
    return folder / "made"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give an MLflow server on loopback, which can be stopped and started."""
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.kill()


def trained_store(folder: Path, undisturbed: Path) -> Path:
    """Return a new store that has the run of another, with its weights, and nothing else."""
    for kind in ("runs", "weights"):
        shutil.copytree(undisturbed / kind, folder / kind)
    return folder


def catalogue_command(folder: Path, store: Path, music: Path) -> list[str]:
    """Return the command that builds a catalogue of a folder of music with the latest run of a store."""
    return ["catalogue", "build", str(folder), "--store", str(store), "--dataset", "folder", "--data-root", str(music)]


def assert_told(ended: Ended, *codes: int) -> None:
    """Check that a command ended as documented: with one of these exit codes, and never with a traceback."""
    assert ended.code in codes, ended
    assert "Traceback" not in ended.output, ended
