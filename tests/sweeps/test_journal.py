"""A damaged journal of sweeps: what was in the line is lost at most, and no trial gets the result of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bench.store import Store
from bench.sweeps.space import Parameter, Space
from bench.sweeps.study import Definition, Origin, create_or_join, journal_of, open_storage
from bench.sweeps.trials import TrialQueue

SPACE = Space("tiny", {"train.lr": Parameter(1e-4, 1e-2, log=True)})
DEFINITION = Definition("now-playing", "synth-validation/v1", "d", "s", "0", (), ("segment_top1",), SPACE)
OTHER = replace(DEFINITION, data="e")
NUM_TRIALS = 3


def tell_trials(store: Store, definition: Definition, num_trials: int = NUM_TRIALS) -> None:
    study = create_or_join(open_storage(None, store), definition, Origin("now-playing", None, None), None)
    queue = TrialQueue(study, SPACE, store.root / "sweeps" / study.study_name, print)
    for _ in range(num_trials):
        trial = queue.ask(99)
        assert trial is not None
        queue.report(trial, 0.5, 10)
        queue.tell(trial.number, TrialState.COMPLETE, [trial.params["train.lr"]], {"run": f"r{trial.number}"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    tell_trials(store, DEFINITION)
    return store


def lines_of(store: Store) -> list[bytes]:
    return journal_of(store).read_bytes().split(b"\n")


def reopen(store: Store, lines: list[bytes], name: str = DEFINITION.name) -> tuple[list[str], optuna.Study]:
    journal_of(store).write_bytes(b"\n".join(lines))
    warned: list[str] = []
    storage = open_storage(None, store, warned.append)
    again: list[str] = []
    open_storage(None, store, again.append)
    assert again == []
    return warned, optuna.load_study(study_name=name, storage=storage)


def check_no_result_moved(study: optuna.Study) -> None:
    for trial in study.get_trials():
        if trial.state == TrialState.COMPLETE and trial.params:
            assert trial.values == [trial.params["train.lr"]]
            assert trial.user_attrs.get("run", f"r{trial.number}") == f"r{trial.number}"


def join(lines: list[bytes], at: int, between: bytes) -> list[bytes]:
    return [*lines[:at], lines[at] + between + lines[at + 1], *lines[at + 2 :]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines, at: join(lines, at, b"{"),
        lambda lines, at: join(lines, at, b""),
        lambda lines, at: [*lines[:at], b"", *lines[at:]],
        lambda lines, at: [*lines[:at], b"\x00\xff\x00", *lines[at:]],
        lambda lines, at: [*lines[:at], b'{"op_code":4,"worker_id":"x"}', *lines[at:]],
        lambda lines, at: [
            *lines[:at],
            b'{"op_code":77,"worker_id":[{"op_code":[],"worker_id":{}}]}',
            b"[]",
            b"3",
            *lines[at:],
        ],
    ],
    ids=["two-lines-and-a-brace", "two-lines", "blank", "bytes", "incomplete", "other-values"],
)
def test_lines_joined_or_added_in_the_middle_lose_nothing(
    store: Store, damage: Callable[[list[bytes], int], list[bytes]]
) -> None:
    lines = lines_of(store)
    before = optuna.load_study(study_name=DEFINITION.name, storage=open_storage(None, store)).get_trials()
    damaged = damage(lines, len(lines) // 2)
    warned, study = reopen(store, damaged)
    assert study.get_trials() == before
    path = journal_of(store)
    assert len(warned) == 1 and f"{path} was damaged: line {len(lines) // 2 + 1} (" in warned[0]
    assert path.with_name("journal.log.damaged").read_bytes() == b"\n".join(damaged)
    tell_trials(store, DEFINITION, 1)
    assert len(optuna.load_study(study_name=DEFINITION.name, storage=open_storage(None, store)).get_trials()) == 4


def test_any_lost_line_gives_no_trial_the_result_of_another(store: Store) -> None:
    lines = lines_of(store)
    for at in range(len(lines) - 1):
        lost = json.loads(lines[at])
        warned, study = reopen(store, [*lines[:at], b"{" + lines[at][9:], *lines[at + 1 :]])
        trials = study.get_trials()
        assert f"line {at + 1} (no entries" in warned[0]
        assert len(trials) == NUM_TRIALS, lost
        check_no_result_moved(study)
        states = [trial.state for trial in trials]
        assert states.count(TrialState.COMPLETE) >= NUM_TRIALS - 1, lost


def test_lost_beginning_of_a_trial_among_two_studies_gives_neither_a_false_result(store: Store) -> None:
    tell_trials(store, OTHER)
    lines = lines_of(store)
    for at in (i for i, line in enumerate(lines[:-1]) if json.loads(line)["op_code"] == 4):
        _, first = reopen(store, [*lines[:at], lines[at][5:], *lines[at + 1 :]])
        second = optuna.load_study(study_name=OTHER.name, storage=open_storage(None, store))
        for study in (first, second):
            check_no_result_moved(study)
        complete = [t for study in (first, second) for t in study.get_trials() if t.state == TrialState.COMPLETE]
        assert len(complete) == 2 * NUM_TRIALS - 1
