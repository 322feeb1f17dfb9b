"""The MLflow UI in a real headless browser: what a user sees who follows the address of `bench ui`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.logbook import open_book


@pytest.mark.slow
def test_ui_shows_a_run_and_its_snr_curve(
    check_ui_shows_curve: Callable[[Path, str, Path], tuple[list[float], list[float]]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    curve = {0: 0.31, 5: 0.59, 10: 0.75, 15: 0.85, 20: 0.95}
    with open_book(
        store / "runs" / "k", experiment="fma-segment/v1", name="now-playing/0/k", store=store, warn=pytest.fail
    ) as book:
        book.params({"train.lr": 1e-3})
        for snr_db, top1 in curve.items():
            book.metrics(
                {
                    "segment_top1_0.96s/noise": top1,
                    "segment_top1_2s/noise": top1 / 2,
                    "segment_top1_0.96s/noise_reverb": 0.0,
                },
                step=snr_db,
            )
        book.metrics({"segment_top1/mean": 0.69})
    steps, values = check_ui_shows_curve(store, "segment_top1_0.96s/noise", tmp_path)
    assert steps == list(curve)
    assert values == pytest.approx(list(curve.values()))
