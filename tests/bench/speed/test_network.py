"""What tracking costs a training step, and how a measurement is told."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from bench import registry
from bench.audio.pcm import prepare_corpus
from bench.config import resolve
from bench.degrade.room import Response, align_direct_sound, prepare_rooms
from bench.run import RunContext
from bench.speed import network as speed
from bench.speed import tracking_cost
from bench.speed.network import RECORD, Speed, build_training, read_speed
from bench.store import Store
from bench.testing import Arrays
from bench.train.loop import TrainingSet, Watch, watch_nothing
from bench.values import RATE_HZ, no_progress

MEASURED = Speed(
    kind="train", encoder="mine", preset="tiny", device="cpu", precision="fp32", segments=8, parts_ms={"forward": 2.0},
    whole_ms=4.0, memory_mib=100.0, parameters=10, gflop=1.0, matrix_tflops=0.1, copy_gb_s=5.0, arithmetic_ms=1.0,
    traffic_ms=0.5,
)  # fmt: skip


class Room:
    """One room: noise that decays in a fifth of a second."""

    def names(self) -> list[str]:
        return ["room"]

    def load(self, name: str) -> Response:
        seconds_T = np.arange(RATE_HZ // 5) / RATE_HZ
        wave_T = np.random.default_rng(0).standard_normal(len(seconds_T)) * 10 ** (-15 * seconds_T)
        wave_T[0] = 5
        return Response(name, align_direct_sound(wave_T.astype(np.float32)), "train")

    def digest(self) -> str:
        return "one room"


def test_alternated_gives_the_median_ratio_and_its_spread_in_changing_order() -> None:
    order = []
    plain, tracked = iter([100.0, 200.0, 50.0]), iter([101.0, 200.0, 55.0])

    def without() -> float:
        order.append("without")
        return next(plain)

    def with_it() -> float:
        order.append("with")
        return next(tracked)

    told = tracking_cost.measure_alternately(without, with_it, 3)
    assert order == ["without", "with", "with", "without", "without", "with"]
    assert (told["ratio"], told["low"], told["high"]) == pytest.approx((1.01, 1.0, 1.1))
    assert (told["pairs"], told["without_ms"], told["with_ms"]) == (3, 100.0, 101.0)


def test_a_block_lasts_long_enough_for_deliveries_and_samples() -> None:
    assert tracking_cost.block_steps(20, 100.0) == 1000 * tracking_cost.BLOCK_S / 100
    assert tracking_cost.block_steps(20, 60_000.0) == 20


def test_half_of_the_steps_are_logged_in_a_store_that_is_gone_afterwards(tmp_path: Path) -> None:
    watched: list[Watch] = []

    def take(step: int, watch: Watch) -> None:
        watch({"train/loss": float(step)}, step)
        watched.append(watch)
        time.sleep(0.001)

    told = tracking_cost.measure_overhead(take, lambda: None, 2, 5, tmp_path, pytest.fail, no_progress)
    assert told["without_ms"] >= 1.0
    assert (told["steps"], told["pairs"]) == (5, 2)
    assert [watch is watch_nothing for watch in watched] == [True] * 5 + [False] * 10 + [True] * 5
    assert list(tmp_path.iterdir()) == []


def test_training_steps_are_timed_with_and_without_the_logbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = registry.load("encoder", "now-playing")
    settings = resolve("now-playing", plugin, "tiny", overrides=["train.batch_pairs=4"])
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 6 * RATE_HZ))
    store = Store(tmp_path / "store")
    waves = {f"m{i}": wave for i, wave in enumerate(noise)}
    music = prepare_corpus(store, "music", Arrays(waves, {}), min_track_s=1.0, workers=1)
    hiss = prepare_corpus(store, "noise", Arrays({"n": noise[0]}, {}), min_track_s=1.0, workers=1)
    bank = prepare_rooms(store, "toy", Room(), no_progress)
    points = []
    monkeypatch.setattr(speed, "LOG_EVERY_STEPS", 2)
    monkeypatch.setattr(tracking_cost, "watch_nothing", lambda values, step: points.append((step, sorted(values))))
    training = build_training(
        plugin.build(settings.model),
        settings,
        TrainingSet(music, hiss, (bank,)),
        store,
        torch.device("cpu"),
        no_progress,
    )
    context = RunContext(plugin, None, store, no_progress, pytest.fail)
    told = speed.measure_tracking(training, 3, 1, context)
    assert points == [(0, ["train/loss", "train/lr", "train/silent_redrawn"]), (2, points[0][1])]
    assert told["with_ms"] > 0 and told["ratio"] == pytest.approx(told["with_ms"] / told["without_ms"])


def test_tracking_is_kept_logged_and_shown(tmp_path: Path) -> None:
    cost = {"steps": 25, "ratio": 1.004, "low": 0.99, "high": 1.02, "pairs": 5, "without_ms": 4.0, "with_ms": 4.016}
    found = replace(MEASURED, tracking=cost)
    (tmp_path / RECORD).write_text(json.dumps(asdict(found)))
    assert read_speed(tmp_path / RECORD) == found
    assert found.numbers()["tracking/ratio"] == 1.004
    console = Console(width=120, record=True, file=StringIO())
    console.print(registry.load("report", "speed").render(found))
    text = console.export_text()
    assert "tracking" in text and "+0.4 % of a step (-1.0 to +2.0 %; 5 pairs of 25 steps" in text.replace("\n", " ")


def test_a_record_from_before_tracking_was_measured_is_read(tmp_path: Path) -> None:
    values = asdict(MEASURED)
    del values["tracking"]
    (tmp_path / RECORD).write_text(json.dumps(values))
    assert read_speed(tmp_path / RECORD) == MEASURED
    console = Console(width=120, record=True, file=StringIO())
    console.print(registry.load("report", "speed").render(MEASURED))
    assert "tracking" not in console.export_text()
