"""Spellings of earlier versions are answered with today's, and help does not show them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from typer.main import get_command

from bench.cli import app

COMMANDS: dict[str, Any] = vars(get_command(app))["commands"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["index"], "bench catalogue"),
        (["index", "--help"], "bench catalogue --help"),
        (["index", "info", "songs"], "bench catalogue info songs"),
        (["index", "build", "my songs", "--index", "falconn"], "bench catalogue build 'my songs' --index falconn"),
        (["identify", "a.wav", "--index", "songs"], "bench identify ... --catalogue songs"),
        (["identify", "-i", "my songs", "a.wav"], "bench identify ... --catalogue 'my songs'"),
    ],
    ids=" ".join,
)
def test_old_spelling_is_answered_with_the_new_one(old: list[str], new: str) -> None:
    command = [sys.executable, "-P", "-m", "bench", *old]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: `") and done.stderr.endswith(f"; run: {new}\n")
    assert done.stderr.count("\n") == 1


def test_help_shows_the_new_spellings_alone() -> None:
    assert COMMANDS["index"].hidden and not COMMANDS["catalogue"].hidden
    options = {each.name: each for each in COMMANDS["identify"].params}
    assert options["index"].hidden and options["catalogue"].opts == ["--catalogue", "-c"]


def test_index_still_names_the_index_that_a_catalogue_is_built_with() -> None:
    options = {each.name: each for each in COMMANDS["catalogue"].commands["build"].params}
    assert options["index"].opts == ["--index"] and options["index"].default == "exact"
