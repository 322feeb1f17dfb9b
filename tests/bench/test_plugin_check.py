"""A plug-in of a stranger that breaks its contract ends in one sentence before a run does any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import registry
from bench.config import format_plugin_name, resolve
from bench.errors import BenchError, PluginError
from bench.run import RunContext, check_run, run
from bench.store import Store
from bench.values import no_progress

ENCODER = """
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CITE, LICENSE, SOURCE = "", "", ""


@dataclass(frozen=True)
class Config:
    dim: int = 16
    channels: int = 4


def build(config):
    return Mine(config)


class Mine(nn.Module):
    rate_hz, segment_s = 16_000, 0.96

    def __init__(self, config):
        super().__init__()
        self.dim = config.dim
        self.conv = nn.Conv2d(1, config.channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(config.channels)
        self.out = nn.Linear(config.channels * 8 * 12, config.dim)

    def features(self, wave_BT):
        power = torch.fft.rfft(wave_BT.reshape(len(wave_BT), 12, 1_280)).abs().square()[..., 1:]
        return power.reshape(len(wave_BT), 1, 12, 8, 80).mean(-1).clamp_min(1e-9).log()

    def embed(self, patch):
        return nn.functional.normalize(self.out(self.norm(self.conv(patch)).relu().flatten(1)), dim=1)
"""
WINDOWS = """def window_features(self, wave_BT, hop):
        segment_BMT = wave_BT.unfold(1, 15_360, hop)
        return self.features(segment_BMT.reshape(-1, 15_360)).unflatten(0, segment_BMT.shape[:2])"""
NORMALISED = "nn.functional.normalize(self.out(self.norm(self.conv(patch)).relu().flatten(1)), dim=1)"
BROKEN = {
    "a wrong layer size": (
        ("channels * 8 * 12, config", "channels * 8 * 10, config"),
        r"encoder 'mine' \(mine.py, line 35\) fails on 3 segments of 0.96 s: RuntimeError: .*shapes cannot be multi",
    ),
    "build without an argument": (
        ("def build(config):\n    return Mine(config)", "def build():\n    return Mine(Config())"),
        r"encoder 'mine' \(mine.py\) cannot be built by build\(config\): TypeError: build\(\) takes 0 positional",
    ),
    "an objective that is no scalar": (
        (
            "    def embed(",
            "    def objective(self, feature, vector, contrastive):\n        return vector\n\n    def embed(",
        ),
        r"breaks its contract: objective\(feature_M, vector_MD, contrastive\) returns a finite sc.*got shape \(6, 16\)",
    ),
    "vectors without unit length": (
        (NORMALISED, "self.out(self.norm(self.conv(patch)).relu().flatten(1))"),
        r"breaks its contract: vectors have length 1 \(end embed with .*normalize.*\), got lengths of ",
    ),
    "features scaled by the batch": (
        (".clamp_min(1e-9).log()", "/ wave_BT.abs().max()"),
        "breaks its contract: a vector depends on its segment alone and not on the rest of the batch.*changed by",
    ),
    "batch norm without running statistics": (
        ("BatchNorm2d(config.channels)", "BatchNorm2d(config.channels, track_running_stats=False)"),
        "a vector depends on its segment alone",
    ),
    "NaN": (("clamp_min(1e-9).log()", "sub(1e9).log()"), "vectors are finite, got NaN or infinity"),
    "another dim": (("self.dim = config.dim", "self.dim = 32"), r"shape \(B, dim\), here \(3, 32\), got \(3, 16\)"),
    "no module": (("(nn.Module)", ""), r"breaks its contract: build\(config\) returns a torch.nn.Module, got Mine"),
    "features without a channel": (
        (".clamp_min(1e-9).log()\n", ".clamp_min(1e-9).log()[:, 0]\n"),
        "fails on 3 segments of 0.96 s: RuntimeError",
    ),
    "a rate that is no whole number": (("16_000, 0.96", "16_000.5, 0.96"), "rate_hz is a whole number above 0"),
    "vectors without gradients": (
        (f"return {NORMALISED}", f"return {NORMALISED}.detach()"),
        "weights get gradients from embed's vectors, got vectors without a gradient",
    ),
    "windows scaled together": (
        ("    def embed(", f"    {WINDOWS} / wave_BT.unfold(1, 15_360, hop).abs().amax()\n\n    def embed("),
        r"breaks its contract: window_features\(wave_BT, hop_samples\) returns the features .*vectors that are .* off",
    ),
    "too few windows": (
        ("    def embed(", f"    {WINDOWS}[:, 1:]\n\n    def embed("),
        r"window_features\(wave_BT, hop_samples\) returns .*, got features of 19 instead of 20 segments",
    ),
    "windows of one segment": (
        (
            "    def embed(",
            "    def window_features(self, wave_BT, hop):\n        return self.features(wave_BT)\n\n    def embed(",
        ),
        r"encoder 'mine' \(mine.py, line \d+\) fails on 3 segments of 0.96 s: RuntimeError",
    ),
    "Config is no dataclass": (("@dataclass(frozen=True)\n", ""), "Config must be a dataclass"),
}


def write(folder: Path, source: str) -> str:
    path = folder / "mine.py"
    path.write_text(source)
    return str(path)


def check(path: str, folder: Path, *overrides: str) -> None:
    plugin = registry.load("encoder", path)
    config = resolve(format_plugin_name(path), plugin, "tiny", overrides=overrides)
    check_run(config, RunContext(plugin, None, Store(folder), no_progress, pytest.fail))


def test_an_encoder_with_batch_norm_is_accepted_and_nothing_is_drawn(tmp_path: Path) -> None:
    path = write(tmp_path, ENCODER)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check(path, tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_an_encoder_that_shares_between_windows_is_accepted(tmp_path: Path) -> None:
    check(write(tmp_path, ENCODER.replace("    def embed(", f"    {WINDOWS}\n\n    def embed(")), tmp_path)


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_encoder_is_one_sentence_before_work_starts(mistake: str, tmp_path: Path) -> None:
    (right, wrong), sentence = BROKEN[mistake]
    assert right in ENCODER
    path = write(tmp_path, ENCODER.replace(right, wrong))
    with pytest.raises(PluginError, match=sentence) as raised:
        check(path, tmp_path)
    assert "\n" not in str(raised.value) and list(tmp_path.iterdir()) == [tmp_path / "mine.py"]


@pytest.mark.filterwarnings("error")
def test_a_setting_that_leaves_no_network_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, ENCODER)
    with pytest.raises(BenchError, match=r"mine.py.* with model.channels=0"):
        check(path, tmp_path, "model.channels=0")


def test_nothing_is_trained_of_an_encoder_without_unit_length(tmp_path: Path) -> None:
    path = write(tmp_path, ENCODER.replace(NORMALISED, "self.out(self.conv(patch).flatten(1))"))
    plugin = registry.load("encoder", path)
    config = resolve("mine", plugin, "tiny")
    store = tmp_path / "store"
    with pytest.raises(PluginError, match="vectors have length 1"):
        run(config, RunContext(plugin, None, Store(store), no_progress, pytest.fail))
    assert not store.exists()


@pytest.mark.parametrize("name", registry.names("encoder"))
def test_the_encoders_of_the_suite_pass(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
