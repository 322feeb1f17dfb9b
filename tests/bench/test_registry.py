"""Plug-ins by name: listed without an import, found three ways, and every way to be wrong has its sentence."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.errors import PluginError

PLUGIN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    width: int = 1

def build(config):
    return config.width
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on the import path, as site-packages is, for plug-ins with entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(folder: Path, module: str, source: str, group: str, name: str) -> None:
    """Write a module and the metadata that an installed distribution of it would have."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")


@pytest.mark.parametrize("kind", sorted(registry.KINDS))
def test_names_are_sorted_and_written_with_dashes(kind: str) -> None:
    names = registry.names(kind)
    assert names == sorted(names)
    assert not [name for name in names if "_" in name]


def test_listing_imports_no_plugin(installed: Path) -> None:
    install(installed, "explosive_encoder", "raise RuntimeError('imported')", "bench.encoders", "explosive")
    assert "explosive" in registry.names("encoder")
    assert "explosive_encoder" not in sys.modules


def test_file_in_the_folder_is_found_by_its_name() -> None:
    module = registry.load("encoder", "now-playing")
    assert module.__name__ == "bench.models.now_playing"


def test_entry_point_is_found_by_its_name(installed: Path) -> None:
    install(installed, "afp_third_party", PLUGIN, "bench.encoders", "third-party")
    module = registry.load("encoder", "third-party")
    assert module.build(module.Config(width=3)) == 3


def test_path_is_found(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    module = registry.load("encoder", str(file))
    assert module.build(module.Config()) == 1


def test_two_files_of_one_name_are_two_plugins(tmp_path: Path) -> None:
    files = [tmp_path / folder / "mine.py" for folder in ("a", "b")]
    for width, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(PLUGIN.replace("= 1", f"= {width}"))
    assert [registry.load("encoder", str(file)).Config().width for file in files] == [0, 1]


def test_same_path_twice_is_the_same_module(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    assert registry.load("encoder", str(file)) is registry.load("encoder", str(file))


def test_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no encoder called 'now-plaing'; did you mean 'now-playing'\?"):
        registry.load("encoder", "now-plaing")


def test_name_near_nothing_is_answered_with_all() -> None:
    with pytest.raises(PluginError, match=r"known: .*now-playing"):
        registry.load("encoder", "xyzzy")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"no plug-in file at .*absent\.py"):
        registry.load("encoder", str(tmp_path / "absent.py"))


def test_file_that_fails_says_why_and_may_be_mended(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import a_library_that_is_not_there")
    with pytest.raises(PluginError, match=r"broken\.py cannot be imported: ModuleNotFoundError.*a_library_that_is_not"):
        registry.load("encoder", str(file))
    file.write_text(PLUGIN)
    assert registry.load("encoder", str(file)).Config().width == 1


def test_file_with_a_syntax_error_says_so(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def build(:")
    with pytest.raises(PluginError, match="SyntaxError"):
        registry.load("encoder", str(file))


def test_entry_point_that_fails_says_why(installed: Path) -> None:
    install(installed, "afp_broken", "1 / 0", "bench.indexes", "broken-index")
    with pytest.raises(PluginError, match=r"'broken-index' \(afp_broken\) cannot be imported: ZeroDivisionError"):
        registry.load("index", "broken-index")


def test_plugin_without_a_part_names_the_part(tmp_path: Path) -> None:
    file = tmp_path / "half.py"
    file.write_text("Config = object")
    with pytest.raises(PluginError, match=r"encoder plug-in .*half\.py.* does not define build"):
        registry.load("encoder", str(file))


def test_aligner_of_an_earlier_version_is_told_the_new_name_of_its_constant(tmp_path: Path) -> None:
    file = tmp_path / "old.py"
    file.write_text(f"{PLUGIN}HEARS = True\n")
    with pytest.raises(
        PluginError, match=r"aligner plug-in .*old\.py.* defines HEARS, now called NEEDS_ENCODER; rename"
    ):
        registry.load("aligner", str(file))


def test_digest_follows_the_source(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.py", "b.py", "c.py")]
    for file, text in zip(files, (PLUGIN, PLUGIN, PLUGIN + "# changed\n"), strict=True):
        file.write_text(text)
    first, same, other = (registry.source_digest(registry.load("encoder", str(file))) for file in files)
    assert first == same != other


def test_every_kind_has_a_folder_and_a_group() -> None:
    groups = [kind.group for kind in registry.KINDS.values()]
    assert len(set(groups)) == len(groups)
    assert all(group.startswith("bench.") for group in groups)
    assert importlib.metadata.version("afp-bench")
