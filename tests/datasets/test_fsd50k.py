"""FSD50K's layout: sides, licences and paths from its tables; broken ones are named."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.datasets import fsd50k
from bench.errors import DataError
from bench.testing import check_source
from bench.values import RATE_HZ, Source

DEV = (
    "fname,labels,mids,split\n"
    '64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train\n'
    "16399,Rain,/m/06mb1,val\n"
)
EVAL = 'fname,labels,mids\n37199,"Bark,Dog","/m/05tny_,/m/0bt9lr"\n'
CC0 = "http://creativecommons.org/publicdomain/zero/1.0/"


def write(home: Path, dev: str = DEV, evaluated: str | None = EVAL, licences: str | None = None) -> Path:
    for folder in ("FSD50K.dev_audio", "FSD50K.eval_audio", "FSD50K.ground_truth", "FSD50K.metadata"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "FSD50K.ground_truth" / "dev.csv").write_text(dev)
    if evaluated is not None:
        (home / "FSD50K.ground_truth" / "eval.csv").write_text(evaluated)
    if licences is not None:
        (home / "FSD50K.metadata" / "dev_clips_info_FSD50K.json").write_text(licences)
    wave = np.sin(np.arange(44_100) / 20) / 2
    for name in ("dev_audio/64760", "dev_audio/16399", "eval_audio/37199"):
        soundfile.write(home / f"FSD50K.{name}.wav", wave, 44_100)
    return home


def built(root: Path | None) -> Source:
    return fsd50k.build(fsd50k.Config(), root)


def test_development_and_evaluation_give_the_three_sides(tmp_path: Path) -> None:
    source = built(write(tmp_path))
    assert [(t.id, t.path, t.split, t.label, t.problem) for t in source.tracks()] == [
        ("dev/64760", "FSD50K.dev_audio/64760.wav", "train", "Electric_guitar", ""),
        ("dev/16399", "FSD50K.dev_audio/16399.wav", "val", "Rain", ""),
        ("eval/37199", "FSD50K.eval_audio/37199.wav", "test", "Bark", ""),
    ]
    assert len(source.load(source.tracks()[0])) == RATE_HZ
    check_source(source)


def test_each_clip_has_its_own_licence_where_the_metadata_are_there(tmp_path: Path) -> None:
    told = json.dumps({"64760": {"title": "x", "license": CC0, "uploader": "y"}})
    assert [t.licence for t in built(write(tmp_path, licences=told)).tracks()] == [CC0, "unknown", "unknown"]


def test_folder_in_the_root_and_a_missing_evaluation_part_will_do(tmp_path: Path) -> None:
    write(tmp_path / "FSD50K", evaluated=None)
    assert [t.split for t in built(tmp_path).tracks()] == ["train", "val"]


def test_missing_clip_is_listed_as_missing(tmp_path: Path) -> None:
    home = write(tmp_path)
    (home / "FSD50K.dev_audio" / "16399.wav").unlink()
    assert [t.problem for t in built(home).tracks()] == ["", "missing", ""]


@pytest.mark.parametrize(
    ("dev", "named"),
    [
        (DEV.replace("val", "va"), "clip 16399 has the split 'va'"),
        (DEV.replace("16399", "../16399"), "fname must be a number"),
        (DEV.replace("split", "side"), "no column 'split'"),
        ("", "dev.csv cannot be read"),
        (DEV + "a,b,c,d,e,f\n", "dev.csv cannot be read"),
    ],
)
def test_broken_table_is_named(tmp_path: Path, dev: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        built(write(tmp_path, dev))


@pytest.mark.parametrize("licences", ["{", "[]", '{"64760": {}}', '{"64760": 5}'])
def test_broken_licences_are_named(tmp_path: Path, licences: str) -> None:
    with pytest.raises(DataError, match=r"dev_clips_info_FSD50K\.json cannot be read"):
        built(write(tmp_path, licences=licences))


def test_folder_without_fsd50k_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no FSD50K found in {tmp_path}"):
        built(tmp_path)
    with pytest.raises(DataError, match="--data-root"):
        built(None)
