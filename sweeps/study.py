"""A study: what a sweep is defined by, and the storage that its workers share.

A journal file serves one host; a database, given by its URL, serves any number of them. The definition is kept with
the study, and its digest is in the study's name, so that trials of two definitions never meet.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalStorage

from bench.errors import ConfigError, StoreError
from bench.registry import format_unknown
from bench.settings import RunConfig
from bench.store import Store, digest
from bench.sweeps.space import Space, differences

JOURNAL = "journal.log"
DEFINITION, ORIGIN = "definition", "origin"
HEARTBEAT_S = 30
GRACE_S = 120  # without a heartbeat a worker on another host is dead
CREATE_TRIES = 5  # several hosts that make a fresh database's tables at once: one wins, the others find them
RETRIES = 1

Pruner = Literal["median", "hyperband", "none"]


@dataclass(frozen=True)
class Objective:
    """A number by which trials are chosen: which way is better, and where a run's summary has it."""

    direction: Literal["maximize", "minimize"]
    extract: Callable[[dict[str, Any], RunConfig], float]


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
    """All that trials of one study have in common; trials under different ones are never compared."""

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
        """Return the study's name: benchmark with its version, encoder, digest of all of it."""
        return f"{self.benchmark.replace('/', '-')}.{self.encoder}.{digest(self.plain)[:8]}"

    @property
    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """Return which way each objective is better."""
        return [OBJECTIVES[name].direction for name in self.objectives]


@dataclass(frozen=True)
class Origin:
    """How a study was begun, of no weight for its numbers: paths may be other ones on another machine."""

    model: str
    dataset: str | None
    data_root: str | None


class KernelLock:
    """The lock of a journal file: let go by the kernel when its process dies, and mending what that one left."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock_path = FileLock(str(journal.with_name(f"{journal.name}.flock")))

    def acquire(self) -> bool:
        """Wait for the lock, and cut off a line that a kill or a full disk left unfinished."""
        self._lock_path.acquire()
        text = self._journal.read_bytes()[-1:]
        if text not in (b"", b"\n"):
            with self._journal.open("r+b") as file:
                file.truncate(self._journal.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let the lock go."""
        self._lock_path.release()


def journal_of(store: Store) -> Path:
    """Return the file that holds the studies of a store."""
    return store.root / "sweeps" / JOURNAL


def open_storage(url: str | None, store: Store) -> BaseStorage:
    """Return the storage at a URL, or the store's own journal file.

    Raises: ConfigError in one sentence if it cannot be reached.
    """
    silence_optuna()
    if url is None:
        path = journal_of(store)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return JournalStorage(JournalFileBackend(str(path), KernelLock(path)))  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be used: {error}; name another folder with --store") from error
    return _open_database(url)


def silence_optuna() -> None:
    """Keep Optuna from telling of every trial, of parts that it calls experimental, and of heartbeats without it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage")


def _open_database(url: str) -> BaseStorage:
    told = without_password(url)
    if "://" not in url:
        raise ConfigError(f"--storage wants a URL such as postgresql+psycopg://user@host/sweeps, got {told!r}")
    for left in reversed(range(CREATE_TRIES)):
        try:
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True},  # a connection that a restart of the server cut is made anew
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
            )
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{told} needs the library {error.name}; install it (PostgreSQL: pip install 'afp-bench[postgres]')"
            ) from error
        except Exception as error:
            if not left or not _is_create_race(error):
                reason = str(error).splitlines()[0]
                raise ConfigError(
                    f"the storage {told} cannot be reached ({reason}); start it or correct --storage"
                ) from error
            time.sleep(1.0)
    raise AssertionError("the loop returns or raises")


def without_password(url: str) -> str:
    """Return a URL that may be shown."""
    netloc = urlsplit(url).netloc
    return url.replace(netloc, netloc.rpartition("@")[2], 1) if "@" in netloc else url


def _is_create_race(error: Exception) -> bool:
    words = str(error).lower()
    return "already exists" in words or "duplicate key" in words


def join_study(storage: BaseStorage, name: str, pruner: Pruner) -> optuna.Study:
    """Return a study that is there already, as a worker wants it."""
    return optuna.load_study(study_name=name, storage=storage, pruner=_pruner(pruner))


def create_or_join(storage: BaseStorage, definition: Definition, origin: Origin, name: str | None) -> optuna.Study:
    """Return the study of a definition, made if there is none; under another name if the user gave one.

    Raises: ConfigError with the differences if the study of that name has another definition.
    """
    wanted = name or definition.name
    study = optuna.create_study(
        storage=storage, study_name=wanted, directions=definition.directions, load_if_exists=True
    )
    kept = study.user_attrs.get(DEFINITION)
    if kept is None:
        study.set_user_attr(ORIGIN, asdict(origin))
        study.set_user_attr(DEFINITION, definition.plain)
    elif changed := differences(kept, definition.plain):
        raise ConfigError(
            f"the study {wanted} was begun under another definition: {'; '.join(changed)}; put it back as it was, or "
            "leave --study out to begin a new study"
        )
    return study


def describe_other_studies(storage: BaseStorage, definition: Definition) -> list[str]:
    """Return a sentence for each study of the same encoder and benchmark under another definition."""
    found = []
    for study in optuna.get_all_study_summaries(storage):
        kept = study.user_attrs.get(DEFINITION)
        if kept is None or (kept["encoder"], kept["benchmark"]) != (definition.encoder, definition.benchmark):
            continue
        if changed := differences(kept, definition.plain):
            found.append(f"{study.study_name} ({study.n_trials} trials) is another study: {'; '.join(changed)}")
    return found


def find_stored_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Return a study by the beginning of its name, or of the digest that ends it. Raises: ConfigError."""
    names = optuna.get_all_study_names(storage)
    found = [each for each in names if each.startswith(name) or each.rpartition(".")[2].startswith(name)]
    if len(found) != 1:
        problem = f"{len(found)} studies begin with {name!r}" if found else format_unknown("study", name, names)
        raise ConfigError(problem if names else "no study in this store; begin one with `bench sweep --model NAME`")
    return optuna.load_study(study_name=found[0], storage=storage)


def definition_of(study: optuna.Study) -> dict[str, Any]:
    """Return a study's definition. Raises: StoreError if it is none of ours."""
    kept = study.user_attrs.get(DEFINITION)
    if kept is None:
        raise StoreError(f"the study {study.study_name} was not begun by `bench sweep`; name another")
    return dict(kept)


def origin_of(study: optuna.Study) -> Origin:
    """Return how a study was begun. Raises: StoreError if it is none of ours."""
    definition_of(study)
    return Origin(**study.user_attrs[ORIGIN])


def _pruner(name: Pruner) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1, n_min_trials=3)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1)
    return optuna.pruners.NopPruner()
