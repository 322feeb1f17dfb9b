"""What the terminal says of a recording and of a catalogue."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from bench import registry
from bench.catalogue.folder import Limit
from bench.catalogue.query import Answer, Match


def shown(rendered: Any) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(rendered)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_each_window_has_a_line_and_its_other_candidates_below() -> None:
    matches = (Match("1", "a.mp3", "", 61.25, 0.91, True), Match("2", "", "", 3.0, 0.4, False))
    answers = [Answer(0.0, 10.0, 0.55, matches), Answer(10.0, 20.0, None, (), "silent")]
    text = shown(registry.load("report", "identify").render("radio.wav", answers))
    assert "radio.wav: 1 of 2 parts identified, 10.0 of 20.0 s" in text
    assert "no thresholds" in text
    first, second, third = (line for line in text.splitlines() if any(w in line for w in ("a.mp3", "0.400", "silent")))
    assert "known" in first and "61.25 s" in first and "0.550" in first
    assert "unknown" in second and " 2 " in second and "0.0 s" not in second
    assert "10.0 s" in third and "20.0 s" in third


def test_a_silent_recording_says_nothing_of_the_thresholds_of_the_catalogue() -> None:
    text = shown(registry.load("report", "identify").render("a.wav", [Answer(0.0, 10.0, None, (), "silent")]))
    assert "silent" in text and "thresholds" not in text


def test_false_acceptance_and_false_rejection_are_told() -> None:
    match = Match("1", "a.mp3", "", 0.0, 0.9, True)
    answers = [
        Answer(0.0, 10.0, 0.5, (match,), "", 0.01, 0.1, 400),
        Answer(10.0, 12.0, 0.6, (match,), "", 0.01, 0.25, 400),
    ]
    text = " ".join(shown(registry.load("report", "identify").render("a.wav", answers)).split())
    assert "false acceptance: of 10 s of music that is not in the catalogue, 1.0% (target)" in text
    assert "10% to 25% (measured on 400 excerpts)" in " ".join(text.split())


def test_a_track_name_is_no_markup() -> None:
    answer = Answer(0.0, 10.0, 0.5, (Match("1", "[bold]x[/bold].mp3", "", 0.0, 0.9, True),))
    assert "[bold]x[/bold].mp3" in shown(registry.load("report", "identify").render("a[/b].wav", [answer]))


def catalogue(limits: tuple[Limit, ...]) -> Any:
    about = {"hop_samples": 1600, "encoder": "mine", "weights_sha256": "f" * 64, "sizes": {"vectors.npy": 3 << 20}}
    return SimpleNamespace(
        about=about | {"index": {"name": "exact", "library": "", "config": {}}},
        database=SimpleNamespace(vectors=np.zeros((250, 128), dtype=np.float32)),
        tracks=pd.DataFrame({"seconds": [1800.0, 1800.0]}),
        left_out=pd.DataFrame({"path": ["a [copy].mp3"], "reason": ["duplicate: same audio as a.mp3 (train)"]}),
        index=SimpleNamespace(num_bytes=1 << 20),
        folder=Path("songs"),
        limits=limits,
        bits=None,
    )


def test_a_catalogue_says_what_it_holds_and_takes() -> None:
    text = shown(registry.load("report", "catalogue").render(catalogue((Limit(11, 0.612, 400, 0.01, 0.125),))))
    assert "left out: a [copy].mp3 (duplicate: same audio as a.mp3 (train))" in text
    for told in ("2, 1.00 h", "250 of 128 dimensions, one every 100 ms", "exact, 1.0 MiB", "3.0 MiB in songs"):
        assert told in text
    line = next(line for line in text.splitlines() if "0.612" in line)
    assert line.split() == ["11", "0.612", "1%", "(target)", "12.5%", "[10-16]", "400"]
    told = "false rejection 12.5% [10-16] of music that is, clean or with noise (measured on 400 excerpts)"
    assert told in " ".join(text.split())


def test_a_catalogue_without_thresholds_says_why() -> None:
    assert "at least two tracks" in shown(registry.load("report", "catalogue").render(catalogue(())))


def test_times_that_the_wave_confirms_have_four_digits() -> None:
    matches = (Match("a", "a.mp3", "", 12.34567, 0.9, True, verified=True), Match("b", "b.mp3", "", 3.21, 0.5, False))
    text = shown(registry.load("report", "identify").render("tape.wav", [Answer(0.0, 10.0, 0.6, matches)]))
    assert "12.3457 s" in text and "3.21 s" in text and "confirmed by the wave itself" in " ".join(text.split())


def test_what_the_wave_alone_accepts_says_so() -> None:
    matches = (Match("a", "a.mp3", "", 12.34567, 0.4, True, verified=True, wave_score=21.5),)
    text = shown(registry.load("report", "identify").render("tape.wav", [Answer(0.0, 10.0, 0.6, matches)]))
    assert "known" in text and "wave" in text and "0.600" not in text
    assert "which alone decides where it says wave" in " ".join(text.split())
