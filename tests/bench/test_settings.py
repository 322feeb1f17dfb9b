"""The settings themselves: each is described beside its field, and each range is checked when a section is made."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench import settings
from bench.errors import ConfigError
from bench.settings import DataConfig, EvalConfig, TrainConfig

SECTIONS = [kind for kind in vars(settings).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]


def documented_fields(path: Path) -> dict[str, list[str]]:
    """Return the fields that a string follows, by the name of their class."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, node.body[1:], strict=False)
            found[node.name] = [
                ast.unparse(field.target)
                for field, text in pairs
                if isinstance(field, ast.AnnAssign)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ]
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_described_beside_its_field(section: type[Any]) -> None:
    described = documented_fields(Path(settings.__file__))[section.__name__]
    assert described == [field.name for field in dataclasses.fields(section)]


@pytest.mark.parametrize(
    ("section", "values", "rule", "got"),
    [
        (TrainConfig, {"steps": -1}, "train.steps must be >= 0", "-1"),
        (TrainConfig, {"batch_pairs": 1}, "train.batch_pairs must be >= 2", "1"),
        (TrainConfig, {"lr": 0.0}, "train.lr must be > 0", "0"),
        (TrainConfig, {"lr_min": 1.0}, "train.lr_min must be between", "1"),
        (TrainConfig, {"temperature": 0.0}, "train.temperature must be > 0", "0"),
        (TrainConfig, {"snr_db": (20.0, 0.0)}, "train.snr_db must be (low, high)", "(20.0, 0.0)"),
        (TrainConfig, {"mask_fraction": 1.0}, "train.mask_fraction must be in [0, 1)", "1"),
        (TrainConfig, {"patience": -1}, "train.patience must be >= 0", "-1"),
        (TrainConfig, {"checkpoint_every_steps": 0}, "train.checkpoint_every_steps must be >= 1", "0"),
        (DataConfig, {"min_track_s": 0.5}, "data.min_track_s must be >= 1", "0.5"),
        (EvalConfig, {"lengths_s": ()}, "eval.lengths_s must hold lengths > 0", "()"),
        (EvalConfig, {"lengths_s": (31.0,)}, "eval.lengths_s must be at most 30", "31"),
        (EvalConfig, {"t60_s": (0.1,)}, "eval.t60_s must be between 0.15 and 2", "0.1"),
        (EvalConfig, {"noise_reverb_t60_s": 3.0}, "eval.noise_reverb_t60_s must be between 0.15 and 2", "3"),
        (EvalConfig, {"tolerance_ms": 0.0}, "eval.tolerance_ms must be > 0", "0"),
        (EvalConfig, {"indexes": ()}, "eval.indexes must name at least one", "()"),
        (EvalConfig, {"snr_db": (0.0, 0.0)}, "eval.snr_db must not name anything twice", "(0.0, 0.0)"),
    ],
)
def test_value_out_of_range_names_the_rule_and_the_value(
    section: type[Any], values: dict[str, Any], rule: str, got: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        section(**values)
    said = str(caught.value)
    assert rule in said
    assert got in said.split("got", 1)[1]


def test_all_degradation_weights_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="not all 0"):
        TrainConfig(clean=0.0, noise_only=0.0, reverb_only=0.0, noise_and_reverb=0.0)


@pytest.mark.parametrize("sequences", [(), ("vote",), ("rescore", "flight"), ("rescore", "rescore")])
def test_sequence_searches_are_known_ones_and_hold_the_headline(sequences: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"eval\.sequences"):
        EvalConfig(sequences=sequences)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distractors": (0,)}, r"numbers of fingerprints >= 1, ascending, got \(0,\)"),
        ({"distractors": (-5, 10)}, r"numbers of fingerprints >= 1, ascending, got \(-5, 10\)"),
        ({"distractors": (10, 5)}, r"ascending, got \(10, 5\)"),
        ({"distractors": (10,)}, "needs diagonal in eval.sequences, whose answers they compete with; add it"),
        ({"real_distractors": True}, "eval.real_distractors needs sizes in eval.distractors"),
    ],
)
def test_distractors_that_cannot_be_are_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvalConfig(**changes)
