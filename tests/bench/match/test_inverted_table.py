"""The inverted table against a dictionary of lists."""

from pathlib import Path

import numpy as np
import pytest

from bench.errors import StoreError
from bench.match.inverted_table import build_table, load_table


def entries() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    return draw.integers(0, 50, 400).astype(np.uint32), draw.permutation(400)


def look_up_slowly(key: np.ndarray, position: np.ndarray, asked: np.ndarray) -> list[tuple[int, int]]:
    return [(i, int(p)) for i, k in enumerate(asked) for p in sorted(position[key == k])]


def test_each_key_has_its_positions_in_ascending_order() -> None:
    key, position = entries()
    asked = np.array([7, 60, 0, 49, 7], dtype=np.uint32)  # 60 is in no entry, 7 is asked for twice
    found = build_table(key, position).look_up(asked)
    assert list(zip(*(part.tolist() for part in found), strict=True)) == look_up_slowly(key, position, asked)


def test_keys_with_too_many_positions_are_passed_over() -> None:
    table = build_table(np.array([1, 1, 1, 2], dtype=np.uint32), np.arange(4))
    assert table.look_up(np.array([1, 2], dtype=np.uint32), longest=2)[1].tolist() == [3]


def test_an_empty_table_finds_nothing() -> None:
    table = build_table(np.empty(0, np.uint32), np.empty(0, np.int64))
    assert len(table.look_up(np.array([1], dtype=np.uint32))[0]) == 0


def test_a_saved_table_is_the_same_and_half_a_file_is_refused(tmp_path: Path) -> None:
    key, position = entries()
    table = build_table(key, position)
    table.save(tmp_path)
    again = load_table(tmp_path)
    assert np.array_equal(again.position_N, table.position_N) and np.array_equal(again.key_U, table.key_U)
    (tmp_path / "positions.npy").write_bytes((tmp_path / "positions.npy").read_bytes()[:-40])
    with pytest.raises(StoreError, match=r"positions\.npy is damaged"):
        load_table(tmp_path)
    np.save(tmp_path / "positions.npy", table.position_N[:-1])
    with pytest.raises(StoreError, match="do not fit"):
        load_table(tmp_path)
