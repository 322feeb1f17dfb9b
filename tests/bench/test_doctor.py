"""The doctor: a finding for everything, a remedy for what is wrong, and a repair that touches only what it may."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from bench import doctor
from bench.errors import BenchError

NAMES = [
    "python", "torch", "torchaudio", "falconn", "faiss", "mlflow", "soundfile", "compiler", "gpu", "disk", "memory",
    "threads",
]  # fmt: skip
NEEDS_CUDA = b"\x7fELF...libtorch_cuda.so...libcudart.so.13"


class Usage(NamedTuple):
    """What the operating system would say, in bytes."""

    total: int
    free: int = 0


@pytest.fixture
def lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the `lib` folder of a torchaudio that was built for CUDA, beside a CPU build of torch."""
    folder = tmp_path / "torchaudio" / "lib"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "_torchaudio.abi3.so").write_bytes(b"\x7fELF...libtorchaudio")
    (folder / "libtorchaudio.abi3.so").write_bytes(NEEDS_CUDA)
    (folder.parent / "other.so").write_bytes(NEEDS_CUDA)
    monkeypatch.setattr(doctor, "_torchaudio_lib", lambda: folder)
    monkeypatch.setattr(doctor, "_is_cpu_torch", lambda: True)
    return folder


def left(lib: Path) -> list[str]:
    return sorted(str(path.relative_to(lib.parent)) for path in lib.parent.rglob("*") if path.is_file())


def test_fix_removes_the_libraries_in_lib_and_nothing_else(lib: Path) -> None:
    (done,) = doctor.fix()
    assert "_torchaudio.abi3.so, libtorchaudio.abi3.so" in done
    assert left(lib) == ["lib/__init__.py", "other.so"]


def test_fix_again_does_nothing(lib: Path) -> None:
    assert len(doctor.fix()) == 1
    assert doctor.fix() == []


def test_fix_leaves_cuda_torch_alone(lib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_is_cpu_torch", lambda: False)
    before = left(lib)
    assert doctor.fix() == []
    assert left(lib) == before


def test_fix_leaves_a_cpu_build_of_torchaudio_alone(lib: Path) -> None:
    (lib / "libtorchaudio.abi3.so").write_bytes(b"\x7fELF...libtorch_cpu.so")
    before = left(lib)
    assert doctor.fix() == []
    assert left(lib) == before


def test_fix_without_torchaudio_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_torchaudio_lib", lambda: None)
    assert doctor.fix() == []


def test_fix_that_may_not_write_says_which_file(lib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(BenchError, match=r"cannot remove .*_torchaudio\.abi3\.so: Permission denied"):
        doctor.fix()


def test_fix_does_not_import_torchaudio() -> None:
    code = "import sys; from bench import doctor; doctor._cuda_only_libraries(); assert 'torchaudio' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=120)


def test_diagnose_finds_everything_well_after_setup(tmp_path: Path) -> None:
    findings = doctor.diagnose(tmp_path)
    assert [finding.name for finding in findings] == NAMES
    installed = {f.name: f for f in findings if f.name not in ("compiler", "gpu", "disk", "memory", "threads")}
    assert [f for f in installed.values() if not f.ok] == []
    assert all(f.detail for f in findings)
    assert all(bool(f.remedy) != f.ok for f in findings), "a remedy exactly where something is wrong"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise OSError('libcudart.so.13: cannot open')", "libcudart.so.13"),
        ("import a_library_that_is_not_there", "a_library_that_is_not_there"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})", "SIGILL, built for another processor"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", "SIGKILL"),
    ],
)
def test_library_that_fails_is_reported_with_its_remedy(code: str, words: str) -> None:
    finding = doctor._library("falconn", code, "build it again")
    assert not finding.ok
    assert words in finding.detail
    assert finding.remedy == "build it again"


def test_library_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.5)
    finding = doctor._library("mlflow", "import time; time.sleep(60)", "reinstall")
    assert not finding.ok
    assert "no answer in 0.5 s" in finding.detail


@pytest.mark.parametrize(
    ("version", "ok"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 12, 9), True), ((3, 13, 0), False)]
)
def test_python_is_3_11_or_3_12(version: tuple[int, int, int], ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", version)
    assert doctor._python().ok is ok


def test_missing_compiler_names_the_package() -> None:
    finding = doctor._compiler(which=lambda name: None)
    assert not finding.ok
    assert "g++" in finding.remedy


def test_compiler_of_the_environment_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "clang++-19 -O2")
    assert doctor._compiler(which=lambda name: f"/opt/{name}").detail == "/opt/clang++-19"


def test_little_disk_and_memory_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage(total=10**12, free=10**9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Usage(total=10**9))
    disk, memory = doctor._disk(tmp_path / "not" / "yet" / "made"), doctor._memory()
    assert not disk.ok and f"1 GB free at {tmp_path}" in disk.detail and "--store" in disk.remedy
    assert not memory.ok and "tiny" in memory.remedy


@pytest.mark.parametrize(("driver", "words"), [(True, "install a CUDA build of torch"), (False, "none")])
def test_no_gpu_is_no_fault(driver: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda code: (True, ""))
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path if driver else tmp_path / "absent")
    finding = doctor._gpu()
    assert finding.ok
    assert words in finding.detail


@pytest.mark.parametrize(
    ("settings", "torch_has", "ok", "words"),
    [
        ({}, "8", True, "1, of 8 cores: the affinity allows 8, a CPU quota of 0.5, OMP_NUM_THREADS is not set"),
        ({"OMP_NUM_THREADS": "1"}, "1", True, "OMP_NUM_THREADS=1"),
        ({"OMP_NUM_THREADS": "8"}, "8", False, "8, of 8 cores"),
    ],
)
def test_threads_are_told_with_the_reason_and_more_than_the_quota_is_a_fault(
    settings: dict[str, str], torch_has: str, ok: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in doctor.THREAD_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "_probe", lambda code, settings: (True, torch_has))
    monkeypatch.setattr(doctor, "cores", lambda: 1)
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 0.5)
    monkeypatch.setattr(doctor, "allowed_cores", lambda: 8)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 8)
    finding = doctor._threads()
    assert finding.ok is ok and words in finding.detail
    assert ok or "set OMP_NUM_THREADS to 1 at most" in finding.remedy
