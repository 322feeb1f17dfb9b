"""What every test has: one thread, no network, the same random examples on CI each time, the real music."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports mlflow or torch, in this process and in those that tests start.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["OMP_NUM_THREADS"] = "1"
MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")
for name in (*MLFLOW, "BENCH_DATA", "BENCH_STORE", "BENCH_STORAGE"):
    os.environ.pop(name, None)  # a setting of the person who runs the tests must not reach them

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and what it starts inherits that; some tests send one.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_DATA = Path(os.environ.get("BENCH_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()

# Files that take more than half a minute of a core, the longest first. Whole files are shared out to the processes of
# `make test`, in this order, so that none of these is begun last, while the other cores have nothing left to do. What
# is not here is short: a file that has become long and is missing costs at most its own length at the end.
LONGEST_FIRST = (
    "e2e/test_run.py",
    "sweeps/test_sweep.py",
    "e2e/test_mlflow_ui.py",
    "bench/align/test_fingerprint.py",
    "bench/catalogue/test_identify.py",
    "docs/test_sessions.py",
    "reports/test_html.py",
    "bench/test_reproduce.py",
    "bench/logbook/test_server.py",  # waits, rather than computes, as do the next two
    "bench/logbook/test_ui.py",
    "bench/logbook/test_logbook.py",
    "sweeps/test_trials.py",
)

# No deadline: on a loaded machine an example may wait for the processor.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FIRST)}
    if gone := [str(path) for path in place if not path.is_file()]:
        raise pytest.UsageError(f"LONGEST_FIRST names files of tests, got {gone}; take out of {__file__} what is gone")
    items.sort(key=lambda item: place.get(item.path, len(place)))  # a file's own tests keep their order


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:  # a test that needs no torch does not pay for its import
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with real music in the official layout; skip where there is none."""
    if not (REAL_DATA / "fma").is_dir():
        pytest.skip(f"no real music at {REAL_DATA}; set BENCH_TEST_DATA to a folder that holds fma/, noise/ and rir/")
    return REAL_DATA


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder to be linked as `rooms` in a store; simulating them takes a run a quarter of a minute.

    All processes of a session of tests share it: the store's own lock lets the first that needs rooms make them.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "rooms"
    folder.mkdir(exist_ok=True)
    return folder
