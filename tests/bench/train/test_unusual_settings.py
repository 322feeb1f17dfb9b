"""Doubts about recipes: said where they should be, with the value, and nowhere else."""

from dataclasses import replace
from typing import Any

import pytest

from bench.config import resolve
from bench.registry import load, names
from bench.settings import TrainConfig
from bench.train.unusual_settings import find_unusual_settings


@pytest.mark.parametrize(
    ("doubtful", "usual", "named"),
    [
        ({"lr": 5e-2}, {"lr": 4.9e-2}, ["train.lr = 0.05", "5e-3"]),
        ({"loss": "nafp", "lr": 1e-3}, {"loss": "nafp", "lr": 5e-4}, ["train.lr = 0.001", "nafp", "1e-4"]),
        ({"temperature": 0.005}, {"temperature": 0.01}, ["train.temperature = 0.005", "0.05"]),
        ({"temperature": 1.0}, {"temperature": 0.5}, ["train.temperature = 1 ", "0.05"]),
        ({"loss": "triplet", "margin": 0.0}, {"margin": 0.0}, ["train.margin = 0 ", "0.4"]),
        (
            {"loss": "semi-hard-triplet", "margin": 0.0},
            {"loss": "semi-hard-triplet", "margin": 0.1},
            ["train.margin = 0 ", "0.5"],
        ),
        (
            {"loss": "multi-positive"},
            {"loss": "multi-positive", "pairs_per_moment": 2},
            ["train.pairs_per_moment = 1 ", "nt-xent"],
        ),
        (
            {"loss": "info-nce", "pairs_per_moment": 3},
            {"loss": "triplet", "pairs_per_moment": 3},
            ["train.pairs_per_moment = 3 ", "info-nce", "multi-positive"],
        ),
        ({"offset_ms": 51.0}, {"offset_ms": 50.0}, ["train.offset_ms = 51 ", "100 ms"]),
        ({"mask_fraction": 0.001}, {"mask_fraction": 0.0}, ["train.mask_fraction = 0.001", "0.1 %"]),
        (
            {"optimiser": "lamb", "batch_pairs": 119},
            {"optimiser": "lamb", "batch_pairs": 120},
            ["train.batch_pairs = 119", "240"],
        ),
    ],
)
def test_doubt_names_the_value_and_what_is_usual(
    doubtful: dict[str, Any], usual: dict[str, Any], named: list[str]
) -> None:
    (sentence,) = find_unusual_settings(replace(TrainConfig(), **doubtful))
    assert all(part in sentence for part in named), sentence
    assert find_unusual_settings(replace(TrainConfig(), **usual)) == []


@pytest.mark.parametrize(
    "quiet",
    [
        {"optimiser": "lamb", "lr": 0.1},  # a length relative to that of the weights
        {"loss": "triplet", "temperature": 9.0},
        {"mask_count": 0, "mask_fraction": 0.001},
    ],
)
def test_setting_that_nothing_reads_raises_no_doubt(quiet: dict[str, Any]) -> None:
    assert find_unusual_settings(replace(TrainConfig(), **quiet)) == []


def test_each_doubt_is_said() -> None:
    found = find_unusual_settings(
        replace(TrainConfig(), lr=0.05, temperature=2.0, offset_ms=200.0, mask_fraction=0.001)
    )
    assert [sentence.split(" ")[0] for sentence in found] == [
        "train.lr",
        "train.temperature",
        "train.offset_ms",
        "train.mask_fraction",
    ]


def test_defaults_raise_no_doubt() -> None:
    assert find_unusual_settings(TrainConfig()) == []


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("encoder", [name for name in names("encoder") if name != "random-projection"])
def test_small_presets_raise_no_doubt(encoder: str, preset: str) -> None:
    assert find_unusual_settings(resolve(encoder, load("encoder", encoder), preset).train) == []
