"""The manifest of a corpus: the rows of all its shards, with duplicates marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bench.audio.near_duplicates import WordList, match_tracks, num_words
from bench.audio.shards import Shard, shard_path
from bench.values import Ints

NEAR_DUPLICATE = "near-duplicate of "
JOINT = "; it "  # between a reason and what was wrong with the file


def merge_shards(folder: Path, shards: Sequence[Shard]) -> pd.DataFrame:
    """Return the rows of all tracks in order, exact and near duplicates marked.

    Of near duplicates on both sides, the training track is marked.
    """
    rows = pd.concat([pd.read_parquet(shard_path(folder, s.number, "parquet")) for s in shards], ignore_index=True)
    rows = mark_duplicates(rows)
    for train_id, test_id, seconds in near_duplicate_pairs(folder, rows[rows["status"] == "ok"]):
        reason = f"{NEAR_DUPLICATE}{test_id} (test): {seconds:.1f} s in common"
        note = rows.set_index("id")["reason"].map(strip_near_duplicate)[train_id]
        rows.loc[rows["id"] == train_id, ["status", "reason"]] = ["duplicate", JOINT.join(filter(None, (reason, note)))]
    return rows


def strip_near_duplicate(reason: str) -> str:
    """Return a track's reason without that it is a near duplicate: what was wrong with its file, if anything was."""
    return reason.partition(JOINT)[2] if reason.startswith(NEAR_DUPLICATE) else reason


def mark_duplicates(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with exact copies marked as duplicates.

    Of copies on both sides, a test track stays usable; of copies on one side, the first.
    """
    rows = rows.copy()
    usable = rows[rows["status"] == "ok"]
    first_copy: dict[str, str] = {}
    for side in (usable[usable["split"] == "test"], usable[usable["split"] != "test"]):
        for number, sha256, name, split in zip(side.index, side["sha256"], side["id"], side["split"], strict=True):
            if sha256 in first_copy:
                rows.loc[number, ["status", "reason"]] = ["duplicate", f"same audio as {first_copy[sha256]}"]
            else:
                first_copy[sha256] = f"{name} ({split})"
    return rows


def near_duplicate_pairs(folder: Path, rows: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Return (train id, test id, seconds in common) for each training and test track that share audio."""
    test, train = rows[rows["split"] == "test"], rows[rows["split"] != "test"]
    shared = match_tracks(_load_words(folder, train), _load_words(folder, test))
    return [(str(train["id"].iloc[i]), str(test["id"].iloc[j]), s) for (i, j), s in sorted(shared.items())]


def group_copies(folder: Path, rows: pd.DataFrame, chosen: pd.DataFrame) -> Ints:
    """Return a number for each row: rows that share audio with the same chosen row, or with one another's, share it.

    `chosen` are some of the rows; copies of other rows among themselves are not looked for.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = list(match_tracks(_load_words(folder, rows), _load_words(folder, chosen)))
    row_of = {name: row for row, name in enumerate(rows["id"])}
    edges = [(i, row_of[chosen["id"].iloc[j]]) for i, j in pairs]
    one, other = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(rows), len(rows)))
    groups: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _load_words(folder: Path, rows: pd.DataFrame) -> WordList:
    """Return the hash words of some rows, read shard by shard: 4 bytes per 50 ms, 250 MB for 100,000 clips."""
    parts: list[np.ndarray] = [np.zeros(0, np.uint32)]
    for shard, group in rows.groupby("shard", sort=False):
        stored = pd.read_parquet(shard_path(folder, int(str(shard)), "parquet"), columns=["id", "shard", "num_samples"])
        stored = stored[stored["shard"] >= 0]
        first = np.cumsum([0, *(num_words(n) for n in stored["num_samples"])])
        row_of = dict(zip(stored["id"], range(len(stored)), strict=True))
        words = np.fromfile(shard_path(folder, int(str(shard)), "words"), "<u4")
        parts += [words[first[row_of[name]] : first[row_of[name] + 1]] for name in group["id"]]
    lengths = [0, *(len(part) for part in parts[1:])]
    return WordList(np.concatenate(parts).astype(np.uint32), np.cumsum(lengths))
