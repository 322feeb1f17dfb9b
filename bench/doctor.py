"""Checks whether this machine can run the suite, and makes the one repair that is safe.

Each library is tried in a separate process: a library built for another processor kills the process that imports it,
and a new process sees a repair at once.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.errors import BenchError
from bench.machine import THREAD_SETTINGS, allowed_cores, cores, cpu_quota, explain_threads, thread_settings

PROBE_TIMEOUT_S = 120.0
MIN_FREE_DISK_GB = 2.0  # what the preset `small` stores for ten hours of music
MIN_MEMORY_GB = 2.0
GB = 1e9
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CUDA_LIBRARIES = (b"libtorch_cuda", b"libcudart", b"libc10_cuda")

TORCH = """
import torch
(torch.eye(2) @ torch.eye(2)).sum().item()
print(torch.__version__, f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU")
"""
TORCHAUDIO = """
import torch, torchaudio
torchaudio.transforms.MelSpectrogram(16000, n_mels=32)(torch.zeros(1, 16000))
print(torchaudio.__version__)
"""
FALCONN = """
import falconn, numpy
points = numpy.random.default_rng(0).standard_normal((256, 16)).astype(numpy.float32)
index = falconn.LSHIndex(falconn.get_default_parameters(256, 16))
index.setup(points)
found = index.construct_query_object().find_nearest_neighbor(points[7])
assert found == 7, f"searched for point 7 of 256 and found {found}"
print("finds its own points")
"""
FAISS = """
import torch, faiss, numpy
points = torch.nn.functional.normalize(torch.randn(256, 16)).numpy()
index = faiss.IndexFlatIP(16)
index.add(points)
found = index.search(points[7:8], 1)[1][0, 0]
assert found == 7, f"searched for point 7 of 256 and found {found}"
print(faiss.__version__, "beside torch, finds its own points")
"""
MLFLOW = """
import mlflow
print(mlflow.__version__)
"""
SOUNDFILE = """
import io, numpy, soundfile
file = io.BytesIO()
soundfile.write(file, numpy.zeros(16000, dtype="float32"), 16000, format="MP3")
file.seek(0)
assert len(soundfile.read(file)[0]) > 0, "a written mp3 reads back empty"
print(f"{soundfile.__version__} with {soundfile.__libsndfile_version__}, reads mp3")
"""
THREADS = """
import torch
print(torch.get_num_threads())
"""
GPU = """
import torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(", ".join(names))
"""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. `remedy` is what to do about it, empty if nothing need be done."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def diagnose(store: Path = Path("bench-store")) -> list[Finding]:
    """Return a finding for everything the suite depends on, in a fixed order. Changes nothing; takes some seconds."""
    return [
        _python(),
        _library("torch", TORCH, "install it with `pip install -c constraints.txt torch`"),
        _library(
            "torchaudio",
            TORCHAUDIO,
            "run `bench doctor --fix`: it removes the CUDA-only libraries on CPU torch",
        ),
        _library("falconn", FALCONN, "run `make setup`: it builds FALCONN for this processor"),
        _library(
            "faiss",
            FAISS,
            "only for the index `faiss`: run `make setup`, or `pip install -c constraints.txt faiss-cpu`",
        ),
        _library("mlflow", MLFLOW, "install it with `pip install -c constraints.txt mlflow`"),
        _library("soundfile", SOUNDFILE, "upgrade it with `pip install --upgrade soundfile`"),
        _compiler(),
        _gpu(),
        _disk(store),
        _memory(),
        _threads(),
    ]


def fix() -> list[str]:
    """Make the repair and return one sentence for each thing repaired; an empty list if nothing was wrong.

    The torchaudio wheels on the package index need CUDA's libraries; with a CPU build of torch their import fails.
    Everything that the suite uses of torchaudio works without its compiled libraries, so they are removed.
    torchaudio is not imported, and only files in its `lib` folder are touched.
    Raises: BenchError if the files cannot be removed.
    """
    libraries = _cuda_only_libraries()
    for library in libraries:
        try:
            library.unlink(missing_ok=True)
        except OSError as error:
            raise BenchError(f"cannot remove {library}: {error.strerror}; run as the owner of this folder") from error
    if not libraries:
        return []
    names, folder = ", ".join(library.name for library in libraries), libraries[0].parent
    return [f"removed {names} from {folder}: they need CUDA, torch is a CPU build"]


def _cuda_only_libraries() -> list[Path]:
    """Return torchaudio's compiled libraries if they need CUDA and this torch is built without it.

    The libraries load each other, so if one needs CUDA all are returned; a CPU build of torchaudio needs none.
    """
    folder = _torchaudio_lib()
    if folder is None or not _is_cpu_torch():
        return []
    libraries = sorted(folder.glob("*.so"))
    needs_cuda = any(name in library.read_bytes() for library in libraries for name in CUDA_LIBRARIES)
    return libraries if needs_cuda else []


def _torchaudio_lib() -> Path | None:
    spec = importlib.util.find_spec("torchaudio")  # finds a top-level package without importing it
    return Path(spec.origin).parent / "lib" if spec and spec.origin else None


def _is_cpu_torch() -> bool:
    try:
        import torch
    except (ImportError, OSError):
        return False
    return torch.version.cuda is None and torch.version.hip is None


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] <= (3, 12)
    remedy = "use Python 3.11 or 3.12: `make clean`, then `make setup PYTHON=python3.12`"
    return Finding("python", ok, version, "" if ok else remedy)


def _library(name: str, code: str, remedy: str) -> Finding:
    ok, detail = _probe(code)
    return Finding(name, ok, detail, "" if ok else remedy)


def _probe(code: str, settings: Mapping[str, str] = ONE_THREAD) -> tuple[bool, str]:
    """Return whether the code runs in a new interpreter, and the last line of its output."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **settings}
    command = [sys.executable, "-P", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired:
        return False, f"gave no answer in {PROBE_TIMEOUT_S:g} s"
    if done.returncode < 0:
        cause = signal.Signals(-done.returncode)
        reason = ", built for another processor" if cause is signal.SIGILL else ""
        return False, f"killed by {cause.name}{reason}"
    output = done.stdout if done.returncode == 0 else done.stderr
    return done.returncode == 0, (output.strip().splitlines() or [""])[-1]


def _compiler(which: Callable[[str], str | None] = shutil.which) -> Finding:
    candidates = [os.environ.get("CXX", "c++").split()[0], "c++", "g++", "clang++"]
    found = next((path for path in map(which, candidates) if path), None)
    if found:
        return Finding("compiler", True, found)
    return Finding("compiler", False, "no C++ compiler", "only to build FALCONN: `sudo apt-get install g++`")


def _gpu() -> Finding:
    ok, names = _probe(GPU)
    if ok and names:
        return Finding("gpu", True, names)
    if NVIDIA_DRIVER.exists():  # not an error: the user may have chosen a CPU build
        return Finding("gpu", True, "an NVIDIA driver, but torch cannot use it; install a CUDA build of torch to do so")
    return Finding("gpu", True, "none; everything runs on the CPU")


def _disk(store: Path) -> Finding:
    existing = next(folder for folder in (store.absolute(), *store.absolute().parents) if folder.exists())
    free_gb = shutil.disk_usage(existing).free / GB
    ok = free_gb >= MIN_FREE_DISK_GB
    remedy = f"free disk space until {MIN_FREE_DISK_GB:g} GB are available, or choose another folder with --store"
    return Finding("disk", ok, f"{free_gb:.0f} GB free at {existing}", "" if ok else remedy)


def _memory() -> Finding:
    total_gb = psutil.virtual_memory().total / GB
    ok = total_gb >= MIN_MEMORY_GB
    remedy = f"{MIN_MEMORY_GB:g} GB are needed; use the preset `tiny`, or a smaller eval.max_queries"
    return Finding("memory", ok, f"{total_gb:.0f} GB", "" if ok else remedy)


def _threads() -> Finding:
    """Return how many threads a run on the CPU will have, as `device.limit_threads` sets them."""
    ok, answer = _probe(THREADS, {})
    settings = thread_settings(os.environ)
    if not ok or not answer.isdigit():
        return Finding("threads", True, f"at most {cores()}; torch cannot be asked")
    threads = int(answer) if settings else min(int(answer), cores())
    detail = explain_threads(threads, os.cpu_count() or 1, allowed_cores(), cpu_quota(), settings)
    remedy = f"they wait for each other's cores; set {THREAD_SETTINGS[0]} to {cores()} at most, or unset it"
    return Finding("threads", threads <= cores(), detail, "" if threads <= cores() else remedy)
