"""Launching: what each worker is given of the machine, and what is refused before anything is prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import registry
from bench.errors import ConfigError
from bench.store import Store
from bench.sweeps import launch
from bench.sweeps.launch import SweepRequest, sweep
from bench.sweeps.space import Basis, Parameter, Space
from bench.values import no_progress

SPACE = Space("tiny", {"train.lr": Parameter(1e-4, 1e-2)})


def request(folder: Path, **changes: Any) -> SweepRequest:
    basis = Basis("now-playing", "now-playing", registry.load("encoder", "now-playing"), "tiny", None)
    values: dict[str, Any] = {
        "basis": basis, "space": SPACE, "space_path": Path("mine.toml"), "trials": 2, "workers": 1,
        "objectives": ("segment_top1",), "pruner": "none", "storage": None, "study": None, "data_root": None,
        "store": Store(folder),
    }  # fmt: skip
    return SweepRequest(**values | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trials": 0}, "--trials must be >= 1, got 0"),
        ({"workers": 0}, "--workers must be between 1 and 256, got 0"),
        ({"objectives": ("segment_top",)}, "no objective called 'segment_top'; did you mean 'segment_top1'"),
        ({"objectives": ("bytes_per_s", "bytes_per_s")}, "--objective must not name an objective twice"),
        ({"space": Space("tiny", {"train.lrr": Parameter(0.1, 1.0)})}, "mine.toml: no setting called 'train.lrr'"),
        ({"storage": "postgresql+psycopg://me:secret@127.0.0.1:9/x"}, "cannot be reached"),
    ],
)
def test_wrong_request_is_refused_before_any_work(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sweep(request(tmp_path, **changes), no_progress, print, print)
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)
    assert not list(tmp_path.glob("pcm"))


def test_cores_are_divided_among_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert launch._build_environment(0, 3) == {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    assert launch._build_environment(0, 16)["OMP_NUM_THREADS"] == "1"


def test_each_worker_has_a_gpu_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [launch._build_environment(i, 4)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [launch._build_environment(i, 2)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["5", "7"]
