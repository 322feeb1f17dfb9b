from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from bench.audio.files import resolve_inside
from bench.datasets import folder, noise_folder
from bench.datasets.folder import _assign_splits
from bench.errors import ConfigError, DataError
from bench.values import RATE_HZ, Source


def touched(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def paths(source: Source) -> list[str]:
    return [track.path for track in source.tracks()]


def test_finds_every_suffix_at_every_depth_and_nothing_else(tmp_path: Path) -> None:
    wanted = ["A/x.MP3", "A/deep/er/y.ogg", "b.Flac", "c d/\u00e9.wav"]
    touched(tmp_path, *wanted, "cover.jpg", "._b.flac", ".hidden/z.mp3", "mp3")
    assert paths(folder.build(folder.Config(), tmp_path)) == sorted(wanted)


def test_files_of_one_album_are_on_one_side(tmp_path: Path) -> None:
    touched(tmp_path, *(f"album{a}/cd{n % 2}/{n}.mp3" for a in range(30) for n in range(5)))
    tracks = folder.build(folder.Config(), tmp_path).tracks()
    for album in range(30):
        assert len({t.split for t in tracks if t.path.startswith(f"album{album}/")}) == 1
    assert {t.split for t in tracks} == {"train", "val", "test"}


def test_few_folders_are_drawn_file_by_file(tmp_path: Path) -> None:
    touched(tmp_path, *(f"one/{n}.mp3" for n in range(200)))
    tracks = folder.build(folder.Config(), tmp_path).tracks()
    assert 0.2 < sum(t.split == "test" for t in tracks) / 200 < 0.4


def test_added_albums_move_no_other_album(tmp_path: Path) -> None:
    touched(tmp_path, *(f"album{a}/x.mp3" for a in range(40)))
    before = {t.id: t.split for t in folder.build(folder.Config(), tmp_path).tracks()}
    touched(tmp_path, *(f"more{a}/x.mp3" for a in range(40)))
    after = {t.id: t.split for t in folder.build(folder.Config(), tmp_path).tracks()}
    assert before.items() <= after.items()


@given(st.sets(st.text(min_size=1), min_size=3), st.floats(0, 0.5), st.floats(0, 0.45))
def test_no_wanted_side_is_empty(groups: set[str], val_share: float, test_share: float) -> None:
    found = set(_assign_splits(groups, folder.Config(val_share, test_share)).values())
    assert "train" in found
    assert ("val" in found) >= (val_share > 0) and ("test" in found) >= (test_share > 0)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.5), (0.0, 1.0)])
def test_shares_that_leave_no_training_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="sum to < 1"):
        folder.Config(*shares)


def test_folder_without_audio_is_named_with_the_suffixes(tmp_path: Path) -> None:
    touched(tmp_path, "text.txt")
    with pytest.raises(DataError, match=rf"no audio found in {tmp_path}.*\.flac, \.mp3, \.ogg, \.wav"):
        folder.build(folder.Config(), tmp_path)
    with pytest.raises(DataError, match="no folder at"):
        folder.build(folder.Config(), tmp_path / "none")
    with pytest.raises(DataError, match="--data-root"):
        folder.build(folder.Config(), None)


def test_links_to_other_disks_are_followed(tmp_path: Path) -> None:
    home = touched(tmp_path / "home", "a.mp3")
    touched(tmp_path, "disk/b.mp3", "disk/deep/c.mp3")
    soundfile.write(tmp_path / "disk" / "deep" / "c.wav", np.sin(np.arange(RATE_HZ) / 9), RATE_HZ)
    (home / "file.mp3").symlink_to(tmp_path / "disk" / "b.mp3")
    (home / "folder").symlink_to(tmp_path / "disk")
    source = folder.build(folder.Config(), home)
    assert paths(source) == ["a.mp3", "file.mp3", "folder/b.mp3", "folder/deep/c.mp3", "folder/deep/c.wav"]
    assert len(source.load(source.tracks()[-1])) == RATE_HZ


def test_links_that_lead_back_or_nowhere_are_named(tmp_path: Path) -> None:
    home = touched(tmp_path / "home", "a.mp3", "deep/b.mp3")
    (home / "deep" / "again").symlink_to(home)
    (home / "deep" / "above").symlink_to(tmp_path)
    (home / "disk").symlink_to(tmp_path / "away")
    (home / "song.mp3").symlink_to(tmp_path / "away.mp3")
    problems = {track.path: track.problem for track in folder.build(folder.Config(), home).tracks() if track.problem}
    assert problems == {
        "deep/above": "a link to a folder that it lies in",
        "deep/again": "a link to a folder that it lies in",
        "disk": "a link to nowhere",
        "song.mp3": "missing",
    }


def test_formats_are_listed_and_foreign_ones_named_with_the_remedy(tmp_path: Path) -> None:
    readable = ["a.ogg", "b.OPUS", "c.oga", "d.aif", "e.aiff", "f.wave", "g.w64", "h.caf", "i.au"]
    touched(tmp_path, *readable, "j.m4a", "k.AAC", "l.wma", "m.mp4", "cover.jpg", "notes.txt")
    tracks = folder.build(folder.Config(), tmp_path).tracks()
    assert [track.path for track in tracks if not track.problem] == readable
    assert [track.path for track in tracks if track.problem] == ["j.m4a", "k.AAC", "l.wma", "m.mp4"]
    assert tracks[9].problem == "a format that cannot be read (.m4a); convert it: ffmpeg -i j.m4a j.flac"


def test_folder_of_foreign_formats_is_told_so(tmp_path: Path) -> None:
    touched(tmp_path, "a.m4a")
    with pytest.raises(DataError, match=r"no audio found.*1 left out.*a\.m4a is a format.*ffmpeg -i a\.m4a a\.flac"):
        folder.build(folder.Config(), tmp_path)


def test_foreign_formats_do_not_change_the_splits(tmp_path: Path) -> None:
    touched(tmp_path, *(f"{n}.mp3" for n in range(12)))
    before = {track.path: track.split for track in folder.build(folder.Config(), tmp_path).tracks()}
    touched(tmp_path, *(f"album {n}/x.m4a" for n in range(12)))
    after = {track.path: track.split for track in folder.build(folder.Config(), tmp_path).tracks()}
    assert before == {path: split for path, split in after.items() if path in before}


def test_name_that_is_not_utf_8_is_named_not_fatal(tmp_path: Path) -> None:
    touched(tmp_path, "a.mp3")
    try:
        (tmp_path / "caf\udce9.mp3").touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    tracks = folder.build(folder.Config(), tmp_path).tracks()
    assert [(track.path, track.problem != "") for track in tracks] == [("a.mp3", False), ("caf\\xe9.mp3", True)]


@pytest.mark.parametrize("path", ["../x.mp3", "/etc/passwd", "a/../../x", "a/../../home2/x"])
def test_paths_stay_inside_the_root(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="leads outside"):
        resolve_inside(tmp_path / "home", path)


@pytest.mark.parametrize("under", ["", "noise"])
def test_noise_folder_has_sides_and_categories(tmp_path: Path, under: str) -> None:
    touched(
        tmp_path / under, "train/rain/a.ogg", "train/wind/b.ogg", "test/car/c.flac", "test/car/sub/d.flac", "README.md"
    )
    tracks = noise_folder.build(noise_folder.Config(), tmp_path).tracks()
    assert [(t.split, t.label, t.path) for t in tracks] == [
        ("train", "rain", "train/rain/a.ogg"),
        ("train", "wind", "train/wind/b.ogg"),
        ("test", "car", "test/car/c.flac"),
        ("test", "car", "test/car/sub/d.flac"),
    ]


def test_noise_folder_without_a_side_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "train/rain/a.ogg")
    with pytest.raises(DataError, match=rf"no noise found in {tmp_path}"):
        noise_folder.build(noise_folder.Config(), tmp_path)
    touched(tmp_path, "test/car/notes.txt")
    with pytest.raises(DataError, match=r"no audio found in .*test"):
        noise_folder.build(noise_folder.Config(), tmp_path)
    with pytest.raises(DataError, match="--data-root"):
        noise_folder.build(noise_folder.Config(), None)


def test_real_noise_has_the_files_its_readme_tells(real_data: Path) -> None:
    tracks = noise_folder.build(noise_folder.Config(), real_data).tracks()
    assert sum(t.split == "train" for t in tracks) == 52 and sum(t.split == "test" for t in tracks) == 16
    assert {t.label for t in tracks if t.split == "test"} == {
        "babble", "cafeteria", "car", "living_room", "traffic", "train_station", "workplace",
    }  # fmt: skip
