from pathlib import Path

import pytest

from bench.align.pairs import list_pair_files
from bench.datasets import biodcase
from bench.errors import DataError
from bench.store import Store
from bench.values import no_progress


def unpacked(home: Path, *places: str) -> Path:
    for place in places:
        audio = home / "formatted_data" / place / "audio"
        audio.mkdir(parents=True)
        (audio / "a.wav").touch()
        rows = "Filename,Time Channel 0,Time Channel 1\na.wav,0,0.25\n"
        if not place.endswith("eval"):
            (audio.parent / "annotations.csv").write_text(rows)
    return home


@pytest.mark.parametrize("home", ["biodcase", "."])
def test_the_user_s_folder_is_read_as_it_is(tmp_path: Path, home: str) -> None:
    unpacked(tmp_path / home, "aru/train", "aru/val", "aru/eval", "zebra_finch/val")
    source = biodcase.build(biodcase.Config(), tmp_path)
    assert source.sets() == ("aru", "zebra_finch")
    folder = source.folder(Store(tmp_path / "store"), no_progress)
    (task,) = list_pair_files(folder, "aru", "val")
    assert task.truth is not None and task.truth.time1_K.tolist() == [0.25]
    assert [task.truth for task in list_pair_files(folder, "aru", "eval")] == [None]
    assert not (tmp_path / "store").exists()


def test_only_what_is_there_is_a_set_and_the_year_sets_the_largest_lag(tmp_path: Path) -> None:
    unpacked(tmp_path, "aru/val")
    old, new = (biodcase.build(biodcase.Config(year), tmp_path) for year in (2025, 2026))  # type: ignore[arg-type]
    assert old.sets() == new.sets() == ("aru",)
    assert (old.max_lag_s("aru"), new.max_lag_s("aru")) == (5.0, 0.5)
    assert old.max_lag_s("zebra_finch") == new.max_lag_s("zebra_finch") == 5.0
    assert old.digest() != new.digest()


def test_another_annotation_is_another_set(tmp_path: Path) -> None:
    source = biodcase.build(biodcase.Config(), unpacked(tmp_path, "aru/val"))
    before = source.digest()
    assert source.digest() == before
    (tmp_path / "formatted_data" / "aru" / "val" / "annotations.csv").write_text("other")
    assert source.digest() != before


@pytest.mark.parametrize("has_root", [True, False])
def test_an_absent_folder_is_told_with_what_to_do(tmp_path: Path, has_root: bool) -> None:
    with pytest.raises(DataError, match=r"formatted_data.*--data-root"):
        biodcase.build(biodcase.Config(), tmp_path if has_root else None)
