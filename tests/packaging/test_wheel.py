"""The wheel: one import package, every module and every data file in it, nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"bench": "bench", "models": "bench/models", "datasets": "bench/datasets", "sweeps": "bench/sweeps"}
FOLDERS |= {"reports": "bench/reports"}
SHIPPED = (".py", ".toml", ".json")


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names in a wheel built offline from a copy of the tracked files' folders."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*FOLDERS, "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            (source / name).symlink_to(ROOT / name)  # links, so that the build leaves nothing in the checkout
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", built, source], check=True, timeout=120)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_top_level_is_bench_and_dist_info_only(wheel_files: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel_files}
    assert sorted(t.split("-")[0] for t in top) == ["afp_bench", "bench"]
    assert all(t == "bench" or t.endswith(".dist-info") for t in top)


def test_every_module_and_data_file_of_the_folders_is_in_the_wheel(wheel_files: set[str]) -> None:
    ours = {
        f"{inside}/{path.relative_to(ROOT / folder)}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SHIPPED or path.name == "py.typed" or path.parent.name == "templates"
    }
    assert ours, "no files found: the test looks in the wrong place"
    missing = sorted(ours - wheel_files)
    assert not missing, f"not in the wheel; list their packages in pyproject.toml: {missing}"
    assert {"bench/py.typed", "bench/presets.toml"} <= wheel_files


def test_every_folder_with_modules_has_an_init_file() -> None:
    folders = {path.parent for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_wheel_offers_the_command(wheel_files: set[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel_files)
    assert any(name.endswith("LICENSE") for name in wheel_files)
