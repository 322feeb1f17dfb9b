"""The store: built once, never half, continued after a kill, one builder among many processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import DataError, StoreError
from bench.store import (
    ADDED_LATER,
    Store,
    create_array,
    decisive_settings,
    digest,
    read_json,
    write_json,
    write_text,
    write_whole,
)

SINGLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
PLAIN = st.recursive(
    SINGLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


@dataclass(frozen=True)
class Pair:
    x: int
    y: int = 0


def writer(text: str, calls: list[Path]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "out.txt").write_text(text)

    return build


def test_fetch_builds_once(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []
    folders = {store.fetch("stage", "k", writer("a", calls)) for _ in range(3)}
    assert folders == {store.folder("stage", "k")}
    assert len(calls) == 1
    assert (store.folder("stage", "k") / "out.txt").read_text() == "a"


def test_other_key_and_other_kind_are_built_apart(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []
    for kind, key in [("a", "1"), ("a", "2"), ("b", "1")]:
        store.fetch(kind, key, writer(kind + key, calls))
    assert len(calls) == 3
    assert (store.folder("b", "1") / "out.txt").read_text() == "b1"


def test_failed_build_leaves_its_part_and_the_next_continues_it(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def breaks(folder: Path) -> None:
        (folder / "first.txt").write_text("1")
        raise DataError("track 7 cannot be decoded")

    with pytest.raises(DataError, match="track 7"):
        store.fetch("stage", "k", breaks)
    assert not store.folder("stage", "k").is_dir()
    kept: list[bool] = []
    store.fetch("stage", "k", lambda folder: kept.append((folder / "first.txt").exists()))
    assert kept == [True]
    assert (store.folder("stage", "k") / "first.txt").read_text() == "1"


def test_full_disk_says_what_to_do_and_keeps_what_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fills(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreError, match=r"No space left on device.*--store.*run the same command again"):
        store.fetch("stage", "k", fills)
    assert not store.folder("stage", "k").is_dir()
    store.fetch("stage", "k", lambda folder: None)
    assert (store.folder("stage", "k") / "half").read_text() == "1"


def test_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(StoreError, match=f"the store {root}"):
        Store(root).fetch("stage", "k", lambda folder: None)


SLOW_BUILD = """
import sys, time
from pathlib import Path
from bench.store import Store

def build(folder):
    with (folder / "builds.txt").open("a") as file:
        file.write("built\\n")
    time.sleep(0.5)

Store(Path(sys.argv[1])).fetch("stage", "k", build)
"""


def test_four_processes_build_one_key_once(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", SLOW_BUILD, str(tmp_path)]
    running = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0, 0]
    assert (Store(tmp_path).folder("stage", "k") / "builds.txt").read_text() == "built\n"


KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from bench.store import Store

def build(folder):
    (folder / "first.txt").write_text("1")
    os.kill(os.getpid(), signal.SIGKILL)

Store(Path(sys.argv[1])).fetch("stage", "k", build)
"""


def test_killed_build_looks_unfinished_and_blocks_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", KILLED_BUILD, str(tmp_path)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert not store.folder("stage", "k").is_dir()
    store.fetch("stage", "k", lambda folder: None)
    assert (store.folder("stage", "k") / "first.txt").read_text() == "1"


def test_digest_is_a_constant_of_the_value() -> None:
    # sha256sum of ["a",1,2.5,[null,true]]: a digest that moves between versions throws everybody's store away.
    assert digest("a", 1, 2.5, [None, True]) == "79d9d870e37d6cd5"


@given(st.lists(SINGLE), st.lists(SINGLE))
def test_digest_tells_different_values_apart(one: list[object], other: list[object]) -> None:
    assert (digest(one) == digest(other)) is (repr(one) == repr(other))


def test_digest_ignores_the_order_of_a_dict_and_minds_that_of_a_list() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_digest_minds_the_name_of_a_dataclass_and_its_defaults() -> None:
    assert digest(Point(1)) == digest(Point(1, 0)) != digest(Pair(1))
    assert digest({"p": (Point(1), Path("a/b"))}) == digest({"p": [Point(1), "a/b"]})


def test_digest_refuses_what_has_no_stable_text() -> None:
    with pytest.raises(TypeError, match="no stable text for object"):
        digest(object())


def test_write_replaces_the_whole_file_and_leaves_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"p": Point(1)})
    write_text(file, "new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_write_removes_what_killed_writers_of_the_same_file_left(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".a.json.{dead.pid}.tmp").write_text("half")
    kept = [tmp_path / name for name in (f".b.json.{dead.pid}.tmp", f".a.json.{os.getppid()}.tmp", ".a.json.x.tmp")]
    for path in kept:
        path.write_text("of another file, or of a writer that lives")
    write_json(tmp_path / "a.json", 1)
    assert set(tmp_path.iterdir()) == {tmp_path / "a.json", *kept}


def test_folder_appears_whole_and_replaces_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    for name in ("first", "second"):
        with suppress(OSError), write_whole(folder) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
            assert not (folder / name).exists()
    assert [path.name for path in folder.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [folder]


def test_array_takes_its_space_before_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to the map of a full disk would end the process by SIGBUS, without a word."""
    array = create_array(tmp_path / "a.npy", (1000, 3))
    assert array.shape == (1000, 3) and (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        create_array(tmp_path / "b.npy", (1000, 3))


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_json_comes_back_as_it_went(tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]) -> None:
    file = tmp_path_factory.mktemp("json") / "a.json"
    write_json(file, value)
    assert read_json(file) == value


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe"])
def test_unreadable_json_names_the_file_and_what_to_do(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.json is damaged .*delete the folder .* and run again"):
        read_json(file)


# Settings that were added later


@dataclass(frozen=True)
class Inner:
    old: int = 1
    new: tuple[float, ...] = field(default=(0.5,), metadata=ADDED_LATER)


@dataclass(frozen=True)
class Outer:
    old: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    group: dict[str, Inner] = field(default_factory=dict)
    new: str = field(default="", metadata=ADDED_LATER)


def test_setting_added_later_is_in_no_key_until_it_is_used() -> None:
    before = {"old": [1, 2], "inner": {"old": 1}, "group": {"a": {"old": 7}}}
    assert decisive_settings(Outer(group={"a": Inner(7)})) == before
    assert digest(Outer(group={"a": Inner(7)})) == digest({"Outer": before})
    used = Outer(inner=Inner(new=()), group={"a": Inner(7, (1.0,))}, new="x")
    assert decisive_settings(used) == {
        "old": [1, 2], "inner": {"old": 1, "new": []}, "group": {"a": {"old": 7, "new": [1.0]}}, "new": "x",
    }  # fmt: skip


def test_settings_without_later_ones_are_as_they_were() -> None:
    assert digest(decisive_settings(Pair(3))) == digest(asdict(Pair(3)))
