"""The queue of trials: no trial is trained twice, lost, or left running for ever.

A worker asks Optuna for a trial, and tells it the result. On each host, a file lock serialises asking. A running trial
holds a lock that the kernel releases when its process dies, so the next worker that asks finds the dead trial at once;
a trial of another host is dead if its heartbeat in the database stops. A dead trial is marked as failed and queued
again, once: it has the same settings, so its training resumes from its checkpoint.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from bench.errors import StoreError
from bench.logbook import first_line
from bench.store import digest, read_json, write_json
from bench.sweeps.space import Space, distributions
from bench.sweeps.study import GRACE_S, HEARTBEAT_S, RETRIES

REPEAT_OF = "failed_trial"  # the attribute by which Optuna marks a trial that repeats a dead one
HOST_ID = "place"  # attribute of a trial: where its lock can be seen
RUN, SECONDS, REASON = "run", "seconds", "reason"
STARTUP_TRIALS = 5  # drawn at random before the sampler learns from them
PAUSES_S = (10.0,) * 30  # wait five minutes for a storage that does not respond


@dataclass
class TrialQueue:
    """One worker's access to the trials of a study."""

    study: optuna.Study
    space: Space
    folder: Path
    """Holds the locks, and the results that could not be reported yet."""

    warn: Callable[[str], None]
    pauses_s: tuple[float, ...] = PAUSES_S
    """Pauses between the attempts to reach a storage that does not respond."""

    _locks: dict[int, FileLock] = field(default_factory=dict)

    def ask(self, num_trials: int) -> Trial | None:
        """Return a trial to run, those of dead workers first; None if `num_trials` trials were already started.

        Raises: StoreError if the storage does not respond within `pauses_s`.
        """
        for pause_s in self.pauses_s:
            try:
                return self._try_ask(num_trials)
            except Exception as error:
                problem = f"the sweep's storage does not respond ({first_line(error)})"
                self.warn(f"{problem}; trying again in {pause_s:g} s")
                time.sleep(pause_s)
        raise StoreError(f"{problem}; start it, then repeat the command to resume")

    def _try_ask(self, num_trials: int) -> Trial | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._ask_lock():
            self.deliver()
            self._fail_dead()
            trials = self.study.get_trials(deepcopy=False)
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and count_begun(trials) >= num_trials:
                return None
            self.study.sampler = _sampler(self.study, len(trials))
            trial = self.study.ask(distributions(self.space))
            lock = FileLock(str(self._lock_path(trial.number)))
            lock.acquire(timeout=0)
            self._locks[trial.number] = lock
            try:
                trial.set_user_attr(HOST_ID, self._host_id)
            except Exception:
                self.release(trial.number)  # nobody's now
                raise
        return trial

    def report(self, trial: Trial, value: float, step: int) -> bool:
        """Report a validation; return whether to prune the trial. It continues if the storage does not respond."""
        if len(self.study.directions) > 1:  # Optuna prunes by a single objective only
            return False
        try:
            if step not in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:  # of a resumed one
                trial.report(value, step)
            return trial.should_prune()
        except Exception as error:
            self.warn(f"the sweep's storage does not respond ({first_line(error)}); the trial continues")
            return False

    def tell(self, number: int, state: TrialState, values: list[float] | None, attrs: dict[str, Any]) -> None:
        """Report the end of a trial; while the storage does not respond, keep it on disk for a later worker."""
        write_json(self._pending_path(number), {"state": state.name, "values": values, "attrs": attrs})
        for pause_s in (*self.pauses_s, 0.0):
            try:
                with self._ask_lock():  # otherwise another worker might report it at the same time
                    self._deliver(number)
                break
            except Exception as error:
                problem = f"the result of trial {number} could not be reported to the study ({first_line(error)})"
                time.sleep(pause_s)
        else:
            self.warn(f"{problem}; it is kept in {self._pending_path(number)}, and the next `bench sweep` reports it")
        self.release(number)

    def requeue(self, trial: Trial) -> None:
        """Let an interrupted trial wait for a worker that resumes it from its checkpoint; it has not failed."""
        with suppress(Exception), self._ask_lock():  # without a storage, the next worker that asks finds it dead
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            self.release(trial.number)
        self.release(trial.number)

    def release(self, number: int) -> None:
        """Release the lock of a trial."""
        if number in self._locks:
            self._locks.pop(number).release()
            self._lock_path(number).unlink(missing_ok=True)

    def deliver(self) -> None:
        """Report the results that could not be reported before. Raises: any exception of the storage."""
        for path in sorted(self.folder.glob("untold-*.json")):
            self._deliver(int(path.stem.partition("-")[2]))

    def _deliver(self, number: int) -> None:
        if not self._pending_path(number).is_file():
            return  # another worker has reported it
        result = read_json(self._pending_path(number))
        trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
        # If another host considered the trial dead, it was queued again, and its repeat finds the result in the store.
        with suppress(optuna.exceptions.UpdateFinishedTrialError, RuntimeError, ValueError):
            for name, value in result["attrs"].items():
                self.study._storage.set_trial_user_attr(trial_id, name, value)
            self.study.tell(number, result["values"], TrialState[result["state"]])
        self._pending_path(number).unlink()

    def _fail_dead(self) -> None:
        """Mark dead trials as failed, and queue each again once."""
        fail_stale_trials(self.study)  # those of other hosts, by their heartbeat
        repeat = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            is_local = trial.user_attrs.get(HOST_ID) == self._host_id or not _has_heartbeat(self.study._storage)
            is_nobodys = (
                HOST_ID not in trial.user_attrs and _age_s(trial) > GRACE_S
            )  # the storage went away during `ask`
            if not (is_local or is_nobodys) or trial.number in self._locks or self._is_held(trial.number):
                continue
            self.study.tell(trial.number, state=TrialState.FAIL)
            repeat(self.study, self.study.get_trials(deepcopy=True)[trial.number])

    def _is_held(self, number: int) -> bool:
        try:
            with FileLock(str(self._lock_path(number)), timeout=0):
                return False
        except Timeout:
            return True

    def _ask_lock(self) -> FileLock:
        return FileLock(str(self.folder / "ask.lock"))

    @property
    def _host_id(self) -> str:
        """Return an id of this host and store, within which locks can be seen; a journal file has only one."""
        return digest(socket.gethostname(), str(self.folder.resolve()))

    def _lock_path(self, number: int) -> Path:
        return self.folder / f"trial-{number}.lock"

    def _pending_path(self, number: int) -> Path:
        return self.folder / f"untold-{number}.json"


def count_begun(trials: list[FrozenTrial]) -> int:
    """Return how many trials were started; a repeat of a dead trial is not counted."""
    return sum(REPEAT_OF not in trial.system_attrs for trial in trials)


def enqueue_preset(study: optuna.Study, params: dict[str, Any]) -> None:
    """Queue the settings of the preset as the first trial of a study without trials, so that it is compared as well."""
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(params)


@contextmanager
def heartbeat(storage: BaseStorage, trial: Trial) -> Iterator[None]:
    """Record in a database that a trial is alive, for other hosts to see. Does nothing for a journal file."""
    if not _has_heartbeat(storage):
        yield
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            with suppress(Exception):  # while the database is down, no other host can declare the trial dead either
                storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
            stop.wait(HEARTBEAT_S)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _age_s(trial: FrozenTrial) -> float:
    return (datetime.now() - trial.datetime_start).total_seconds() if trial.datetime_start else 0.0


def _has_heartbeat(storage: BaseStorage) -> bool:
    """Return whether the storage is a database, shared by any number of hosts; a journal file serves one."""
    return hasattr(storage, "record_heartbeat")


def _sampler(study: optuna.Study, num_trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of the next trial. Its draws depend on the study and its trials so far, not on the worker."""
    seed = int(digest(study.study_name, num_trials)[:8], 16)
    return optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed)
