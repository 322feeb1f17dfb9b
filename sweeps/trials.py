"""Asking for a trial and telling its end, so that no trial is trained twice, lost or left running for ever.

Asking is serialised on each host by a file lock. A trial at work holds a lock of its own that the kernel lets go when
its process dies, so that the next who asks finds it dead at once; on other hosts it is the heartbeat in the database.
A dead trial is failed and asked again once: it has the same settings, so that its training goes on from its checkpoint.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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
from bench.sweeps.study import HEARTBEAT_S, RETRIES

REPEAT_OF = "failed_trial"  # Optuna's own mark of a trial that repeats a dead one
HOST_ID = "place"
RUN, SECONDS, REASON = "run", "seconds", "reason"
STARTUP_TRIALS = 5  # drawn at random before the sampler learns from them
PAUSES_S = (10.0,) * 30  # five minutes for a storage that is away to come back


@dataclass
class TrialQueue:
    """Where one worker asks and tells. `folder` holds the locks and the answers that could not be told."""

    study: optuna.Study
    space: Space
    folder: Path
    warn: Callable[[str], None]
    pauses_s: tuple[float, ...] = PAUSES_S
    _locks: dict[int, FileLock] = field(default_factory=dict)

    def ask(self, wanted: int) -> Trial | None:
        """Return a trial to run, that of a dead worker first; None if `wanted` were begun already.

        Raises: StoreError if the storage is away and does not come back.
        """
        for pause_s in self.pauses_s:
            try:
                return self._try_ask(wanted)
            except Exception as error:
                told = f"the sweep's storage does not answer ({first_line(error)})"
                self.warn(f"{told}; asking again in {pause_s:g} s")
                time.sleep(pause_s)
        raise StoreError(f"{told}; start it, then the same command goes on")

    def _try_ask(self, wanted: int) -> Trial | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._ask_lock():
            self.deliver()
            self._fail_dead()
            trials = self.study.get_trials(deepcopy=False)
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and count_begun(trials) >= wanted:
                return None
            self.study.sampler = _sampler(self.study, len(trials))
            trial = self.study.ask(distributions(self.space))
            lock = FileLock(str(self._lock_path(trial.number)))
            lock.acquire(timeout=0)
            self._locks[trial.number] = lock
            trial.set_user_attr(HOST_ID, self._host_id)
        return trial

    def report(self, trial: Trial, value: float, step: int) -> bool:
        """Report a validation; return whether the trial should be ended. A storage that is away ends nothing."""
        if len(self.study.directions) > 1:  # Optuna prunes by one objective alone
            return False
        try:
            trial.report(value, step)
            return trial.should_prune()
        except Exception as error:
            self.warn(f"the sweep's storage does not answer ({first_line(error)}); the trial goes on")
            return False

    def tell(self, number: int, state: TrialState, values: list[float] | None, attrs: dict[str, Any]) -> None:
        """Tell the end of a trial; where the storage is away, keep it on disk to be told by whoever comes next."""
        write_json(self._pending_path(number), {"state": state.name, "values": values, "attrs": attrs})
        for pause_s in (*self.pauses_s, 0.0):
            try:
                with self._ask_lock():  # else who asks may tell it at the same moment
                    self._deliver(number)
                break
            except Exception as error:
                told = f"trial {number} could not be told to the study ({first_line(error)}); its result is kept"
                time.sleep(pause_s)
        else:
            self.warn(f"{told} in {self._pending_path(number)} and told with the next `bench sweep`")
        self.release(number)

    def requeue(self, trial: Trial) -> None:
        """Fail a trial that the user interrupted, and put it back: it goes on from its checkpoint next time."""
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        with suppress(Exception):  # the storage may be what is gone; the next who asks finds the trial dead
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.add_trial(_repeat_trial(frozen))
        self.release(trial.number)

    def release(self, number: int) -> None:
        """Let the lock of a trial go."""
        if number in self._locks:
            self._locks.pop(number).release()
            self._lock_path(number).unlink(missing_ok=True)

    def deliver(self) -> None:
        """Tell what could not be told before. Raises: whatever the storage raises."""
        for path in sorted(self.folder.glob("untold-*.json")):
            self._deliver(int(path.stem.partition("-")[2]))

    def _deliver(self, number: int) -> None:
        if not self._pending_path(number).is_file():
            return  # somebody else has told it
        told = read_json(self._pending_path(number))
        trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
        # If others thought it dead meanwhile it is asked again, and finds its result in the store.
        with suppress(optuna.exceptions.UpdateFinishedTrialError, RuntimeError, ValueError):
            for name, value in told["attrs"].items():
                self.study._storage.set_trial_user_attr(trial_id, name, value)
            self.study.tell(number, told["values"], TrialState[told["state"]])
        self._pending_path(number).unlink()

    def _fail_dead(self) -> None:
        fail_stale_trials(self.study)  # of other hosts, by the heartbeat
        repeat = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            here = trial.user_attrs.get(HOST_ID) == self._host_id or not _has_heartbeat(self.study._storage)
            if not here or trial.number in self._locks or self._is_held(trial.number):
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
        """Return what names this host and this store, within which locks are seen; a journal has one such place."""
        return digest(socket.gethostname(), str(self.folder.resolve()))

    def _lock_path(self, number: int) -> Path:
        return self.folder / f"trial-{number}.lock"

    def _pending_path(self, number: int) -> Path:
        return self.folder / f"untold-{number}.json"


def count_begun(trials: list[FrozenTrial]) -> int:
    """Return how many trials were begun, one that repeats a dead one not counted again."""
    return sum(REPEAT_OF not in trial.system_attrs for trial in trials)


def enqueue_preset(study: optuna.Study, params: dict[str, Any]) -> None:
    """Put the preset's own settings first in a study that has no trial, so that it is among those compared."""
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(params)


@contextmanager
def heartbeat(storage: BaseStorage, trial: Trial) -> Iterator[None]:
    """Let other hosts see in the database that a trial is alive. A journal file needs none: it serves one host."""
    if not _has_heartbeat(storage):
        yield
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            with suppress(Exception):  # while the database is away nobody else can take the trial for dead either
                storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
            stop.wait(HEARTBEAT_S)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _has_heartbeat(storage: BaseStorage) -> bool:
    """Say whether it is a database, which any number of hosts share; a journal file serves one."""
    return hasattr(storage, "record_heartbeat")


def _repeat_trial(trial: FrozenTrial) -> FrozenTrial:
    """Return a waiting trial with the settings of another; an interruption does not use up its one retry."""
    history = {name: value for name, value in trial.system_attrs.items() if name == "retry_history"}
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs={REPEAT_OF: trial.number} | history,
    )


def _sampler(study: optuna.Study, num_trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of the next trial: its draws depend on the study and the trials so far, not on the worker."""
    seed = int(digest(study.study_name, num_trials)[:8], 16)
    return optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed)
