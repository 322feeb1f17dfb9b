"""Help: every command has it, and what it says of names, kinds and defaults is so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.config import presets

SPELLED_ONCE = ("--data-root", "--dataset", "--format", "--preset", "--run", "--storage", "--store")


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command below one that help shows, with the words that call it."""
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield from walk(each, (*path, name))


COMMANDS = dict(walk(get_command(app)))


def options_of(spelling: str) -> list[Any]:
    """Return the options of all commands that are spelled so, but for hidden ones."""
    return [
        each for command in COMMANDS.values() for each in command.params if spelling in each.opts and not each.hidden
    ]


def help_of(*command: str) -> str:
    """Return what `--help` of a command prints."""
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "120", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    return str(shown.output)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    assert "Usage:" in help_of(*command)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_is_explained(command: tuple[str, ...]) -> None:
    assert [each.name for each in COMMANDS[command].params if not each.hidden and not each.help] == []


@pytest.mark.parametrize("spelling", SPELLED_ONCE)
def test_a_shared_option_is_worded_the_same_everywhere(spelling: str) -> None:
    assert len({option.help for option in options_of(spelling)}) == 1


def test_a_default_is_told_once() -> None:
    told = [option.help for command in COMMANDS.values() for option in command.params if "default" in str(option.help)]
    assert told == []


def test_help_of_list_names_every_kind() -> None:
    text = help_of("list")
    assert [kind for kind in registry.KINDS if kind not in text] == []


@pytest.mark.parametrize(
    ("spelling", "named", "known"),
    [
        ("--preset", ["tiny", "small", "paper"], presets()),
        ("--dataset", ["fma", "folder", "synth"], registry.names("dataset")),
        ("--index", ["exact", "falconn"], registry.names("index")),
    ],
)
def test_names_in_help_exist(spelling: str, named: list[str], known: list[str]) -> None:
    assert set(named) <= set(known)
    assert any(all(name in option.help for name in named) for option in options_of(spelling))


def test_help_of_sweep_says_how_it_is_resumed() -> None:
    assert "Repeat the command to resume" in help_of("sweep")
