"""Shards: fixed groups of consecutive tracks, decoded and written by worker processes.

A shard is `shard-00012.i16` (little-endian samples), `shard-00012.words` (the robust hash of
`near_duplicates`) and `shard-00012.parquet` (its rows of the manifest). The rows are written last, so a shard that has
them is complete. Files are renamed only when complete, so a kill loses only the shards in progress.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.audio.decode import PASSING, Decoded, UnreadableNowError
from bench.audio.formats import UNREADABLE_FORMAT
from bench.audio.near_duplicates import hash_words, num_words
from bench.audio.silence import is_silent
from bench.errors import BenchError, DataError, PluginError
from bench.registry import load
from bench.values import FULL_SCALE, INT16_PEAK, RATE_HZ, Progress, Source, Track

MAX_SHARDS = 200  # a reader maps each of them: stay below the 256 open files that some systems allow
MIN_SHARD_TRACKS = 16
POLL_S = 0.3  # between two updates of the progress

UNREADABLE_NOW = "cannot be read now, and is tried again when it is next needed"
NOT_THERE = "there is no such file, or it is a link to nowhere; restore it or leave it out"

Pcm = npt.NDArray[np.int16]


@runtime_checkable
class NotedSource(Protocol):
    """A source that tells what was wrong with the file of a track it could load."""

    def load_noted(self, track: Track) -> Decoded:
        """Return the audio of a track, and the note. Raises: as `Source.load`."""
        ...


@dataclass(frozen=True)
class Shard:
    """One group of tracks to be written; `number` names its files."""

    number: int
    tracks: tuple[Track, ...]


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    """Return the path of a shard's file with this suffix; as `number` is an integer, it is always inside the folder."""
    return folder / f"shard-{int(number):05d}.{suffix}"


def group_tracks(tracks: Sequence[Track]) -> list[Shard]:
    """Return the shards of a listing: always the same for the same number of tracks."""
    size = max(MIN_SHARD_TRACKS, -(-len(tracks) // MAX_SHARDS))
    return [Shard(n, tuple(tracks[start : start + size])) for n, start in enumerate(range(0, len(tracks), size))]


def write_shards(
    folder: Path, source: Source, shards: Sequence[Shard], min_track_s: float, workers: int, progress: Progress
) -> None:
    """Write every missing shard in `workers` processes (in this process if 1).

    Raises: OSError if the disk is full; DataError if a worker process dies.
    """
    missing = [shard for shard in shards if not is_done(folder, shard)]
    total = sum(len(shard.tracks) for shard in shards)

    def show() -> None:
        progress(
            "decode", sum(len(s.tracks) for s in shards if shard_path(folder, s.number, "parquet").exists()), total
        )

    show()
    if workers <= 1 or len(missing) <= 1:
        _write_share(folder, source, missing, min_track_s, show)
    else:
        _write_parallel(folder, source, missing, min_track_s, min(workers, len(missing)), show)


def is_done(folder: Path, shard: Shard) -> bool:
    """Return whether a shard is complete, judged by its rows and the sizes of its files."""
    try:
        rows = pd.read_parquet(shard_path(folder, shard.number, "parquet"))
        sizes = [shard_path(folder, shard.number, suffix).stat().st_size for suffix in ("i16", "words")]
    except (OSError, ValueError):
        return False
    stored = rows.loc[rows["shard"] >= 0, "num_samples"]
    return sizes == [2 * int(stored.sum()), 4 * sum(num_words(n) for n in stored)]


def _write_parallel(
    folder: Path, source: Source, missing: list[Shard], min_track_s: float, workers: int, show: Callable[[], None]
) -> None:
    # spawn, not fork: the caller may have threads and a CUDA context, neither of which survives a fork
    context = multiprocessing.get_context("spawn")
    errors: Any = context.SimpleQueue()
    packed = _pack_source(source)
    processes = [
        context.Process(target=_work, args=(folder, packed, missing[n::workers], min_track_s, errors), daemon=True)
        for n in range(workers)
    ]
    try:
        with _ignore_interrupts():
            for process in processes:
                process.start()
        while any(process.is_alive() for process in processes):
            next((process for process in processes if process.is_alive()), processes[0]).join(POLL_S)
            show()
            if any(process.exitcode for process in processes):
                break
        if not errors.empty():
            raise errors.get()
        if any(process.exitcode for process in processes):
            raise DataError(_death_message(folder, missing, killed=any((p.exitcode or 0) < 0 for p in processes)))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            if process.pid:
                process.join()


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C meanwhile: processes started here inherit that, because their parent ends them itself."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives the signal and may set its handler
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _write_share(
    folder: Path, source: Source, share: Sequence[Shard], min_track_s: float, show: Callable[[], None]
) -> None:
    for shard in share:
        write_shard(folder, source, shard, min_track_s)
        show()


def write_shard(folder: Path, source: Source, shard: Shard, min_track_s: float) -> None:
    """Decode the tracks of one shard and write its files. A bad audio file raises no error: its row names the problem.

    Raises: OSError if they cannot be written; incomplete files are removed.
    """
    parts = {
        suffix: folder / f".shard-{shard.number:05d}.{suffix}.{os.getpid()}.tmp"
        for suffix in ("i16", "words", "parquet")
    }
    rows: list[dict[str, Any]] = []
    offset = 0
    try:
        with parts["i16"].open("wb") as samples, parts["words"].open("wb") as words:
            for track in shard.tracks:
                row, pcm_T = decode_track(source, track, min_track_s)
                if len(pcm_T):
                    row |= {"shard": shard.number, "offset": offset}
                    samples.write(pcm_T.tobytes())
                    words.write(hash_words(pcm_T).astype("<u4").tobytes())
                    offset += len(pcm_T)
                rows.append(row)
        pd.DataFrame(rows).to_parquet(parts["parquet"], index=False)
        for suffix, part in parts.items():
            os.replace(part, shard_path(folder, shard.number, suffix))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def decode_track(source: Source, track: Track, min_track_s: float) -> tuple[dict[str, Any], Pcm]:
    """Return a track's row of the manifest and its samples, which are empty unless its status is ok.

    The reason of an ok row says what was wrong with its file (cut off, longer than its header says), if anything was.
    """
    row: dict[str, Any] = {
        "id": track.id,
        "path": track.path,
        "licence": track.licence,
        "label": track.label,
        "split": track.split,
        "status": "ok",
        "reason": "",
        "sha256": "",
        "num_samples": 0,
        "gain": 1.0,
        "shard": -1,
        "offset": -1,
    }
    no_samples = np.zeros(0, "<i2")
    if track.problem:
        status = "missing" if track.problem == "missing" else "unreadable"
        status = "format" if track.problem.startswith(UNREADABLE_FORMAT) else status
        reason = NOT_THERE if status == "missing" else track.problem
        return row | {"status": status, "reason": reason}, no_samples
    try:
        audio, row["reason"] = _load_noted(source, track)
        wave_T = _check_wave(audio)
    except MemoryError:
        raise  # not the file's fault
    except OSError as error:
        if error.errno not in (None, *PASSING):
            raise  # such as a drive that drops out: half a corpus must not pass for the whole
        reason = f"{UNREADABLE_NOW} ({error})" if error.errno else str(error)
        return row | {"status": "unreadable", "reason": reason}, no_samples
    except UnreadableNowError as error:
        return row | {"status": "unreadable", "reason": f"{UNREADABLE_NOW} ({error})"}, no_samples
    except Exception as error:  # a plug-in's decoder may raise any error; one bad track never stops the rest
        reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        return row | {"status": "unreadable", "reason": reason}, no_samples
    peak = float(np.abs(wave_T).max(initial=0.0))
    gain = 1.0 if peak <= 1 else 1 / peak
    pcm_T = np.clip(np.rint(wave_T * np.float32(gain * FULL_SCALE)), -FULL_SCALE, INT16_PEAK).astype("<i2")
    row |= {"num_samples": len(pcm_T), "gain": gain, "sha256": hashlib.sha256(pcm_T.tobytes()).hexdigest()}
    if len(pcm_T) < min_track_s * RATE_HZ:
        reason = f"{len(pcm_T) / RATE_HZ:.2f} s, shorter than {min_track_s:g} s"
        return row | {"status": "short", "reason": reason}, no_samples
    if is_silent(wave_T):
        quiet = f"peak {peak:.1e} of full scale, below -60 dBFS"
        return row | {"status": "silent", "reason": "; it ".join(filter(None, (quiet, str(row["reason"]))))}, no_samples
    return row, pcm_T


def _load_noted(source: Source, track: Track) -> tuple[object, str]:
    """Return a track's audio, and what was wrong with its file if the source can tell."""
    if isinstance(source, NotedSource):
        decoded = source.load_noted(track)
        return decoded.wave_T, decoded.note
    return source.load(track), ""


def _check_wave(audio: object) -> npt.NDArray[np.float32]:
    wave_T = np.asarray(audio, np.float32)
    if wave_T.ndim != 1:
        raise DataError(f"audio must have the shape (T,), got {wave_T.shape}")
    if not np.isfinite(wave_T).all():
        raise DataError("audio holds NaN or infinite samples")
    return wave_T


def _pack_source(source: Source) -> tuple[str, bytes]:
    """Return the file of a source's plug-in, empty unless given as a path, and the source pickled for a worker."""
    module = sys.modules[type(source).__module__]
    plugin = str(module.__file__) if module.__name__.startswith("bench_plugin_") else ""
    try:
        return plugin, pickle.dumps(source)
    except Exception as error:
        raise PluginError(f"data set of type {type(source).__name__} cannot be sent to workers: {error}") from error


def _work(folder: Path, packed: tuple[str, bytes], share: Sequence[Shard], min_track_s: float, errors: Any) -> None:
    """Write a share of the shards; the main function of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # the mp3 decoder writes a line for every frame that it repairs
    plugin, pickled = packed
    try:
        if plugin:
            load("dataset", plugin)  # gives its module the name under which it was pickled
        _write_share(folder, pickle.loads(pickled), share, min_track_s, lambda: None)
    except Exception as error:
        known = isinstance(error, (OSError, BenchError))
        errors.put(error if known else RuntimeError(traceback.format_exc()))
        sys.exit(1)


def _end_with_parent() -> None:
    """End this worker when its parent ends, even by a kill: it would otherwise go on writing without the lock."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _death_message(folder: Path, missing: Sequence[Shard], killed: bool) -> str:
    in_progress = [s for s in missing if list(folder.glob(f".shard-{s.number:05d}.i16.*"))]
    if not in_progress and killed:
        return "a decoding process was killed before its first track; run the same command again to continue"
    if not in_progress:
        return (
            "no decoding process could start; a script that prepares a corpus must do so below "
            "`if __name__ == '__main__':`, or with one worker"
        )
    first = ", ".join(f"{s.tracks[0].id} to {s.tracks[-1].id}" for s in in_progress)
    return (
        f"a decoding process died (out of memory, killed, or crashed by a file) among the tracks {first}; "
        f"run the same command again to continue, without the file that crashes it"
    )
