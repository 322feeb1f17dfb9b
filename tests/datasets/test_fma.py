import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.datasets import fma
from bench.errors import ConfigError, DataError
from bench.values import RATE_HZ, Source

COLUMNS = [
    ("album", "id"),
    ("artist", "bio"),
    ("artist", "id"),
    ("set", "split"),
    ("set", "subset"),
    ("track", "license"),
]
Row = tuple[int, str, str, str, str, str, str]


def row(track: int, subset: str = "large", split: str = "training", album: str = "7", artist: str = "8") -> Row:
    return track, album, 'a "bio",\nof two lines', artist, split, subset, "CC0"


def write(home: Path, rows: list[Row], audio: str = "fma_large", made: bool = True) -> Path:
    (home / "fma_metadata").mkdir(parents=True)
    with (home / "fma_metadata" / "tracks.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerows(
            [["", *(c[0] for c in COLUMNS)], ["", *(c[1] for c in COLUMNS)], ["track_id"] + [""] * len(COLUMNS)]
        )
        table.writerows(rows)
    (home / audio).mkdir()
    for track in [f"{r[0]:06d}" for r in rows] if made else []:
        (home / audio / track[:3]).mkdir(exist_ok=True)
        (home / audio / track[:3] / f"{track}.mp3").write_bytes(b"x")
    return home


def sides(source: Source) -> dict[str, str]:
    return {track.id: track.split for track in source.tracks()}


def built(root: Path, **settings: object) -> Source:
    return fma.build(fma.Config(**settings), root)  # type: ignore[arg-type]


def test_training_is_large_minus_medium_and_small_is_in_medium(tmp_path: Path) -> None:
    rows = [
        row(2),
        row(3, split="validation"),
        row(5, "medium"),
        row(10, "small", "validation"),
        row(999_999, split="test"),
    ]
    source = built(write(tmp_path, rows))
    assert sides(source) == {"000002": "train", "000003": "val", "000005": "test", "000010": "test", "999999": "train"}
    first = source.tracks()[0]
    assert first.path == "fma_large/000/000002.mp3" and first.licence == "CC0" and first.problem == ""


def test_folder_fma_in_the_root_is_found(tmp_path: Path) -> None:
    write(tmp_path / "fma", [row(2)])
    assert sides(built(tmp_path)) == sides(built(tmp_path / "fma"))


@pytest.mark.parametrize("audio", ["fma_medium", "fma_small"])
def test_smaller_packs_take_the_official_sides(tmp_path: Path, audio: str) -> None:
    rows = [row(1), row(2, "small"), row(3, "small", "validation"), row(4, "small", "test"), row(5, "medium", "test")]
    medium = {"000002": "train", "000003": "val", "000004": "test", "000005": "test"}
    small = {name: side for name, side in medium.items() if name != "000005"}
    assert sides(built(write(tmp_path, rows, audio))) == (medium if audio == "fma_medium" else small)


def test_full_pack_has_the_sides_of_large(tmp_path: Path) -> None:
    source = built(write(tmp_path, [row(2), row(3, split="validation"), row(5, "medium")], "fma_full"))
    assert sides(source) == {"000002": "train", "000003": "val", "000005": "test"}
    assert source.tracks()[0].path.startswith("fma_full/")


def test_held_out_share_keeps_albums_together_and_does_not_touch_the_test_side(tmp_path: Path) -> None:
    rows = [row(n, album=str(n // 4)) for n in range(4000)] + [row(9000, "medium")]
    write(tmp_path, rows, made=False)
    found = sides(built(tmp_path))
    assert found["009000"] == "test"
    for album in range(1000):
        assert len({found[f"{4 * album + n:06d}"] for n in range(4)}) == 1
    share = sum(side == "val" for side in found.values()) / 4000
    assert share == pytest.approx(0.05, abs=0.02)  # 1000 albums: three standard deviations
    assert "val" not in sides(built(tmp_path, val_share=0.0)).values()


def test_artist_then_track_stand_in_for_a_missing_album(tmp_path: Path) -> None:
    rows = [row(n, album="", artist=str(n // 2)) for n in range(400)] + [
        row(n, album="", artist="") for n in range(400, 800)
    ]
    found = sides(built(write(tmp_path, rows, made=False), val_share=0.5))
    assert all(found[f"{n:06d}"] == found[f"{n + 1:06d}"] for n in range(0, 400, 2))
    alone = [found[f"{n:06d}"] for n in range(400, 800)]
    assert {"train", "val"} == set(alone)


def test_missing_files_are_listed_with_the_problem(tmp_path: Path) -> None:
    write(tmp_path, [row(2), row(3)])
    (tmp_path / "fma_large" / "000" / "000003.mp3").unlink()
    assert [track.problem for track in built(tmp_path).tracks()] == ["", "missing"]


def test_audio_folder_may_be_a_link_but_a_file_may_not_leave_it(tmp_path: Path) -> None:
    home = write(tmp_path / "home", [row(2), row(3)])
    (home / "fma_large").rename(tmp_path / "disk")
    (home / "fma_large").symlink_to(tmp_path / "disk")
    music = tmp_path / "disk" / "000" / "000002.mp3"
    soundfile.write(music, np.sin(np.arange(RATE_HZ) / 9), RATE_HZ, format="MP3")
    music.with_name("000003.mp3").unlink()
    (tmp_path / "secret.mp3").write_bytes(music.read_bytes())
    music.with_name("000003.mp3").symlink_to(tmp_path / "secret.mp3")
    source = built(home)
    assert len(source.load(source.tracks()[0])) == RATE_HZ
    with pytest.raises(DataError, match="leads outside"):
        source.load(source.tracks()[1])


def test_missing_root_or_folders_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-root"):
        fma.build(fma.Config(), None)
    with pytest.raises(DataError, match=rf"no FMA found in {tmp_path}.*tracks\.csv.*fma_large"):
        built(tmp_path)
    write(tmp_path, [row(2)])
    with pytest.raises(DataError, match="fma_full"):
        built(tmp_path, audio="fma_full")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00binary\x81",
        b"a,b\n1,2\n",
        b",set,set\n,split,subset\ntrack_id,,\n2,training,large\n",
        b",set,set,track,album,artist\n,split,subset,license,id,id\ntrack_id,,,,,\nx,training,large,,,\n",
        b",set,set,track,album,artist\n,split,subset,license,id,id\ntrack_id,,,,,\n2,training,large,,,\n3,trai",
        b",set,set,track,album,artist\n,split,subset,license,id,id\n2,training,large,,,\n",
        b",set,set,track,album,artist\n,split,subset,license,id,id\ntrack_id,,,,,\n",
    ],
)
def test_unreadable_table_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, [])
    (tmp_path / "fma_metadata" / "tracks.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"tracks\.csv cannot be read"):
        built(tmp_path)


def test_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="val_share"):
        fma.Config(val_share=1.0)


def test_real_music_has_the_sides_its_readme_tells(real_data: Path) -> None:
    source = built(real_data)
    found = sides(source)
    assert [list(found.values()).count(side) for side in ("train", "val", "test")] == [759, 63, 358]
    assert not any(track.problem for track in source.tracks())
    assert built(real_data).digest() == source.digest()
    of_side = {side: {name[:4] for name, at in found.items() if at == side} for side in ("train", "val", "test")}
    assert not of_side["train"] & of_side["val"] and not of_side["test"] & (of_side["train"] | of_side["val"])
