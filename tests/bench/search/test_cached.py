from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bench import registry
from bench.search.cached import build_key, build_or_load
from bench.search.indexes import exact
from bench.store import Store


@dataclass(frozen=True)
class Settings:
    size: int = 1
    probes: int = 1


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return an index plug-in that counts how often it is built, and keeps its vectors."""
    plugin = ModuleType("keeping")
    plugin.builds = 0  # type: ignore[attr-defined]

    def build(config: object, vectors: np.ndarray) -> exact.Exact:
        plugin.builds += 1  # type: ignore[attr-defined]
        return exact.build(exact.Config(), vectors)

    plugin.build = build  # type: ignore[attr-defined]
    plugin.save = lambda index, folder: np.save(folder / "v.npy", index.vectors_ND)  # type: ignore[attr-defined]
    plugin.load = lambda config, folder, vectors: exact.build(exact.Config(), np.load(folder / "v.npy"))  # type: ignore[attr-defined]
    monkeypatch.setattr(registry, "source_digest", lambda plugin: "source")
    return plugin


def test_an_index_that_can_be_kept_is_built_once_for_each_database_and_setting(
    tmp_path: Path, keeping: ModuleType
) -> None:
    vectors = np.eye(4, dtype=np.float32)
    for key, config, builds in [("a", 1, 1), ("a", 1, 1), ("b", 1, 2), ("a", 2, 3), ("a", 1, 3)]:
        index = build_or_load(Store(tmp_path), keeping, Settings(config), vectors, key)
        assert index.neighbours(vectors[2:3], 1).tolist() == [[2]]
        assert keeping.builds == builds


def test_the_version_of_the_library_is_in_the_key(keeping: ModuleType) -> None:
    plain = build_key(keeping, Settings(), "a")
    keeping.LIBRARY = "numpy"  # type: ignore[attr-defined]
    with_numpy = build_key(keeping, Settings(), "a")
    keeping.LIBRARY = "no-such-library"  # type: ignore[attr-defined]
    assert len({plain, with_numpy, build_key(keeping, Settings(), "a")}) == 3


def test_settings_that_only_queries_feel_need_no_index_of_their_own(keeping: ModuleType) -> None:
    keeping.QUERY_SETTINGS = ("probes",)  # type: ignore[attr-defined]
    plain = build_key(keeping, Settings(), "a")
    assert build_key(keeping, Settings(probes=2), "a") == plain != build_key(keeping, Settings(size=2), "a")


def test_an_index_that_cannot_be_kept_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    vectors = np.eye(4, dtype=np.float32)
    index = build_or_load(Store(tmp_path), exact, exact.Config(), vectors, "a")
    assert index.neighbours(vectors[:1], 1).tolist() == [[0]]
    assert not list(tmp_path.iterdir())


def test_settings_that_leave_nothing_to_keep_are_built_anew(tmp_path: Path, keeping: ModuleType) -> None:
    keeping.keeps = lambda config: config.size == 1  # type: ignore[attr-defined]
    vectors = np.eye(4, dtype=np.float32)
    for config, builds in [(1, 1), (1, 1), (2, 2), (2, 3)]:
        build_or_load(Store(tmp_path), keeping, Settings(config), vectors, "a")
        assert keeping.builds == builds
