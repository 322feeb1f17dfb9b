"""Asking and telling: no trial twice, none lost, whoever dies and whenever the storage is away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from bench.errors import ConfigError, StoreError
from bench.logbook import without_password
from bench.store import Store
from bench.sweeps import trials
from bench.sweeps.space import Parameter, Space
from bench.sweeps.study import (
    Definition,
    Origin,
    create_or_join,
    describe_other_studies,
    find_stored_study,
    journal_of,
    open_storage,
    tell_if_away,
)
from bench.sweeps.trials import REPEAT_OF, TrialQueue, count_begun, enqueue_preset, heartbeat

SPACE = Space("tiny", {"train.lr": Parameter(1e-4, 1e-2, log=True)})
DEFINITION = Definition("now-playing", "synth-validation/v1", "d", "s", "0", (), ("segment_top1",), SPACE)
ORIGIN = Origin("now-playing", None, None)
# One of several workers that begin at the same moment on a store where nothing is.
WORKER = """
import sys, time
from pathlib import Path
from tests_trials import DEFINITION, ORIGIN, SPACE
from bench.store import Store
from bench.sweeps.study import create_or_join, open_storage
from bench.sweeps.trials import TrialQueue
from optuna.trial import TrialState
store, url, num_trials = Store(Path(sys.argv[1])), sys.argv[2] or None, int(sys.argv[3])
study = create_or_join(open_storage(url, store), DEFINITION, ORIGIN, None)
queue = TrialQueue(study, SPACE, store.root / "sweeps" / study.study_name, print)
while (trial := queue.ask(num_trials)) is not None:
    print("asked", trial.number, flush=True)
    time.sleep(0.05)
    if len(sys.argv) > 4:
        time.sleep(600)
    queue.tell(trial.number, TrialState.COMPLETE, [trial.params["train.lr"]], {"run": "r"})
"""


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def queue(tmp_path: Path, warned: list[str]) -> TrialQueue:
    return queue_in(Store(tmp_path), warned)


def queue_in(store: Store, warned: list[str], url: str | None = None, name: str | None = None) -> TrialQueue:
    study = create_or_join(open_storage(url, store), DEFINITION, ORIGIN, name)
    return TrialQueue(study, SPACE, store.root / "sweeps" / study.study_name, warned.append, pauses_s=(0.0,))


def started(tmp_path: Path, url: str | None, num_trials: int, *more: str) -> subprocess.Popen[str]:
    here = tmp_path / "code"
    here.mkdir(exist_ok=True)
    if not (here / "tests_trials.py").exists():  # an earlier worker may be reading it
        (here / "tests_trials.py").write_text(Path(__file__).read_text())
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path / "store"), url or "", str(num_trials), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(here)},
    )  # fmt: skip


def asked(outputs: list[str]) -> list[int]:
    return [int(line.split()[1]) for output in outputs for line in output.splitlines() if line.startswith("asked")]


def together(tmp_path: Path, url: str | None) -> None:
    """Start four workers at once; check that all succeed and that every trial was had once."""
    workers = [started(tmp_path, url, 12) for _ in range(4)]
    ends = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, ends
    numbers = asked([out for out, _ in ends])
    assert sorted(numbers) == list(range(12))
    trials = find_stored_study(open_storage(url, Store(tmp_path / "store")), DEFINITION.name).get_trials()
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 12}
    assert all(trial.values == [trial.params["train.lr"]] for trial in trials)


def test_four_workers_at_once_on_a_fresh_store_all_succeed_and_share_no_trial(tmp_path: Path) -> None:
    together(tmp_path, None)


def test_four_workers_at_once_on_a_fresh_postgresql_all_succeed_and_share_no_trial(
    tmp_path: Path, postgres_url: str
) -> None:
    together(tmp_path, postgres_url)


def test_trial_of_a_killed_worker_is_tried_once_more_with_the_same_settings(tmp_path: Path, warned: list[str]) -> None:
    lost = []
    for _ in range(2):
        worker = started(tmp_path, None, 1, "hang")
        assert worker.stdout is not None
        lost.append(int(worker.stdout.readline().split()[1]))
        worker.send_signal(signal.SIGKILL)
        worker.communicate(timeout=20)
    queue = queue_in(Store(tmp_path / "store"), warned)
    assert queue.ask(1) is None  # it had its second try
    trials = queue.study.get_trials()
    assert lost == [0, 1]
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 2
    assert trials[0].params == trials[1].params
    assert trials[1].system_attrs[REPEAT_OF] == 0
    assert count_begun(trials) == 1


def test_living_trial_of_another_worker_is_left_alone(tmp_path: Path, warned: list[str]) -> None:
    one, other = queue_in(Store(tmp_path), warned), queue_in(Store(tmp_path), warned)
    first, second = one.ask(2), other.ask(2)
    assert first is not None and second is not None
    assert other.ask(2) is None
    assert [trial.state for trial in one.study.get_trials()] == [TrialState.RUNNING] * 2
    assert first.number != second.number


def interrupt_trial(queue: TrialQueue) -> None:
    settings = []
    for _ in range(3):
        trial = queue.ask(1)
        assert trial is not None and trial.number == 0
        assert queue.report(trial, 0.1, 10) is False  # a resumed training reports its curve again
        settings.append(trial.params)
        queue.requeue(trial)
        assert [trial.state for trial in queue.study.get_trials()] == [TrialState.WAITING]
    assert settings[0] == settings[1] == settings[2]
    assert count_begun(queue.study.get_trials()) == 1
    last = queue.ask(1)
    assert last is not None
    queue.tell(last.number, TrialState.COMPLETE, [0.5], {})
    (trial,) = queue.study.get_trials()
    assert (trial.state, trial.values, trial.intermediate_values) == (TrialState.COMPLETE, [0.5], {10: 0.1})


def test_interrupted_trial_has_not_failed_and_goes_on_as_often_as_wanted(queue: TrialQueue) -> None:
    interrupt_trial(queue)


def test_interrupted_trial_in_a_database_has_not_failed_and_goes_on(
    tmp_path: Path, warned: list[str], postgres_url: str
) -> None:
    interrupt_trial(queue_in(Store(tmp_path / "server"), warned, postgres_url, "interrupted"))
    interrupt_trial(queue_in(Store(tmp_path / "file"), warned, f"sqlite:///{tmp_path}/optuna.db", "interrupted"))


def test_interrupted_trial_can_be_taken_by_another_worker_at_once(tmp_path: Path, warned: list[str]) -> None:
    one, other = queue_in(Store(tmp_path), warned), queue_in(Store(tmp_path), warned)
    first = one.ask(1)
    assert first is not None
    one.requeue(first)
    again = other.ask(1)
    assert again is not None and again.number == first.number and again.params == first.params


def test_result_is_kept_while_the_storage_is_away_and_told_by_the_next_who_asks(
    queue: TrialQueue, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = queue.ask(2)
    assert trial is not None

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("server closed the connection")

    with monkeypatch.context() as without:
        without.setattr(queue.study, "tell", away)
        queue.tell(trial.number, TrialState.COMPLETE, [0.5], {"run": "abc"})
    (kept,) = queue.folder.glob("untold-*.json")
    assert json.loads(kept.read_text())["values"] == [0.5]
    assert "server closed the connection" in warned[0] and str(kept) in warned[0]
    queue.ask(2)
    told = queue.study.get_trials()[trial.number]
    assert (told.state, told.values, told.user_attrs["run"]) == (TrialState.COMPLETE, [0.5], "abc")
    assert not kept.exists()


def test_trial_that_nobody_has_as_the_storage_went_away_while_it_was_asked_for_is_tried_again(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has neither a place nor a heartbeat, so that it would be running for ever."""
    queue = queue_in(Store(tmp_path), warned, f"sqlite:///{tmp_path}/optuna.db")
    orphan = queue.study.ask()
    assert queue.ask(1) is None  # another host may be about to take it
    monkeypatch.setattr(trials, "GRACE_S", -1)
    again = queue.ask(1)
    assert again is not None and again.number == orphan.number + 1
    assert [trial.state for trial in queue.study.get_trials()] == [TrialState.FAIL, TrialState.RUNNING]


def test_database_that_does_not_respond_is_a_sentence(tmp_path: Path, warned: list[str]) -> None:
    queue = queue_in(Store(tmp_path), warned, f"sqlite:///{tmp_path}/optuna.db")
    (tmp_path / "optuna.db").write_bytes(b"no database " * 1000)
    with pytest.raises(StoreError, match=r"the sweep's storage does not respond .*repeat the command"), tell_if_away():
        describe_other_studies(queue.study._storage, DEFINITION)


def test_storage_that_is_away_ends_no_trial(
    queue: TrialQueue, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = queue.ask(1)
    assert trial is not None

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(trial, "report", away)
    assert queue.report(trial, 0.1, 10) is False
    assert warned == ["the sweep's storage does not respond (ConnectionError: gone); the trial continues"]


def test_bad_trial_is_pruned_once_others_did_better(queue: TrialQueue) -> None:
    queue.study.pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    for value in (0.5, 0.6):
        good = queue.ask(9)
        assert good is not None
        assert not queue.report(good, value, 10)
        queue.tell(good.number, TrialState.COMPLETE, [value], {})
    bad = queue.ask(9)
    assert bad is not None
    assert queue.report(bad, 0.1, 10)


def test_draws_depend_on_the_trials_so_far_not_on_who_asks(tmp_path: Path, warned: list[str]) -> None:
    drawn = []
    for place in ("one", "two"):
        queue = queue_in(Store(tmp_path / place), warned)
        found = [queue.ask(4) for _ in range(4)]
        drawn.append([trial.params["train.lr"] for trial in found if trial is not None])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4


def test_first_trial_is_the_preset_itself(queue: TrialQueue) -> None:
    enqueue_preset(queue.study, {"train.lr": 2e-3})
    enqueue_preset(queue.study, {"train.lr": 3e-3})  # it has a trial now
    first = queue.ask(5)
    assert first is not None and first.params == {"train.lr": 2e-3}
    assert len(queue.study.get_trials()) == 1


def test_heartbeat_is_recorded_in_a_database(tmp_path: Path, warned: list[str], postgres_url: str) -> None:
    queue = queue_in(Store(tmp_path), warned, postgres_url, "heartbeat")
    trial = queue.ask(1)
    assert trial is not None
    beats: list[int] = []
    storage = queue.study._storage
    record = storage.record_heartbeat  # type: ignore[attr-defined]

    def beaten(trial_id: int) -> None:
        record(trial_id)
        beats.append(trial_id)

    storage.record_heartbeat = beaten  # type: ignore[attr-defined]
    with heartbeat(storage, trial):
        until = time.monotonic() + 10
        while not beats and time.monotonic() < until:
            time.sleep(0.02)
    assert beats[0] == trial._trial_id


def test_trial_of_another_host_is_left_to_its_heartbeat(tmp_path: Path, warned: list[str], postgres_url: str) -> None:
    other = queue_in(Store(tmp_path / "other"), warned, postgres_url, "hosts")
    here = queue_in(Store(tmp_path / "here"), warned, postgres_url, "hosts")
    assert other.ask(2) is not None
    assert here.ask(2) is not None
    assert [trial.state for trial in here.study.get_trials()] == [TrialState.RUNNING] * 2


def test_trial_of_a_host_that_fell_silent_is_failed_and_tried_again(
    tmp_path: Path, warned: list[str], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.sweeps.study.GRACE_S", 1)
    monkeypatch.setattr("bench.sweeps.study.HEARTBEAT_S", 1)
    other = queue_in(Store(tmp_path / "other"), warned, postgres_url, "silent")
    lost = other.ask(1)
    assert lost is not None
    with heartbeat(other.study._storage, lost):
        time.sleep(0.5)
    time.sleep(2.5)  # the database's clock counts in seconds
    again = queue_in(Store(tmp_path / "here"), warned, postgres_url, "silent").ask(1)
    assert again is not None and again.number == lost.number + 1
    assert again.params == lost.params


def test_result_outlasts_a_database_that_goes_and_comes_back(tmp_path: Path, warned: list[str], postgres: Any) -> None:
    queue = queue_in(Store(tmp_path), warned, postgres.url, "away")
    trial = queue.ask(2)
    assert trial is not None
    postgres.stop()
    try:
        assert queue.report(trial, 0.4, 10) is False
        queue.tell(trial.number, TrialState.COMPLETE, [0.5], {"run": "abc"})
    finally:
        assert postgres.start()
    assert len(warned) == 2
    assert len(list(queue.folder.glob("untold-*.json"))) == 1
    assert queue_in(Store(tmp_path), warned, postgres.url, "away").ask(2) is not None  # another process, later
    told = queue_in(Store(tmp_path), warned, postgres.url, "away").study.get_trials()[trial.number]
    assert (told.state, told.values, told.user_attrs["run"]) == (TrialState.COMPLETE, [0.5], "abc")
    assert not list(queue.folder.glob("untold-*.json"))


def test_asking_waits_for_a_database_to_come_back_and_gives_up_in_one_sentence(
    tmp_path: Path, warned: list[str], postgres: Any
) -> None:
    queue = queue_in(Store(tmp_path), warned, postgres.url, "asking")
    postgres.stop()
    try:
        with pytest.raises(
            StoreError, match=r"storage does not respond .*; start it, then repeat the command to resume"
        ):
            queue.ask(1)
    finally:
        assert postgres.start()
    assert len(warned) == 1
    assert queue.ask(1) is not None


def test_study_of_another_space_is_a_study_of_its_own_and_told_of(tmp_path: Path) -> None:
    storage = open_storage(None, Store(tmp_path))
    create_or_join(storage, DEFINITION, ORIGIN, None)
    other = replace(DEFINITION, space=Space("tiny", {"train.lr": Parameter(1e-4, 0.1, log=True)}))
    assert other.name != DEFINITION.name
    assert DEFINITION.name.startswith("synth-validation-v1.now-playing.")
    assert describe_other_studies(storage, DEFINITION) == []
    (sentence,) = describe_other_studies(storage, other)
    assert sentence.endswith("its definition differs: space: parameters: train.lr: high was 0.01, is 0.1")


def test_study_under_its_name_with_another_space_is_refused_with_the_difference(tmp_path: Path) -> None:
    storage = open_storage(None, Store(tmp_path))
    create_or_join(storage, DEFINITION, ORIGIN, "mine")
    create_or_join(storage, DEFINITION, ORIGIN, "mine")
    other = replace(DEFINITION, space=Space("tiny", {"train.lr": Parameter(1e-4, 0.1, log=True)}))
    with pytest.raises(ConfigError, match=r"study mine was started .*: train.lr: high was 0.01, is 0.1; restore that"):
        create_or_join(storage, other, ORIGIN, "mine")


def test_study_is_found_by_the_beginning_of_its_digest(tmp_path: Path) -> None:
    storage = open_storage(None, Store(tmp_path))
    with pytest.raises(ConfigError, match="no study in this store"):
        find_stored_study(storage, "x")
    create_or_join(storage, DEFINITION, ORIGIN, None)
    assert find_stored_study(storage, DEFINITION.name.rpartition(".")[2][:5]).study_name == DEFINITION.name
    with pytest.raises(ConfigError, match="no study called 'other'"):
        find_stored_study(storage, "other")


def test_line_that_a_kill_left_unfinished_in_the_journal_is_cut_off(tmp_path: Path, warned: list[str]) -> None:
    first = queue_in(Store(tmp_path), warned).ask(2)
    assert first is not None
    path = journal_of(Store(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker')
    again = queue_in(Store(tmp_path), warned)
    assert again.ask(3) is not None
    assert path.read_bytes().startswith(whole + b'{"op_code":')
    assert len(again.study.get_trials()) >= 2


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sweeps.db", "--storage must be a URL"),
        ("postgresql+psycopg://me:secret@127.0.0.1:9/sweeps", "the storage postgresql+psycopg://127.0.0.1:9/sweeps"),
        ("postgresql+nothing://localhost/x", "cannot be reached"),
    ],
)
def test_storage_that_cannot_be_reached_is_one_sentence_without_the_password(
    tmp_path: Path, url: str, told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        open_storage(url, Store(tmp_path))
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "secret" not in without_password(url)
