"""The store: the output of every stage, in a folder named by its content key.

A stage whose key is in the store is skipped, so that running again is resuming. A stage is built in a partial folder,
which is renamed when it is complete. A kill at any instant therefore leaves a whole output, or a part that the next run
continues, but never a part that looks whole.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bench.errors import StoreError
from bench.timing import Timer, untimed

if TYPE_CHECKING:  # heavy, and needed by readers and writers of tables alone
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

STAGE = "stage.json"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
ADDED_LATER = {"bench.added_later": True}  # metadata of a setting that keys leave out where it has its default
KEY_LENGTH = 16  # hex digits, which are 64 bits: no collision is expected below a billion stages


def digest(*parts: object) -> str:
    """Return the content key of any nesting of dataclasses, dicts, sequences, paths and plain values."""
    text = json.dumps(parts, sort_keys=True, default=_plain, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def decisive_settings(value: Any) -> Any:
    """Return settings as plain values for a key, as `asdict` does, but without those ADDED_LATER at their default.

    Why: a new setting that is not used changes no result, so that what is in the store stays found.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: decisive_settings(getattr(value, item.name))
            for item in fields(value)
            if item.metadata != ADDED_LATER or getattr(value, item.name) != _default_of(item)
        }
    if isinstance(value, dict):
        return {name: decisive_settings(item) for name, item in value.items()}
    return [decisive_settings(item) for item in value] if isinstance(value, (list, tuple)) else value


def _default_of(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: decisive_settings(value)}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no stable text for {type(value).__name__}")


@dataclass(frozen=True)
class Store:
    """A folder of stage outputs, which any number of processes on one host can share."""

    root: Path

    timed: Timer = untimed
    """Called around each build, by its kind, and around the parts of stages."""

    def folder(self, kind: str, key: str) -> Path:
        """Return the folder of the finished output of this kind and key, whether it exists or not."""
        return self.root / kind / key

    def partial(self, kind: str, key: str) -> Path:
        """Return the folder in which an output of this kind and key is built."""
        return self.root / kind / f"{key}.partial"

    def seconds(self, kind: str, key: str) -> float:
        """Return how long the build of a finished output took; work before a kill is not counted."""
        return float(read_json(self.folder(kind, key) / STAGE)["seconds"])

    def fetch(self, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        """Return the folder of the finished output of this kind and key, building it first if it is absent.

        `build` receives the partial folder, which may hold what an interrupted build left there.
        If two processes fetch the same key, one builds it and the other waits.
        Raises: StoreError if the disk is full or the folder cannot be written.
        """
        final = self.folder(kind, key)
        if final.is_dir():
            return final
        partial = self.partial(kind, key)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(final.with_name(f"{key}.lock"))):
                if not final.is_dir():
                    partial.mkdir(exist_ok=True)
                    began_s = time.perf_counter()
                    with self.timed(kind):
                        build(partial)
                    write_json(partial / STAGE, {"seconds": time.perf_counter() - began_s})
                    os.replace(partial, final)
        except OSError as error:
            if error.errno not in (None, *UNWRITABLE):  # numpy's "requested and written" has no number
                raise
            raise StoreError(
                f"cannot write {kind} in the store {self.root}: {error.strerror or error}; free some space or "
                f"choose another folder with --store, then run the same command again to continue"
            ) from error
        return final


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; then it becomes `path`, so that a reader sees the old content or the new, never a part.

    It may be made a file, or a folder, which replaces no other. What killed writers of the same path left is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not _is_alive(left.name.split(".")[-2]):
            _remove(left)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):  # not a file of ours, or of another user's process
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a value as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of the store.

    Raises: StoreError naming the file if it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _build_damage_error(path, error) from error


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame as Parquet, atomically."""
    with write_whole(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_frame(path: Path) -> pd.DataFrame:
    """Return the frame in a Parquet file of the store. Raises: StoreError naming the file if it is damaged."""
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise _build_damage_error(path, error) from error


def read_array(path: Path) -> npt.NDArray[np.float32]:
    """Return the array in a .npy file of the store, memory-mapped. Raises: StoreError naming a damaged file."""
    import numpy as np

    try:
        array: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _build_damage_error(path, error) from error
    return array


def create_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
    """Return a new .npy file, memory-mapped for writing, whose space on the disk is taken already.

    A map of a full disk cannot raise an error when it is written to: the process would be killed by SIGBUS.
    Raises: OSError if there is no space.
    """
    import numpy as np

    array: np.memmap[Any, np.dtype[np.float32]] = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=shape
    )
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _build_damage_error(path: Path, error: Exception) -> StoreError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return StoreError(f"{path} is damaged ({reason}); delete the folder {path.parent} and run again")
