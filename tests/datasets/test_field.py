"""Soundscapes: two folders, and a validation side that shares no stretch of a day with the training side."""

from collections import Counter
from pathlib import Path

import pytest

from bench.datasets import field
from bench.datasets.field import _choose_held_out, _group
from bench.errors import ConfigError, DataError
from bench.values import Source


def touched(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def built(root: Path | None, **settings: float) -> Source:
    return field.build(field.Config(**settings), root)


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("S4A03895_20190522_000000.flac", "S4A03895_20190522_00h"),
        ("S4A03895_20190522_024500.flac", "S4A03895_20190522_00h"),
        ("S4A03895_20190522_030000.flac", "S4A03895_20190522_03h"),
        ("S4A03895_20190523_234500.wav", "S4A03895_20190523_21h"),
        ("site/A_1_20190522_101112.wav", "site/A_1_20190522_09h"),
        ("forest_spring.flac", "forest_spring"),
        ("a.b_20190522.ogg", "a.b_20190522"),
    ],
)
def test_group_is_three_hours_of_a_recorder_or_the_file(path: str, group: str) -> None:
    assert _group(path) == group


@pytest.mark.parametrize("under", ["", "field"])
def test_folders_are_sides_and_whole_groups_are_held_out(tmp_path: Path, under: str) -> None:
    names = [f"train/R_2020010{d}_{h:02d}{m}00.flac" for d in range(1, 9) for h in range(24) for m in (10, 40)]
    touched(tmp_path / under, *names, "train/deep/pond.wav", "test/owl.flac", "train/notes.txt", "other/x.flac")
    tracks = built(tmp_path).tracks()
    assert len(tracks) == len(names) + 2
    assert [t.path for t in tracks if t.split == "test"] == ["test/owl.flac"]
    sides: dict[str, set[str]] = {}
    for track in tracks:
        sides.setdefault(track.label, set()).add(track.split)
    assert all(len(found) == 1 for found in sides.values())
    assert 0.05 < Counter(t.split for t in tracks)["val"] / len(names) < 0.3


def test_added_files_move_no_other_file(tmp_path: Path) -> None:
    touched(tmp_path, *(f"train/{n}.wav" for n in range(40)), "test/x.wav")
    before = {t.id: t.split for t in built(tmp_path).tracks()}
    assert set(before.values()) == {"train", "val", "test"}
    touched(tmp_path, *(f"train/more{n}.wav" for n in range(40)))
    assert before.items() <= {t.id: t.split for t in built(tmp_path).tracks()}.items()


def test_one_of_two_groups_is_held_out_and_none_of_one() -> None:
    assert len(_choose_held_out({"a", "b"}, 1e-9)) == 1
    assert _choose_held_out({"a"}, 1e-9) == set() and _choose_held_out({"a", "b"}, 0.0) == set()


def test_folder_without_a_side_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "train/a.wav")
    with pytest.raises(DataError, match=rf"no field recordings in {tmp_path}"):
        built(tmp_path)
    touched(tmp_path, "test/notes.txt")
    with pytest.raises(DataError, match=r"no audio found in .*test"):
        built(tmp_path)
    with pytest.raises(DataError, match="--data-root"):
        built(None)
    with pytest.raises(ConfigError, match="val_share must be"):
        field.Config(val_share=1.0)


def test_real_soundscapes_have_three_sides_and_no_three_hours_on_two_of_them(real_data: Path) -> None:
    tracks = built(real_data).tracks()
    assert Counter(t.split for t in tracks) == {"train": 77, "val": 25, "test": 16}
    held_out = {t.label for t in tracks if t.split == "val"}
    assert held_out == {"S4A03895_20190522_06h", "S4A03895_20190522_12h", "spinetail"}
    assert not held_out & {t.label for t in tracks if t.split != "val"}
