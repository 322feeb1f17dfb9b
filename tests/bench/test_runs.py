"""Finished runs: found once, and opened with the device and the precision of their settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import registry
from bench.config import flatten, resolve
from bench.device import pick_device, usable_device
from bench.errors import ConfigError
from bench.results import CONFIG, SUMMARY
from bench.runs import find_run, list_runs
from bench.store import Store, write_json
from bench.train import checkpoint
from bench.train.checkpoint import WEIGHTS

ENCODER = "random-projection"


def keep_run(root: Path, key: str, *overrides: str, seed: int = 0, age_s: float = 0.0) -> None:
    """Write what a finished run leaves in the store: settings, summary, and weights of a matrix of its own."""
    plugin = registry.load("encoder", ENCODER)
    settings = flatten(resolve(ENCODER, plugin, "tiny", overrides=overrides))
    folder = root / "runs" / key
    folder.mkdir(parents=True)
    write_json(folder / CONFIG, settings)
    write_json(folder / SUMMARY, {"run": key, "checkpoint": {"key": f"weights-{key}"}})
    made = (folder / SUMMARY).stat().st_mtime - age_s
    os.utime(folder / SUMMARY, (made, made))
    weights = root / "weights" / f"weights-{key}" / WEIGHTS
    weights.parent.mkdir(parents=True)
    checkpoint.save(weights, dict(plugin.build(plugin.Config(seed=seed)).state_dict()), {"step": 0})


def test_settings_weights_and_summary_are_of_one_run_even_if_another_one_finishes(tmp_path: Path) -> None:
    keep_run(tmp_path, "aaaa", seed=1, age_s=60)
    found = find_run(Store(tmp_path))
    keep_run(tmp_path, "bbbb", "eval.hop_ms=50", seed=2)
    assert find_run(Store(tmp_path)).key == "bbbb" and list_runs(Store(tmp_path)) == ["aaaa", "bbbb"]
    assert (found.key, found.summary["run"], found.settings["eval.hop_ms"]) == ("aaaa", "aaaa", 100.0)
    assert found.weights().key == "weights-aaaa"
    plugin = registry.load("encoder", ENCODER)
    matrix = plugin.build(plugin.Config(seed=1)).matrix
    assert torch.equal(found.embedder().encoder.matrix, matrix)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("overrides", "device", "precision", "expected"),
    [
        ((), None, None, ("cpu", "fp32")),
        (('device="cpu"', 'eval.precision="bf16"'), None, None, ("cpu", "bf16")),
        (('device="cuda"',), None, None, ("cuda" if torch.cuda.is_available() else "cpu", "fp32")),
        (('eval.precision="bf16"',), torch.device("cpu"), "fp32", ("cpu", "fp32")),
    ],
)
def test_an_embedder_has_the_device_and_precision_of_the_run_unless_told_otherwise(
    tmp_path: Path,
    overrides: tuple[str, ...],
    device: torch.device | None,
    precision: str | None,
    expected: tuple[str, str],
) -> None:
    overrides = overrides or ('device="cpu"',)
    keep_run(tmp_path, "aaaa", *overrides)
    embedder = find_run(Store(tmp_path)).embedder(device, precision)
    assert (embedder.device.type, embedder.precision, embedder.key) == (*expected, "weights-aaaa")
    vectors = embedder(np.random.default_rng(0).uniform(-1, 1, (2, embedder.segment_samples)).astype(np.float32))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-2)  # bf16 has three digits


def test_settings_are_restored_with_sections_left_out_and_values_changed(tmp_path: Path) -> None:
    overrides = ["eval.hop_ms=50", "train.lr=3e-5", 'data.noise="noise-synth"', "eval.lengths_s=[1.0, 2.5]", "seed=4"]
    keep_run(tmp_path, "aaaa", *overrides, "index.falconn.bits=9")
    run, plugin = find_run(Store(tmp_path), "aa"), registry.load("encoder", ENCODER)
    config = run.restore_config(plugin, without=("index", "eval.indexes"))
    assert (config.eval.hop_ms, config.eval.lengths_s, config.seed, config.preset) == (50, (1.0, 2.5), 4, "tiny")
    assert (config.train.lr, config.data.noise) == (3e-5, "noise-synth")
    assert config.index["falconn"].bits == 18
    assert run.restore_config(plugin).index["falconn"].bits == 9
    changed = run.restore_config(plugin, without=("index",), changes={"eval.indexes": ["exact"]}, overrides=["seed=5"])
    assert (changed.eval.indexes, list(changed.index), changed.seed) == (("exact",), ["exact"], 5)


def test_a_run_that_is_not_there_or_has_lost_its_weights_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run in the store"):
        find_run(Store(tmp_path))
    for key in ("aa11", "aa22"):
        keep_run(tmp_path, key)
    with pytest.raises(ConfigError, match="2 runs begin with 'aa'"):
        find_run(Store(tmp_path), "aa")
    with pytest.raises(ConfigError, match="no run called 'ab11'; did you mean 'aa11'"):
        find_run(Store(tmp_path), "ab11")
    (tmp_path / "weights" / "weights-aa11" / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match="the weights of the run aa11 are not in the store"):
        find_run(Store(tmp_path), "aa1").embedder()


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU: there is one here")
def test_a_gpu_that_is_asked_for_and_not_there_is_refused_before_work() -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        pick_device("cuda")
    devices: list[Any] = [pick_device("auto"), pick_device("cpu"), usable_device("cuda")]
    assert devices == [torch.device("cpu")] * 3
