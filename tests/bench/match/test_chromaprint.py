"""Chromaprint: the search around the library, against a slow way; and what is said where the library is missing."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from songs import add_noise, cut_query, draw_song

from bench.errors import ConfigError, PluginError, StoreError
from bench.match.matchers import chromaprint as plugin
from bench.match.matchers.chromaprint import Chromaprint, Config


def has_library() -> bool:
    try:
        importlib.import_module("chromaprint")
    except ImportError:
        return False
    return True


needs_library = pytest.mark.skipif(not has_library(), reason="pyacoustid or libchromaprint is not installed")


@pytest.fixture(scope="module")
def songs() -> list[np.ndarray]:
    """Return six tracks: the first and the fourth are one song, the fifth is silent, the sixth is a click long."""
    songs = [draw_song(seed, 15) for seed in range(4)] + [np.zeros(100_000, np.int16), draw_song(5, 1)[:10]]
    songs[3] = songs[0].copy()
    return songs


@pytest.fixture(scope="module")
def folder(songs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chromaprint")
    plugin.build(Config(), iter(songs), folder)
    return folder


@pytest.fixture(scope="module")
def matcher(folder: Path) -> Chromaprint:
    return plugin.load(Config(), folder)


@needs_library
@pytest.mark.parametrize(("seconds", "items"), [(2, 0), (3, 3), (5, 19)])
@pytest.mark.parametrize("seed", [1, 2])
def test_queries_have_as_many_items_as_the_library_gives(seconds: float, items: int, seed: int) -> None:
    import chromaprint

    assert len(plugin._list_items(chromaprint, Config(), draw_song(seed, seconds))) == items


@needs_library
@pytest.mark.parametrize("algorithm", [1, 4])
def test_the_shortest_query_is_the_shortest_with_an_item(algorithm: int) -> None:
    import chromaprint

    wave_T, config = draw_song(1, 3), Config(algorithm=algorithm)
    num_samples = plugin.SHORTEST_SAMPLES[algorithm]
    assert len(plugin._list_items(chromaprint, config, wave_T[:num_samples])) == 1
    assert len(plugin._list_items(chromaprint, config, wave_T[: num_samples - 160])) == 0


@needs_library
def test_the_answer_has_the_least_errors_of_all_places_that_share_a_key(
    songs: list[np.ndarray], matcher: Chromaprint
) -> None:
    query_T = add_noise(cut_query(songs[2], 70_000, 5), 20)
    wave_T = np.rint(query_T * np.float32(32_767)).astype(np.int16)
    word_W = plugin._list_items(matcher.library, Config(), wave_T)
    errors = {}
    for row, song_T in enumerate(songs):
        word_N = plugin._list_items(matcher.library, Config(), song_T)
        for place in range(len(word_N) - len(word_W) + 1):
            here_W = word_N[place : place + len(word_W)]
            if np.any((here_W >> 20 == word_W >> 20) & (here_W != matcher.silent_item)):
                errors[row, place] = int(np.bitwise_count(here_W ^ word_W).sum())
    row, place = min(errors, key=lambda key: (errors[key], key))
    found = matcher.find(query_T[None], 3)
    assert found.row_QR[0, 0] == row == 2
    assert found.start_QR[0, 0] == round(place * 1_365 * 16_000 / 11_025)
    assert found.score_QR[0, 0] == pytest.approx(1 - errors[row, place] / (32 * len(word_W)))
    assert abs(found.start_QR[0, 0] - 70_000) <= 0.062 * 16_000 + 200


@needs_library
def test_equal_tracks_come_by_row_and_a_track_left_out_never(songs: list[np.ndarray], matcher: Chromaprint) -> None:
    query_BT = np.stack([cut_query(songs[0], 30_011, 5)] * 2)
    found = matcher.find(query_BT, 4, np.array([-1, 0]))
    assert found.row_QR[0, :2].tolist() == [0, 3] and found.score_QR[0, 0] == found.score_QR[0, 1]
    assert found.row_QR[1, 0] == 3 and 0 not in found.row_QR[1]


@needs_library
def test_each_query_is_answered_alone_and_after_loading_in_the_same_way(
    songs: list[np.ndarray], folder: Path, matcher: Chromaprint
) -> None:
    query_BT = np.stack([cut_query(songs[row], 20_000, 4) for row in (1, 2)])
    together, again = matcher.find(query_BT, 5), plugin.load(Config(), folder).find(query_BT, 5)
    for name in ("row_QR", "start_QR", "score_QR"):
        alone = [getattr(matcher.find(query_BT[b : b + 1], 5), name)[0] for b in range(2)]
        assert np.array_equal(np.stack(alone), getattr(together, name), equal_nan=True)
        assert np.array_equal(getattr(again, name), getattr(together, name), equal_nan=True)


@needs_library
@pytest.mark.parametrize("query_T", [np.zeros(80_000, np.float32), np.ones(10, np.float32), np.empty(0, np.float32)])
def test_silence_and_a_click_have_no_answer(matcher: Chromaprint, query_T: np.ndarray) -> None:
    assert np.all(matcher.find(query_T[None], 3).row_QR == -1)


@needs_library
def test_half_a_file_is_refused(songs: list[np.ndarray], tmp_path: Path) -> None:
    plugin.build(Config(), iter(songs[:1]), tmp_path)
    path = tmp_path / "prints.npy"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoreError, match="damaged"):
        plugin.load(Config(), tmp_path)


@needs_library
def test_items_of_another_algorithm_are_of_another_grid(songs: list[np.ndarray], tmp_path: Path) -> None:
    config = plugin.presets()["fine"]
    plugin.build(config, iter(songs[:3]), tmp_path)
    found = plugin.load(config, tmp_path).find(cut_query(songs[1], 50_000, 3)[None], 1)
    assert found.row_QR[0, 0] == 1 and abs(found.start_QR[0, 0] - 50_000) <= 0.0465 * 16_000 + 200


@pytest.mark.parametrize("wrong", [{"algorithm": 2}, {"key_bits": 7}, {"key_bits": 33}, {"max_ber": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(Config(), **wrong)


def refuse_to_import(monkeypatch: pytest.MonkeyPatch, error: ImportError) -> None:
    class Finder:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "chromaprint":
                raise error

    monkeypatch.delitem(sys.modules, "chromaprint", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refuse_to_import(monkeypatch, ModuleNotFoundError("No module named 'chromaprint'"))
    with pytest.raises(PluginError, match=r"needs the package pyacoustid.*pip install -c constraints.txt pyacoustid"):
        plugin.build(Config(), iter([]), tmp_path)


def test_a_missing_shared_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refuse_to_import(monkeypatch, ImportError("couldn't find libchromaprint"))
    with pytest.raises(PluginError, match=r"libchromaprint.*apt-get install libchromaprint1"):
        plugin.load(Config(), tmp_path)


def test_another_package_of_the_same_name_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stranger = ModuleType("chromaprint")
    stranger.__file__ = "somewhere/chromaprint.py"
    monkeypatch.setitem(sys.modules, "chromaprint", stranger)
    with pytest.raises(PluginError, match="not that of pyacoustid"):
        plugin.build(Config(), iter([]), tmp_path)
