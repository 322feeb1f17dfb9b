"""A data set of a stranger that fails ends in one sentence, which names the plug-in, the exception and the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import config, registry
from bench.data import music_source, noise_source
from bench.errors import PluginError

DATASET = """
from dataclasses import dataclass

from bench.values import Track

KIND = "music"


@dataclass(frozen=True)
class Config:
    pass


class Mine:
    def tracks(self):
        return [Track("a", "a.wav", "train")]

    def load(self, track):
        raise KeyError(track.id)

    def digest(self):
        return "mine"


def build(config, root):
    return Mine()
"""
RIGHT = 'return [Track("a", "a.wav", "train")]'
BROKEN = {
    "build fails": ("return Mine()", 'return {}["songs"]', r"line 26\) cannot be built by .*: KeyError: 'songs'"),
    "build returns nothing": ("return Mine()", "pass", r"build returns what has tracks, load, digest, got NoneType"),
    "tracks fails": (
        RIGHT,
        'return open("/nowhere/list")',
        r"line 16\) cannot list .*: FileNotFoundError: .*/list",
    ),
    "tracks is a generator": (RIGHT, "yield", r"tracks\(\) returns a list, got generator"),
    "tracks are names": (RIGHT, 'return ["a.wav"]', r"tracks\(\) lists values of bench.values.Track, got 'a.wav'"),
    "digest fails": ('return "mine"', "return 1 / 0", r"line 22\) cannot tell its content .*: ZeroDivisionError"),
    "digest is a number": ('return "mine"', "return 7", r"digest\(\) returns a text, got int"),
}


def write(folder: Path, source: str) -> str:
    path = folder / "mine.py"
    path.write_text(source)
    return str(path)


@pytest.mark.parametrize("kind", ["music", "noise"])
@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_data_set_is_one_sentence_with_its_place(mistake: str, kind: str, tmp_path: Path) -> None:
    right, wrong, sentence = BROKEN[mistake]
    assert right in DATASET
    path = write(tmp_path, DATASET.replace(right, wrong).replace('KIND = "music"', f'KIND = "{kind}"'))
    encoder = registry.load("encoder", "random-projection")
    settings = {"music": {"dataset": path}, "noise": {"overrides": [f'data.noise="{path}"']}}[kind]
    resolved = config.resolve("random-projection", encoder, "tiny", **settings)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=rf"^dataset 'mine' \(mine.py.*{sentence}") as raised:
        (music_source if kind == "music" else noise_source)(resolved, tmp_path)
    assert "\n" not in str(raised.value)


def test_what_the_operating_system_says_to_a_data_set_of_the_suite_is_not_its_fault() -> None:
    plugin = registry.load("dataset", "folder")
    with pytest.raises(OSError, match="drive"), registry.name_plugin("dataset", "folder", plugin, "fails"):
        raise OSError(5, "the drive is gone")
