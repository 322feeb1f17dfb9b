"""The prepared corpus: every usable track as 16 kHz mono int16, memory-mapped, with a Parquet manifest."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.audio import near_duplicates
from bench.audio.decode import decoder_version
from bench.audio.manifest import NEAR_DUPLICATE, group_copies, merge_shards, strip_near_duplicate
from bench.audio.shards import UNREADABLE_NOW, Shard, decode_track, group_tracks, shard_path, write_shards
from bench.errors import DataError, PluginError, StoreError
from bench.store import Store, digest, read_json, write_json
from bench.values import Ints, Progress, Source, Split, Track, no_progress

FORMAT = "pcm/1"
MANIFEST = "manifest.parquet"
SUPERSEDED = "superseded.json"  # names the corpus that has more of the tracks
COLUMNS = (
    "id",
    "path",
    "licence",
    "label",
    "split",
    "status",
    "reason",
    "sha256",
    "num_samples",
    "gain",
    "shard",
    "offset",
)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared corpus on disk.

    `manifest` has one row for every track of the data set: id, path (relative to the data root),
    licence, label, split, status (ok, missing, unreadable, format, short, silent, duplicate), reason, sha256
    of the int16 samples, num_samples, gain (below 1 where the peak was over full scale), shard and
    offset in it (in samples). `tracks` holds its ok rows; their index is the track number.
    A float sample is an int16 sample divided by 2**15.
    """

    folder: Path
    manifest: pd.DataFrame
    tracks: pd.DataFrame
    digest: str
    _maps: dict[int, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def lengths(self) -> Ints:
        """Return the number of samples of every track, shape (tracks,)."""
        return self.tracks["num_samples"].to_numpy(np.int64)

    @cached_property
    def _shard_offsets(self) -> Ints:
        return self.tracks[["shard", "offset"]].to_numpy(np.int64)

    def numbers(self, split: Split) -> Ints:
        """Return the track numbers of one split, ascending."""
        return np.flatnonzero((self.tracks["split"] == split).to_numpy()).astype(np.int64)

    def num_samples(self, track: int) -> int:
        """Return the length of a track."""
        return int(self.lengths[track])

    def read(self, track: int, start_sample: int, num_samples: int) -> npt.NDArray[np.int16]:
        """Return a copy of an excerpt of one track, shape (num_samples,).

        Raises: IndexError if the excerpt is not wholly inside the track.
        """
        if not (
            0 <= track < len(self.lengths) and 0 <= start_sample <= start_sample + num_samples <= self.lengths[track]
        ):
            raise IndexError(f"samples {start_sample} to {start_sample + num_samples} are not inside track {track}")
        shard, offset = self._shard_offsets[track]
        begin = int(offset) + start_sample
        return np.array(self._map(int(shard))[begin : begin + num_samples])

    def select_unusable(self) -> pd.DataFrame:
        """Return the rows of all tracks that cannot be used, with their status and reason."""
        return self.manifest[self.manifest["status"] != "ok"]

    def with_near_duplicates(self) -> Corpus:
        """Return the corpus with near duplicates among its tracks.

        They are left out of training because they would leak into the test; outside of it they are music like any.
        """
        is_near = self.manifest["reason"].str.startswith(NEAR_DUPLICATE) & (self.manifest["shard"] >= 0)
        manifest = self.manifest.assign(
            status=self.manifest["status"].mask(is_near, "ok"), reason=self.manifest["reason"].map(strip_near_duplicate)
        )
        tracks = manifest[manifest["status"] == "ok"].reset_index(drop=True)
        return replace(self, manifest=manifest, tracks=tracks, digest=_content_digest(tracks))

    def group_copies(self, tracks: Ints, chosen: Ints) -> Ints:
        """Return a number for each of `tracks`, the same for those that share audio with the same `chosen` track.

        Both are track numbers, ascending, and `chosen` are among `tracks`.
        """
        return group_copies(self.folder, self.tracks.iloc[tracks], self.tracks.iloc[chosen])

    def _map(self, shard: int) -> npt.NDArray[np.int16]:
        if shard not in self._maps:
            self._maps[shard] = np.memmap(shard_path(self.folder, shard, "i16"), "<i2", "r")
        return self._maps[shard]  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers map the files themselves: a pickled memory map is a copy of all samples.
        return open_corpus, (self.folder,)


def corpus_key(name: str, source: Source, min_track_s: float) -> str:
    """Return the content key under which a corpus is prepared."""
    return digest(FORMAT, near_duplicates.VERSION, name, source.digest(), min_track_s, decoder_version())


def prepare_corpus(
    store: Store, name: str, source: Source, *, min_track_s: float, workers: int, progress: Progress = no_progress
) -> Corpus:
    """Return the prepared corpus of a data set, decoding what is not yet in the store.

    A call after a kill continues with the shards that are missing; of two processes that need the same
    corpus, one builds it. Tracks that could not be read at an earlier call (no permission, a drive that was away) are
    tried again; if some can be read, a new corpus takes the place of the stored one, which stays for who uses it.
    Raises: DataError if no track at all is usable; StoreError if the disk is full.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # would wait for its parent's lock forever
        raise PluginError("a script that prepares a corpus must do so below `if __name__ == '__main__':`")
    key = corpus_key(name, source, min_track_s)
    folder = store.fetch("pcm", key, lambda folder: _build(folder, name, source, min_track_s, workers, progress))
    while (folder / SUPERSEDED).is_file():
        folder = store.folder("pcm", read_json(folder / SUPERSEDED)["by"])
    corpus = open_corpus(folder)
    readable = _find_readable(corpus, source, min_track_s)
    if not readable:
        return corpus

    def build_again(partial: Path) -> None:
        _link_shards(folder, partial, [s for s in group_tracks(source.tracks()) if not _holds(s, readable)])
        _build(partial, name, source, min_track_s, workers, progress)

    later = store.fetch("pcm", digest("read later", folder.name, sorted(readable)), build_again)
    write_json(folder / SUPERSEDED, {"by": later.name})
    return open_corpus(later)


def _find_readable(corpus: Corpus, source: Source, min_track_s: float) -> set[str]:
    """Return the ids of the tracks that could not be read when the corpus was prepared, and can be now."""
    rows = corpus.manifest
    waiting = set(rows.loc[rows["reason"].str.startswith(UNREADABLE_NOW), "id"])
    again = [track for track in source.tracks() if track.id in waiting] if waiting else []
    decoded = [decode_track(source, track, min_track_s)[0] for track in again]
    return {str(row["id"]) for row in decoded if not str(row["reason"]).startswith(UNREADABLE_NOW)}


def _holds(shard: Shard, ids: set[str]) -> bool:
    return any(track.id in ids for track in shard.tracks)


def _link_shards(folder: Path, to: Path, shards: Sequence[Shard]) -> None:
    """Give a corpus finished shards of another: as links, which need no space, or copied where there are none."""
    for shard in shards:
        for suffix in ("i16", "words", "parquet"):  # the rows last: they make a shard complete
            target = shard_path(to, shard.number, suffix)
            target.unlink(missing_ok=True)
            try:
                os.link(shard_path(folder, shard.number, suffix), target)
            except OSError:
                shutil.copyfile(shard_path(folder, shard.number, suffix), target)


def open_corpus(folder: Path) -> Corpus:
    """Return the prepared corpus in a folder.

    Raises: StoreError naming the file if the manifest is missing or damaged, or if the size of a
    shard is not what the manifest claims.
    """
    rows = _load_manifest(folder / MANIFEST)
    stored = rows[rows["shard"] >= 0]
    for shard, claimed in stored.groupby("shard")["num_samples"].sum().items():
        path = shard_path(folder, int(str(shard)), "i16")
        size = path.stat().st_size if path.is_file() else 0
        if size != 2 * claimed:
            raise StoreError(
                f"{path} has {size} bytes where its manifest claims {2 * claimed}; delete {folder} and run again"
            )
    tracks = rows[rows["status"] == "ok"].reset_index(drop=True)
    return Corpus(folder, rows, tracks, _content_digest(tracks))


def find_corpus(store: Store, content: str) -> Corpus | None:
    """Return the prepared corpus in the store whose digest is `content`, None if there is none.

    Raises: StoreError if its files, or another manifest on the way, are damaged.
    """
    for manifest in sorted((store.root / "pcm").glob(f"*/{MANIFEST}")):
        rows = _load_manifest(manifest)
        if _content_digest(rows[rows["status"] == "ok"]) == content:
            return open_corpus(manifest.parent)
    return None


def _build(folder: Path, name: str, source: Source, min_track_s: float, workers: int, progress: Progress) -> None:
    tracks = source.tracks()
    _check(name, tracks)
    shards = group_tracks(tracks)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()  # of a killed process: this process holds the lock, so that no other is writing here
    write_shards(folder, source, shards, min_track_s, workers, progress)
    progress("duplicates", 0, 1)
    rows = merge_shards(folder, shards)[list(COLUMNS)]
    if not (rows["status"] == "ok").any():
        raise DataError(_nothing_usable(name, source, rows))
    temporary = folder / ".manifest.tmp"
    rows.to_parquet(temporary, index=False)
    os.replace(temporary, folder / MANIFEST)
    progress("duplicates", 1, 1)


def _check(name: str, tracks: Sequence[Track]) -> None:
    if not tracks:
        raise DataError(f"data set {name!r} lists no track; check its data root")
    if len({track.id for track in tracks}) < len(tracks):
        raise PluginError(f"data set {name!r} gives one id to several tracks; ids must be unique")


def _nothing_usable(name: str, source: Source, rows: pd.DataFrame) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in rows["status"].value_counts().items())
    first = rows.iloc[0]
    where = f" in {source.root}" if hasattr(source, "root") else ""
    return (
        f"data set {name!r} has no usable track{where}: {counts}; the first is {first['path'] or first['id']}: "
        f"{first['reason']}; check the folder given as --data-root"
    )


def _load_manifest(path: Path) -> pd.DataFrame:
    advice = f"delete {path.parent} and run again"
    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); {advice}") from error
    if tuple(rows.columns) != COLUMNS:
        raise StoreError(f"{path} has the columns {', '.join(map(str, rows.columns))}, not those of {FORMAT}; {advice}")
    locations = rows[["shard", "offset", "num_samples"]]
    if any(kind.kind != "i" for kind in locations.dtypes) or not _is_consistent(rows):
        raise StoreError(f"{path} puts tracks outside their shards; {advice}")
    return rows


def _is_consistent(rows: pd.DataFrame) -> bool:
    """Return whether each shard's tracks lie end to end from its start, and every ok track is in a shard."""
    stored = rows[rows["shard"] >= 0]
    ends = stored.groupby("shard")["num_samples"].cumsum()
    end_to_end = bool((stored["offset"] == ends - stored["num_samples"]).all() and (stored["num_samples"] > 0).all())
    return end_to_end and bool((rows.loc[rows["status"] == "ok", "shard"] >= 0).all())


def _content_digest(tracks: pd.DataFrame) -> str:
    """Return the digest of the usable audio itself: the same on every machine and path."""
    lines = zip(tracks["id"], tracks["sha256"], tracks["split"], strict=True)
    return hashlib.sha256("".join(f"{i}\t{s}\t{p}\n" for i, s, p in lines).encode()).hexdigest()[:16]
