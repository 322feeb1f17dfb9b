"""The check of a data set of pairs of recordings.

Shape legend: K keypoints.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np

from bench.align.contract import Pair
from bench.align.pairs import LAYOUT, PairFile, PairSource, Problem, list_pair_files, open_pair_file, splits
from bench.errors import DataError
from bench.store import Store
from bench.testing._common import check_digest, expect
from bench.values import no_progress

ROUNDING_S = 1e-6


def check_pairs(source: PairSource) -> None:
    """Check what a data-set plug-in of kind `pairs` returns from `build(config, root)`.

    Rules: names of sets are unique and the same each time; a folder in the challenge's layout holds all sets, is the
    same at the second call and, where the source makes it, is bit for bit the same in another store; the digest is a
    text and stays the same; in every set a first or last file of a split can be used, and its annotated times are
    inside both channels, never fall and are no further apart than the set promises; no file is in two splits.
    Sets that the source makes are made twice: give a config of few, short files.
    """
    names = list(source.sets())
    expect(len(names) > 0 and names == list(source.sets()), "sets() is not empty and the same each time", names)
    expect(len(set(names)) == len(names), "names of sets are unique", names)
    digest = check_digest(source)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _check_folders(source, Path(scratch))
        expect(source.digest() == digest, "digest() stays the same", source.digest())
        for name in names:
            _check_set(source, folder, name, Path(scratch) / "waves")


def _check_folders(source: PairSource, scratch: Path) -> Path:
    """Return the source's folder, having checked that it is the same again and in another store."""
    one, other = (Store(scratch / name) for name in ("one", "other"))
    folder, second = source.folder(one, no_progress), source.folder(other, no_progress)
    again = source.folder(one, no_progress)
    expect(again == folder, "folder() is the same at the second call", again)
    if folder != second:  # made by the source, not the user's own
        changed = _digest_files(folder) ^ _digest_files(second)
        expect(not changed, "a set that is made again is the same", sorted(name for name, _ in changed)[:1])
    return folder


def _digest_files(folder: Path) -> set[tuple[str, str]]:
    files = [path for path in (folder / LAYOUT).rglob("*") if path.is_file()]
    return {(path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def _check_set(source: PairSource, folder: Path, name: str, scratch: Path) -> None:
    most_s = source.max_lag_s(name)
    expect(np.isfinite(most_s) and most_s > 0, f"the largest lag of {name} is above 0 s", most_s)
    split_of: dict[str, str] = {}  # by the content of a recording
    try:
        listed = {split: list_pair_files(folder, name, split) for split in splits(folder, name)}
    except DataError as error:
        raise AssertionError(f"the contract says: folder() has the layout; found {error}") from error
    for split, files in listed.items():
        usable = [file for file in files if not file.problem]
        for file in (usable[0], usable[-1]) if usable else ():
            pair = open_pair_file(file, scratch, most_s)
            if isinstance(pair, Problem):
                continue
            _check_truth(file, pair)
            first = split_of.setdefault(pair.key, split)
            expect(first == split, "no recording is in two splits", f"{file.name} of {split} in {first} too")
    reasons = [file.problem for files in listed.values() for file in files if file.problem]
    expect(split_of, f"the first or the last file of a split of {name} can be used", reasons[:1] or "no file")


def _check_truth(file: PairFile, pair: Pair) -> None:
    if file.truth is None:
        return
    time0_K, time1_K = file.truth.time0_K, file.truth.time1_K
    for time_K, length_s in zip((time0_K, time1_K), pair.durations_s, strict=True):
        inside = (time_K >= 0) & (time_K <= length_s + ROUNDING_S)
        expect(inside.all(), f"annotated times of {file.name} are inside the recording", time_K[~inside][:1])
    expect((np.diff(time1_K) >= 0).all(), f"annotated times of {file.name} never fall", time1_K)
    far_s = float(np.abs(time1_K - time0_K).max())
    expect(far_s <= pair.max_lag_s + ROUNDING_S, f"lags of {file.name} are at most {pair.max_lag_s:g} s", far_s)
