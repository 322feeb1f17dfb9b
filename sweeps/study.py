"""Studies: the definition of a sweep, and the storage that its workers share.

A journal file serves one host; a database, given by its URL, serves any number of hosts. The definition is stored with
the study, and its digest is part of the study's name, so that trials of different definitions are never mixed.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalStorage

from bench import console
from bench.errors import ConfigError, StoreError
from bench.logbook import check_storage, first_line, redact, without_password
from bench.registry import format_unknown
from bench.settings import RunConfig
from bench.store import Store, digest
from bench.sweeps.journal import mend_journal
from bench.sweeps.space import Space, differences

JOURNAL = "journal.log"
DEFINITION, ORIGIN = "definition", "origin"
HEARTBEAT_S = 30
GRACE_S = 120  # without a heartbeat for this long, a worker on another host counts as dead
CREATE_TRIES = 5  # if several hosts create the tables of a new database at once, one succeeds and the others retry
RETRIES = 1  # of a trial whose worker died

Pruner = Literal["median", "hyperband", "none"]


@dataclass(frozen=True)
class Objective:
    """A number by which trials are selected."""

    direction: Literal["maximize", "minimize"]
    """Whether more or less is better."""

    extract: Callable[[dict[str, Any], RunConfig], float]
    """Returns the number from the summary and the settings of a run."""


def _bytes_per_s(summary: dict[str, Any], config: RunConfig) -> float:
    return float(4 * summary["dim"] * 1000 / config.eval.hop_ms)


def _segments_per_s(summary: dict[str, Any], config: RunConfig) -> float:
    return float(summary["database_vectors"] / summary["seconds"]["database"])


OBJECTIVES = {
    "segment_top1": Objective("maximize", lambda summary, config: float(summary["headline"]["segment_top1/mean"])),
    "bytes_per_s": Objective("minimize", _bytes_per_s),  # of audio in the database, in float32
    "segments_per_s": Objective("maximize", _segments_per_s),  # embedded, on the worker's machine
}


@dataclass(frozen=True)
class Definition:
    """All that the trials of one study have in common; trials of different definitions are never compared."""

    encoder: str
    benchmark: str
    data: str
    source: str
    version: str
    overrides: tuple[str, ...]
    objectives: tuple[str, ...]
    space: Space

    @property
    def name(self) -> str:
        """Return the name of the study: benchmark with its version, encoder, and a digest of the whole definition."""
        return f"{self.benchmark.replace('/', '-')}.{self.encoder}.{digest(self.plain)[:8]}"

    @property
    def plain(self) -> dict[str, Any]:
        """Return the definition as plain values of JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """Return the direction of each objective."""
        return [OBJECTIVES[name].direction for name in self.objectives]


@dataclass(frozen=True)
class Origin:
    """How a study was started. It does not affect results: paths may differ on another machine."""

    model: str
    dataset: str | None
    data_root: str | None


class KernelLock:
    """The lock of a journal file. The kernel releases it if its process dies; the next holder repairs the file."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock_path = FileLock(str(journal.with_name(f"{journal.name}.flock")))

    def acquire(self) -> bool:
        """Wait for the lock, and remove an unfinished last line left by a kill or a full disk."""
        self._lock_path.acquire()
        last_byte = self._journal.read_bytes()[-1:]
        if last_byte not in (b"", b"\n"):
            with self._journal.open("r+b") as file:
                file.truncate(self._journal.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock_path.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


def journal_of(store: Store) -> Path:
    """Return the file that holds the studies of a store."""
    return store.root / "sweeps" / JOURNAL


def open_storage(url: str | None, store: Store, warn: Callable[[str], None] = console.warn) -> BaseStorage:
    """Return the storage at a URL, or the journal file of the store if `url` is None.

    Damaged lines of the journal are left out, and `warn` is told which.
    Raises: ConfigError with a message of one line if the storage cannot be reached, or is MLflow's database.
    """
    silence_optuna()
    if url is not None:
        return _open_database(url, store)
    path = journal_of(store)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with KernelLock(path):
            sentences = mend_journal(path)
        for sentence in sentences:
            warn(sentence)
        return JournalStorage(JournalFileBackend(str(path), KernelLock(path)))  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be used: {error}; name another folder with --store") from error


@contextmanager
def tell_if_away() -> Iterator[None]:
    """Raise StoreError in place of what Optuna raises while a database does not respond."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        reason = first_line(error.__cause__ or error)
        raise StoreError(
            f"the sweep's storage does not respond ({reason}); start it, then repeat the command to resume"
        ) from error


def silence_optuna() -> None:
    """Turn off what Optuna logs of each trial, and its warnings of experimental features and missing heartbeats."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage")


def _open_database(url: str, store: Store) -> BaseStorage:
    shown_url = without_password(url)
    if "://" not in url:
        raise ConfigError(f"--storage must be a URL such as postgresql+psycopg://user@host/sweeps, got {shown_url!r}")
    check_storage(url, store.root)
    for tries_left in reversed(range(CREATE_TRIES)):
        try:
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True},  # reconnect after a restart of the server
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
            )
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{shown_url} needs the library {error.name}; install it "
                "(for PostgreSQL: pip install 'afp-bench[postgres]')"
            ) from error
        except Exception as error:
            if not tries_left or not _is_create_race(error):
                reason = redact(str(error).splitlines()[0], url)
                raise ConfigError(
                    f"the storage {shown_url} cannot be reached ({reason}); start it or correct --storage"
                ) from error
            time.sleep(1.0)
    raise AssertionError("the loop returns or raises")


def _is_create_race(error: Exception) -> bool:
    message = str(error).lower()
    return "already exists" in message or "duplicate key" in message


def join_study(storage: BaseStorage, name: str, pruner: Pruner) -> optuna.Study:
    """Return an existing study, with the pruner that a worker uses."""
    return optuna.load_study(study_name=name, storage=storage, pruner=_pruner(pruner))


def create_or_join(storage: BaseStorage, definition: Definition, origin: Origin, name: str | None) -> optuna.Study:
    """Return the study of a definition, creating it if there is none; `name` replaces the name of the definition.

    Raises: ConfigError with the differences if the study of that name has another definition.
    """
    study_name = name or definition.name
    study = optuna.create_study(
        storage=storage, study_name=study_name, directions=definition.directions, load_if_exists=True
    )
    stored = study.user_attrs.get(DEFINITION)
    if stored is None:
        study.set_user_attr(ORIGIN, asdict(origin))
        study.set_user_attr(DEFINITION, definition.plain)
    elif changed := differences(stored, definition.plain):
        raise ConfigError(
            f"the study {study_name} was started with another definition: {'; '.join(changed)}; restore that "
            "definition, or omit --study to start a new study"
        )
    return study


def describe_other_studies(storage: BaseStorage, definition: Definition) -> list[str]:
    """Return a sentence for each study of the same encoder and benchmark that has another definition."""
    sentences = []
    for study in optuna.get_all_study_summaries(storage):
        stored = study.user_attrs.get(DEFINITION)
        if stored is None or (stored["encoder"], stored["benchmark"]) != (definition.encoder, definition.benchmark):
            continue
        if changed := differences(stored, definition.plain):
            sentences.append(
                f"the earlier study {study.study_name} ({study.n_trials} trials) is not continued, because its "
                f"definition differs: {'; '.join(changed)}"
            )
    return sentences


def find_stored_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Return the study whose name, or the digest at its end, starts with `name`.

    Raises: ConfigError if no study matches, or more than one.
    """
    names = optuna.get_all_study_names(storage)
    matches = [each for each in names if each.startswith(name) or each.rpartition(".")[2].startswith(name)]
    if len(matches) != 1:
        several = f"{len(matches)} studies start with {name!r}; give more characters"
        problem = several if matches else format_unknown("study", name, names)
        raise ConfigError(problem if names else "no study in this store; start one with `bench sweep --model NAME`")
    return optuna.load_study(study_name=matches[0], storage=storage)


def definition_of(study: optuna.Study) -> dict[str, Any]:
    """Return the definition of a study. Raises: StoreError if the study was not created by `bench sweep`."""
    stored = study.user_attrs.get(DEFINITION)
    if stored is None:
        raise StoreError(f"the study {study.study_name} was not created by `bench sweep`; name another")
    return dict(stored)


def origin_of(study: optuna.Study) -> Origin:
    """Return how a study was started. Raises: StoreError if the study was not created by `bench sweep`."""
    definition_of(study)
    return Origin(**study.user_attrs[ORIGIN])


def _pruner(name: Pruner) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1, n_min_trials=3)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1)
    return optuna.pruners.NopPruner()
