"""Aligners on sets of pairs: scores worked out by hand, what is left out, and what the store keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from bench import registry
from bench.align import evaluate
from bench.align.contract import Pair
from bench.align.evaluate import ORACLE, Alignments, alignment_headline, evaluate_alignment, submission, summarise_sets
from bench.align.pairs import Keypoints, write_keypoints, write_pair
from bench.align.score import FileScore, read_times, score_tables
from bench.config import format_plugin_name, resolve
from bench.errors import DataError
from bench.fingerprint import Embedder
from bench.settings import RunConfig
from bench.store import Store
from bench.values import RATE_HZ, Floats, no_progress

SECONDS = 6
SHIFTED = """
from dataclasses import dataclass
import numpy as np
from bench.align.contract import TimeMap

NEEDS_ENCODER = {needs_encoder}
CITE, LICENSE, SOURCE = "", "MIT", ""
CALLS = []

@dataclass(frozen=True)
class Config:
    lag_s: float = 0.35

def build(config):
    return Shifted(config)

@dataclass(frozen=True)
class Shifted:
    config: Config

    def align(self, pair, embedder, progress):
        assert (embedder is not None) == NEEDS_ENCODER
        CALLS.append(pair.name)
        time0 = pair.keypoints
        return TimeMap(time0, time0 + self.config.lag_s, np.full(len(time0), 0.75))
"""


@pytest.fixture
def embedder() -> Embedder:
    plugin = registry.load("encoder", "random-projection")
    return Embedder(plugin.build(plugin.Config(dim=16)).eval(), torch.device("cpu"), "fp32", "key")


@pytest.fixture
def shifted(tmp_path: Path) -> Callable[[str], tuple[str, ModuleType]]:
    """Return what makes an aligner of one lag: its path, and the module, whose CALLS are the pairs it was asked."""

    def made(name: str = "shifted", needs_encoder: bool = False) -> tuple[str, ModuleType]:
        path = tmp_path / f"{name}.py"
        path.write_text(SHIFTED.format(needs_encoder=needs_encoder))
        return str(path), registry.load("aligner", str(path))

    return made


def hiss(seed: int, seconds: float = SECONDS) -> Floats:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


def annotated(root: Path, lags_s: dict[str, float], split: str = "val") -> Path:
    """Write a set `aru` of files that are later in channel 1 by these lags; return its split's folder."""
    place = root / "formatted_data" / "aru" / split
    (place / "audio").mkdir(parents=True)
    time0 = np.arange(float(SECONDS))
    rows = {}
    for seed, (name, lag_s) in enumerate(lags_s.items()):
        sound, start = hiss(seed, SECONDS + 2), RATE_HZ
        waves = [sound[at : at + SECONDS * RATE_HZ] for at in (start, start - round(lag_s * RATE_HZ))]
        write_pair(place / "audio" / name, *waves)
        rows[name] = Keypoints(time0, (time0 + lag_s).clip(0, SECONDS))
    write_keypoints(place / "annotations.csv", rows)
    return place


def settings(*aligners: str, split: str = "val", sets: str = "biodcase", more: tuple[str, ...] = ()) -> RunConfig:
    plugin = registry.load("encoder", "random-projection")
    overrides = [f"align.sets=['{sets}']", f"align.split={split}", f"align.aligners={list(aligners)}", *more]
    return resolve("random-projection", plugin, "small", overrides=overrides)


def evaluated(embedder: Embedder, config: RunConfig, root: Path | None, store: Path) -> Alignments:
    return evaluate_alignment(embedder, config, root, Store(store), no_progress)


def of(found: Alignments, aligner: str) -> dict[str, dict[str, Any]]:
    rows = found.files[found.files["aligner"] == format_plugin_name(aligner)].to_dict("records")
    return {str(row["name"]): {str(k): v for k, v in row.items()} for row in rows}


LAGS_S = {"a.wav": 0.25, "b.wav": -0.5}


# Scores


def test_scores_are_those_by_hand(embedder: Embedder, tmp_path: Path, shifted: Any) -> None:
    annotated(tmp_path, LAGS_S)
    path, _ = shifted()
    found = evaluated(embedder, settings("nosync", path), tmp_path, tmp_path / "store")
    assert found.left_out == () and set(found.files["set"]) == {"aru"} and set(found.files["split"]) == {"val"}
    none, toy = of(found, "nosync"), of(found, path)
    # a.wav is 0.25 s later at each of its 6 keypoints; b.wav is 0.5 s earlier but at 0, which is clipped to 0.
    assert none["a.wav"]["mse_s2"] == pytest.approx(0.0625) and none["a.wav"]["mae_ms"] == pytest.approx(250)
    assert none["b.wav"]["mse_s2"] == pytest.approx(5 / 6 * 0.25) and none["b.wav"]["mae_ms"] == pytest.approx(2500 / 6)
    assert toy["a.wav"]["mse_s2"] == pytest.approx(0.01) and toy["a.wav"]["median_ms"] == pytest.approx(100)
    assert toy["b.wav"]["mse_s2"] == pytest.approx((0.35**2 + 5 * 0.85**2) / 6)
    assert [row["confidence"] for row in (none["a.wav"], toy["a.wav"])] == pytest.approx([0, 0.75])
    assert {row["num_keypoints"] for row in toy.values()} == {SECONDS}


def test_answers_are_clipped_into_channel_1(embedder: Embedder, tmp_path: Path, shifted: Any) -> None:
    annotated(tmp_path, {"a.wav": 0.25})
    path, _ = shifted()
    late = with_lag(settings("nosync", path), path, 4.0)
    rows = evaluated(embedder, late, tmp_path, tmp_path / "store").keypoints
    assert rows[rows["aligner"] == format_plugin_name(path)]["found1_s"].tolist() == [4, 5, 6, 6, 6, 6]


def with_lag(config: RunConfig, path: str, lag_s: float) -> RunConfig:
    """Return the settings with another lag of the aligner at a path."""
    name = format_plugin_name(path)
    return replace(config, aligner=config.aligner | {name: replace(config.aligner[name], lag_s=lag_s)})


def test_the_oracle_is_the_best_line_of_the_grid(embedder: Embedder, tmp_path: Path) -> None:
    annotated(tmp_path, LAGS_S)
    found = evaluated(embedder, settings("nosync", "crosscor"), tmp_path, tmp_path / "store")
    best, chosen = of(found, ORACLE), of(found, "crosscor")
    time0 = np.arange(float(SECONDS))
    for name, lag_s in LAGS_S.items():
        true = (time0 + lag_s).clip(0, SECONDS)
        # 2026: 0.5 s at most, ten offsets and ten slopes, those that never leave the largest lag.
        lines = [
            np.clip(slope * time0 + offset, 0, SECONDS)
            for offset in np.linspace(-0.5, 0.5, 10)
            for slope in np.linspace(1 - 0.5 / SECONDS, 1 + 0.5 / SECONDS, 10)
        ]
        errors = [np.square(line - true).mean() for line in lines if np.abs(line - time0).max() <= 0.5 + 1e-9]
        assert best[name]["mse_s2"] == pytest.approx(min(errors))
        assert best[name]["mse_s2"] <= chosen[name]["mse_s2"] + 1e-12
    assert np.isnan(best["a.wav"]["confidence"])


# Bad files


def test_bad_files_are_named_and_the_others_scored(embedder: Embedder, tmp_path: Path, shifted: Any) -> None:
    place = annotated(tmp_path, LAGS_S | {"gone.wav": 0.0, "text.wav": 0.0, "mono.wav": 0.0, "nan.wav": 0.0})
    (place / "audio" / "gone.wav").unlink()
    (place / "audio" / "text.wav").write_text("no audio")
    soundfile.write(place / "audio" / "mono.wav", hiss(0), RATE_HZ)
    rows = (place / "annotations.csv").read_text().replace("nan.wav,3.0,3.0", "nan.wav,3.0,nan")
    (place / "annotations.csv").write_text(rows)
    soundfile.write(place / "audio" / "untold.wav", np.stack([hiss(0), hiss(0)], axis=1), RATE_HZ)
    path, _ = shifted("embedding", needs_encoder=True)
    found = evaluated(embedder, settings("nosync", path), tmp_path, tmp_path / "store")
    reasons = {problem.name: problem.reason for problem in found.left_out}
    assert set(reasons) == {"gone.wav", "text.wav", "mono.wav", "nan.wav", "untold.wav"}
    assert len(found.left_out) == 5  # once each, though two stages met them
    assert "no such file" in reasons["gone.wav"] and "two channels, got 1" in reasons["mono.wav"]
    assert all(name in reason for name, reason in reasons.items())
    assert list(of(found, "nosync")) == list(of(found, path)) == list(LAGS_S)
    assert set(found.keypoints["file"]) == set(LAGS_S) and "problem" not in found.keypoints


def test_file_on_a_drive_that_was_away_is_aligned_when_it_is_back(embedder: Embedder, tmp_path: Path) -> None:
    place = annotated(tmp_path, LAGS_S)
    name = next(iter(LAGS_S))
    (place / "audio" / name).rename(tmp_path / "disk.wav")
    (place / "audio" / name).symlink_to(tmp_path / "disk.wav")
    (tmp_path / "disk.wav").rename(tmp_path / "away.wav")
    found = evaluated(embedder, settings("nosync"), tmp_path, tmp_path / "store")
    assert [problem.name for problem in found.left_out] == [name]
    (tmp_path / "away.wav").rename(tmp_path / "disk.wav")
    assert not evaluated(embedder, settings("nosync"), tmp_path, tmp_path / "store").left_out


def test_a_set_without_a_usable_file_is_one_sentence(embedder: Embedder, tmp_path: Path) -> None:
    place = annotated(tmp_path, LAGS_S)
    for name in LAGS_S:
        (place / "audio" / name).write_text("no audio")
    with pytest.raises(DataError, match=r"no pair of biodcase can be used; the first: .*a\.wav"):
        evaluated(embedder, settings("nosync"), tmp_path, tmp_path / "store")


def test_a_split_that_is_not_there_is_named(embedder: Embedder, tmp_path: Path) -> None:
    annotated(tmp_path, LAGS_S)
    with pytest.raises(DataError, match=r"no split 'test' of the set 'aru'.*it has val"):
        evaluated(embedder, settings("nosync", split="test"), tmp_path, tmp_path / "store")


# The store


def test_nothing_is_aligned_twice(embedder: Embedder, tmp_path: Path, shifted: Any) -> None:
    place = annotated(tmp_path, LAGS_S | {"bad.wav": 0.0})
    (place / "audio" / "bad.wav").write_text("no audio")
    (path, module), (embedding, other) = shifted(), shifted("embedding", needs_encoder=True)
    config = settings("nosync", path, embedding)
    first = evaluated(embedder, config, tmp_path, tmp_path / "store")
    again = evaluated(embedder, config, tmp_path, tmp_path / "store")
    assert module.CALLS == other.CALLS == list(LAGS_S)
    pd.testing.assert_frame_equal(first.keypoints, again.keypoints)
    assert first.left_out == again.left_out and first.seconds == again.seconds > 0


def test_what_decides_an_answer_is_in_its_key(embedder: Embedder, tmp_path: Path, shifted: Any) -> None:
    place = annotated(tmp_path, {"a.wav": 0.25})
    (path, module), (embedding, other) = shifted(), shifted("embedding", needs_encoder=True)
    config, store = settings("nosync", path, embedding), tmp_path / "store"

    def asked(config: RunConfig, embedder: Embedder) -> tuple[int, int]:
        before = len(module.CALLS), len(other.CALLS)
        evaluated(embedder, config, tmp_path, store)
        return len(module.CALLS) - before[0], len(other.CALLS) - before[1]

    assert asked(config, embedder) == (1, 1)
    assert asked(with_lag(config, path, 0.1), embedder) == (1, 0)
    # Other weights: only the aligner that needs an encoder runs again.
    assert asked(config, Embedder(embedder.encoder, embedder.device, "fp32", "other weights")) == (0, 1)
    write_keypoints(place / "annotations.csv", {"a.wav": Keypoints(np.arange(3.0), np.arange(3.0))})
    assert asked(config, embedder) == (1, 1)


def test_blocks_of_files_change_nothing(
    embedder: Embedder, tmp_path: Path, shifted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = annotated(tmp_path, {f"{i}.wav": i / 10 for i in range(5)})
    (place / "audio" / "3.wav").write_text("no audio")
    (path, module), (embedding, _) = shifted(), shifted("embedding", needs_encoder=True)
    config = settings("nosync", path, embedding)
    whole = evaluated(embedder, config, tmp_path, tmp_path / "whole")
    monkeypatch.setattr(evaluate, "BLOCK", 2)
    blocks = evaluated(embedder, config, tmp_path, tmp_path / "blocks")
    pd.testing.assert_frame_equal(whole.keypoints, blocks.keypoints)
    pd.testing.assert_frame_equal(whole.files, blocks.files)
    assert whole.left_out == blocks.left_out and module.CALLS == 2 * ["0.wav", "1.wav", "2.wav", "4.wav"]


def test_a_kill_costs_one_block(
    embedder: Embedder, tmp_path: Path, shifted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotated(tmp_path, {f"{i}.wav": 0.1 for i in range(4)})
    path, module = shifted()
    monkeypatch.setattr(evaluate, "BLOCK", 2)

    def killed(stage: str, done: int, total: int) -> None:
        if stage == "aligning aru" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_alignment(embedder, settings(path), tmp_path, Store(tmp_path / "store"), killed)
    evaluated(embedder, settings(path), tmp_path, tmp_path / "store")
    assert module.CALLS == ["0.wav", "1.wav", "2.wav", "3.wav"]


def test_an_aligner_that_learns_is_trained_once_on_the_training_side(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotated(tmp_path, LAGS_S)
    learned = {"c.wav": 0.3, "d.wav": -0.2, "bad.wav": 0.0}
    (annotated(tmp_path, learned, "train") / "audio" / "bad.wav").write_text("no audio")
    deeplearning = registry.load("aligner", "deeplearning")
    taught: list[list[tuple[str, float]]] = []
    train = deeplearning.train

    def watched(config: Any, pairs: list[tuple[Pair, Keypoints]], *rest: Any) -> Any:
        taught.append([(pair.name, float(truth.time1_K[2] - truth.time0_K[2])) for pair, truth in pairs])
        return train(config, pairs, *rest)

    monkeypatch.setattr(deeplearning, "train", watched)
    small = ("aligner.deeplearning.epochs=1", "aligner.deeplearning.hidden=4")
    config, store = settings("deeplearning", more=small), tmp_path / "store"
    first = evaluated(embedder, config, tmp_path, store)
    again = evaluated(embedder, config, tmp_path, store)
    assert taught == [[("c.wav", pytest.approx(0.3)), ("d.wav", pytest.approx(-0.2))]]
    pd.testing.assert_frame_equal(first.keypoints, again.keypoints)
    assert list(of(first, "deeplearning")) == list(LAGS_S)
    assert len(list((store / "align-weights").glob("*/aligner.safetensors"))) == 1
    evaluated(embedder, settings("deeplearning", more=(*small, "seed=1")), tmp_path, store)
    assert len(taught) == 2


def test_an_aligner_that_is_told_its_weights_is_not_trained(embedder: Embedder, tmp_path: Path) -> None:
    annotated(tmp_path, LAGS_S)
    deeplearning = registry.load("aligner", "deeplearning")
    weights = tmp_path / "own.safetensors"
    deeplearning.save(deeplearning.DeepLearning(deeplearning.Classifier(16, 4), 0.1), weights)
    config = settings("deeplearning", more=(f"aligner.deeplearning.weights={weights}",))
    found = evaluated(embedder, config, tmp_path, tmp_path / "store")
    assert list(of(found, "deeplearning")) == list(LAGS_S) and not (tmp_path / "store" / "align-weights").exists()


def test_made_up_recorders_are_aligned_in_both_regimes(embedder: Embedder, tmp_path: Path) -> None:
    short = [
        f"pairs.aru-sim.{each}" for each in ("duration_s=12", "train_files=0", "test_files=1", "num_silences=[0,0]")
    ]
    config = settings("nosync", "fingerprint-median", sets="aru-sim", split="test", more=tuple(short))
    found = evaluated(embedder, config, None, tmp_path)
    assert set(found.files["set"]) == {"aru-sim-coarse", "aru-sim-fine"} and len(found.files) == 2 * 3
    lag = (found.keypoints["time1_s"] - found.keypoints["time0_s"]).abs().groupby(found.keypoints["set"]).max()
    assert lag["aru-sim-fine"] <= 0.5 and lag["aru-sim-coarse"] <= 5


# What was not annotated, and submissions


def test_a_file_nobody_annotated_has_answers_and_no_score(embedder: Embedder, tmp_path: Path, shifted: Any) -> None:
    place = annotated(tmp_path, LAGS_S, "eval")
    (place / "annotations.csv").unlink()
    path, _ = shifted()
    found = evaluated(embedder, settings(path, split="eval"), tmp_path, tmp_path / "store")
    assert found.files.empty and set(found.keypoints["aligner"]) == {format_plugin_name(path)}
    assert (
        found.keypoints["time1_s"].isna().all()
        and summarise_sets(found.files).empty
        and alignment_headline(found.files) == {}
    )
    answers = submission(found.keypoints, format_plugin_name(path))
    assert list(answers) == list(LAGS_S)
    assert answers["a.wav"].time0_K.tolist() == list(range(SECONDS))
    assert answers["a.wav"].time1_K.tolist() == pytest.approx([0.35, 1.35, 2.35, 3.35, 4.35, 5.35])


def test_a_submission_is_read_back_with_the_same_scores(embedder: Embedder, tmp_path: Path, shifted: Any) -> None:
    place = annotated(tmp_path, LAGS_S)
    path, _ = shifted()
    found = evaluated(embedder, settings("nosync", path), tmp_path, tmp_path / "store")
    for aligner in ("nosync", path):
        written = tmp_path / "submission.csv"
        write_keypoints(written, submission(found.keypoints, format_plugin_name(aligner)))
        scores = score_tables(read_times(place / "annotations.csv"), read_times(written))
        own = of(found, aligner)
        assert [score.mse_s2 for score in scores] == [own[score.name]["mse_s2"] for score in scores]
        assert [score.num_missing for score in scores] == [0, 0]


# Tables, from files whose scores are made up


def files(scores: dict[str, list[float]], set_name: str = "aru") -> pd.DataFrame:
    """Return the table of files whose MSE by each aligner is given; MAE is a tenth of it."""
    rows = [
        {"set": set_name, "split": "val", "aligner": aligner, "confidence": 0.5}
        | vars(FileScore(f"{i}.wav", mse, mse / 10, mse / 20, 115, 0))
        for aligner, own in scores.items()
        for i, mse in enumerate(own)
    ]
    return pd.DataFrame(rows)


def test_summary_names_the_best_and_tests_the_others_against_it() -> None:
    good = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    worse, mixed = [2 * mse for mse in good], [1.5, 1.5, 3.5, 3.5, 5.5, 6.1]
    table = summarise_sets(files({"worse": worse, "good": good, "mixed": mixed, ORACLE: [0.1] * 6})).set_index(
        "aligner"
    )
    assert table["mse_s2"].to_dict() == pytest.approx({"worse": 7, "good": 3.5, "mixed": 21.6 / 6, ORACLE: 0.1})
    assert table["mae_ms"]["good"] == pytest.approx(0.35) and table["median_ms"]["good"] == pytest.approx(0.175)
    assert table.index[table["best"]].tolist() == ["good"]  # not the oracle, which knows the truth
    # Six files that all differ one way: 2 / 2**6; of three tests the smallest counts three times, ties as it.
    assert math.isnan(table["p"]["good"])
    assert table["p"]["worse"] == pytest.approx(3 * 2 / 64) and table["p"][ORACLE] == pytest.approx(3 * 2 / 64)
    assert table["p"]["mixed"] > 0.5
    inside = (table["mse_s2_low"] <= table["mse_s2"] + 1e-12) & (table["mse_s2"] <= table["mse_s2_high"] + 1e-12)
    assert inside.all() and table["mse_s2_low"]["good"] < 3 < 4 < table["mse_s2_high"]["good"]
    assert set(table["files"]) == {6}


def test_summary_keeps_sets_apart_and_takes_ties_and_single_files() -> None:
    two = pd.concat([files({"a": [1.0], "b": [1.0]}, "aru"), files({"a": [4.0], "b": [2.0]}, "zebra_finch")])
    table = summarise_sets(two)
    assert table[["set", "aligner", "best"]].to_numpy().tolist() == [
        ["aru", "a", True], ["aru", "b", False], ["zebra_finch", "a", False], ["zebra_finch", "b", True],
    ]  # fmt: skip
    assert table["p"].tolist() == pytest.approx([math.nan, 1.0, 1.0, math.nan], nan_ok=True)
    assert table["mse_s2_low"].tolist() == table["mse_s2_high"].tolist() == [1, 1, 4, 2]


def test_headline_has_a_scalar_for_each_set_and_aligner() -> None:
    assert alignment_headline(files({"nosync": [1.0, 3.0], "gcc-phat:aru": [0.5, 0.5]})) == pytest.approx(
        {
            "align_mse/aru/nosync": 2.0, "align_mae_ms/aru/nosync": 0.2,
            "align_mse/aru/gcc-phat-aru": 0.5, "align_mae_ms/aru/gcc-phat-aru": 0.05,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ((), "aru-sim-align/v1"),
        (("align.aligners=['nosync']", "seed=3", "train.steps=1"), "aru-sim-align/v1"),
        (("align.split=train",), "custom-align"),
        (("pairs.aru-sim.test_files=3",), "custom-align"),
        (("align.sets=['multi-recorder']",), "custom-align"),
    ],
)
def test_benchmark_is_named_for_its_sets_and_not_for_its_aligners(changes: tuple[str, ...], name: str) -> None:
    plugin = registry.load("encoder", "random-projection")
    assert evaluate.align_name(resolve("random-projection", plugin, "small", overrides=changes)) == name
