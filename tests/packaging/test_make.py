"""The two commands: what is missing on the machine is said in one sentence, and a second call does nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Without the variables by which a `make test` around this one would hand down its options.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["LC_ALL"] = "C"
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_machine_without_a_fitting_python_is_told_what_to_install(tmp_path: Path) -> None:
    done = make("setup", f"VENV={tmp_path / 'venv'}", "PYTHON=false")
    assert done.returncode != 0
    sentence, _ = done.stderr.splitlines()
    assert "needs Python 3.11 or 3.12" in sentence
    assert "apt-get install python3 python3-venv python3-dev" in sentence
    assert not (tmp_path / "venv").exists()


def test_machine_without_a_compiler_is_told_what_to_install(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(shutil.which("python3") or "python3")
    for stamp in (".base", ".package"):
        (venv / stamp).touch()
    done = make("setup", f"VENV={venv}", f"WHEELS={tmp_path / 'wheels'}", "CXX=no-such-compiler")
    assert done.returncode != 0
    sentence, _ = done.stderr.splitlines()
    assert "needs a C++ compiler" in sentence
    assert "apt-get install g++" in sentence


def test_second_call_does_nothing(tmp_path: Path) -> None:
    checksum = next(
        line.rsplit("-", 1)[1]
        for line in make("--print-data-base", "--dry-run", "lint").stdout.splitlines()
        if line.startswith("INDEX := ")
    )
    for stamp in (".base", ".package", f".falconn-{checksum}", ".setup", ".dev"):
        (tmp_path / stamp).touch()
    assert make("setup", f"VENV={tmp_path}").stdout.strip() == "make: Nothing to be done for 'setup'."


def test_demo_sets_up_and_runs_the_main_job(tmp_path: Path) -> None:
    plan = make("--dry-run", "demo", f"VENV={tmp_path}").stdout
    assert plan.index("venv") < plan.index("bench doctor --fix") < plan.index("bench run --model now-playing")
