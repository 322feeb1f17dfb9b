"""Collects the tags of a run: version, commit, command, machine and libraries; encoder, preset and data."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import bench
from bench.logbook.redact import without_password
from bench.machine import cores

if TYPE_CHECKING:
    import torch

    from bench.settings import RunConfig

LIBRARIES = ("torch", "torchaudio", "numpy", "scipy", "pandas", "soundfile", "falconn", "mlflow", "optuna")
GIB = 1 << 30


def provenance() -> dict[str, str]:
    """Return the tags for the code, command, machine and libraries of this process; never fails."""
    tags = {
        "bench.version": bench.__version__,
        "bench.cmd": shlex.join([Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])]),
        "mlflow.source.name": " ".join(["bench", *sys.argv[1:2]]),  # MLflow's column Source
        "mlflow.source.type": "LOCAL",
        "bench.python": platform.python_version(),
        "bench.platform": platform.platform(),
        "bench.cpu": _cpu(),
        "bench.cores": str(cores()),
        "bench.gpu": _gpu() or "none",
        "bench.threads": _threads(),
        "bench.memory_gib": f"{_memory_bytes() / GIB:.1f}",
    }
    libraries = {f"bench.lib.{name}": version for name in LIBRARIES if (version := _version(name))}
    return tags | _git(Path(bench.__file__).parent) | libraries


def labels(config: RunConfig, device: torch.device, data_digest: str) -> dict[str, str]:
    """Return the tags to filter runs by: encoder or matcher, preset, digest of the music, "cpu" or the GPU's name."""
    return {
        f"bench.{config.kind}": config.system,
        "bench.preset": config.preset,
        "bench.data_digest": data_digest,
        "bench.device": device.type if device.type == "cpu" else _gpu() or device.type,
    }


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _gpu() -> str:
    try:
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""
    except Exception:  # torch is missing or does not match the driver; the run itself will report that
        return ""


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _git(source: Path) -> dict[str, str]:
    """Return the tags for commit and uncommitted changes; empty if the source is not in a git checkout.

    An installed copy may lie inside another project's checkout (in its .venv), so git must know our files.
    """
    if not _output(source, "ls-files", "__init__.py"):
        return {}
    commit = _output(source, "rev-parse", "HEAD")
    changes = _output(source, "status", "--porcelain", "--", ":(top)*.py", ":(top)*.toml")
    if not commit:
        return {}
    return {"bench.git": commit, "bench.dirty": str(bool(changes)).lower(), "mlflow.source.git.commit": commit}


def _output(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _threads() -> str:
    """Return how many threads torch uses: the order of its sums, and so their last bits, depends on it."""
    try:
        import torch

        return str(torch.get_num_threads())
    except Exception:  # as in `_gpu`
        return ""
