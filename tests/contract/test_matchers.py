"""Every built-in matcher keeps its contract, and the check notices one that does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench.errors import StoreError
from bench.registry import load, names
from bench.testing import check_matcher
from bench.values import Found

STEP = 32  # samples that the toy adds up: it hears up to 250 Hz


@pytest.mark.parametrize("name", names("matcher"))
def test_matcher_keeps_its_contract(name: str) -> None:
    check_matcher(load("matcher", name))


@dataclass(frozen=True)
class Config:
    fault: str = ""


class Toy:
    """Finds a wave by cross-correlation, one place in each track, with a fault to choose."""

    shortest_s, fixed_bytes = 0.5, 0

    def __init__(self, tracks: list[np.ndarray], fault: str) -> None:
        self.fault = fault
        self.num_bytes = 0 if fault == "no size" else sum(track.nbytes for track in tracks)
        longest = max(map(len, tracks))
        self.track_RN = np.stack([np.pad(track, (0, longest - len(track))) for track in tracks])
        self.spectrum_RF = np.fft.rfft(self.track_RN, 2 * longest)
        power_RN = np.cumsum(np.pad(self.track_RN**2, ((0, 0), (1, longest))), axis=1)
        self.power_up_to_RN = power_RN

    def find(self, wave_BT: np.ndarray, num_answers: int, without_B: np.ndarray | None = None) -> Found:
        row, start = np.full((2, len(wave_BT), num_answers), -1)
        score = np.full(row.shape, np.nan, np.float32)
        for query, wave_T in enumerate(wave_BT):
            answers = self.answers(wave_T, -1 if without_B is None else without_B[query])[:num_answers]
            for rank, answer in enumerate(answers):
                row[query, rank], start[query, rank], score[query, rank] = answer
        if self.fault == "batch" and len(wave_BT):
            score /= np.nanmax(score, initial=0.1)
        if self.fault == "scores of nothing":
            score = np.nan_to_num(score)
        if self.fault == "overwritten" and wave_BT.flags.writeable:
            wave_BT *= 0.5
        if self.fault == "one column":
            return Found(row[:, :1], start[:, :1], score[:, :1])
        return Found(row.astype(np.int32) if self.fault == "int32" else row, start, score)

    def answers(self, wave_T: np.ndarray, without: int) -> list[tuple[int, int, float]]:
        query_N = add_up(wave_T)
        if not query_N.any() and self.fault != "silence":
            return []
        if len(wave_T) < self.shortest_s * 16_000 and self.fault != "short":
            return []
        size = self.track_RN.shape[1]
        inner_RN = np.fft.irfft(self.spectrum_RF * np.fft.rfft(query_N, 2 * size).conj())[:, :size]
        power_RN = self.power_up_to_RN[:, len(query_N) :][:, :size] - self.power_up_to_RN[:, :size]
        length = np.sqrt(np.maximum(power_RN, 1e-3) * max(float((query_N**2).sum()), 1e-3))
        score_RN = (inner_RN / length).round(6)
        found = []
        for row, score_N in enumerate(score_RN):
            place = int(score_N.argmax())
            audible = self.track_RN[row].any() or self.fault in ("silence", "silent track")
            if audible and (row != without or self.fault == "own track"):
                start = place if self.fault == "own unit" else place * STEP
                found.append((row, -1 if self.fault == "negative" else start, float(score_N[place])))
        order = {"worst first": (1, 1), "later twin": (-1, -1)}.get(self.fault, (-1, 1))
        found.sort(key=lambda answer: (order[0] * answer[2], order[1] * answer[0]))
        return [found[0], *found] if self.fault == "twice" and found else found


def add_up(wave_T: np.ndarray) -> np.ndarray:
    return wave_T[: len(wave_T) // STEP * STEP].astype(np.float64).reshape(-1, STEP).mean(axis=1)


def module(fault: str) -> ModuleType:
    def build(config: Config, tracks: Iterable[np.ndarray], folder: Path) -> None:
        given = islice(tracks, 8) if fault == "not all" else tracks
        kept = [add_up(track_T / 32_768) for track_T in given]
        if fault == "by content":
            kept.sort(key=lambda track: float(np.abs(track).sum()))
        if fault == "random":
            kept = [track * np.random.default_rng().uniform(0.9, 1.1, len(track)) for track in kept]
        np.save(folder / "lengths.npy", [len(track) for track in kept])
        np.save(folder / "tracks.npy", np.concatenate(kept))

    def load(config: Config, folder: Path) -> Toy:
        try:
            length = np.load(folder / "lengths.npy")
            whole = np.load(folder / "tracks.npy")
        except (OSError, ValueError, EOFError) as error:
            if fault == "another error":
                raise
            if fault == "half a file":
                return Toy([np.ones(100)], "")
            raise StoreError("cut off") from error
        return Toy(np.split(whole, np.cumsum(length)[:-1]), fault)

    made = ModuleType("made")
    parts: dict[str, Any] = {"Config": Config, "CITE": "", "LICENSE": "MIT", "SOURCE": "", "build": build, "load": load}
    if fault == "no load":
        del parts["load"]
    if fault == "no such setting":
        parts["QUERY_SETTINGS"] = ("device",)
    if fault == "no preset":
        parts["presets"] = lambda: {"small": {}}
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def test_sound_toy_matcher_passes() -> None:
    check_matcher(module(""))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("no load", "the module has a function load"),
        ("no such setting", "QUERY_SETTINGS are names of settings"),
        ("no preset", r"presets\(\) are values of Config"),
        ("no size", "num_bytes is a size"),
        ("not all", "build reads all tracks"),
        ("one column", r"row_QR is \(B, num_answers\)"),
        ("int32", "row_QR is int64"),
        ("scores of nothing", "scores are NaN where there is no answer"),
        ("negative", "starts are at 0 or later"),
        ("worst first", "answers come best first"),
        ("later twin", "of two identical tracks the earlier comes first"),
        ("twice", "no place is answered twice"),
        ("own unit", "starts are in samples at 16000 Hz"),
        ("batch", "whatever else is asked|alone as in a batch"),
        ("overwritten", "queries are left as they were"),
        ("own track", "a track to leave out is never answered"),
        ("silence", "a silent query has no answer"),
        ("short", "a query of 10 samples has no answer|shorter than shortest_s"),
        ("silent track", "nothing is found in a silent track"),
        ("by content", "of clean cuts of 5 s, 95% are found in their track"),
        ("random", "prints made twice give the same answers"),
        ("half a file", "load raises StoreError if lengths.npy is cut off"),
        ("another error", "load raises StoreError if lengths.npy is cut off; found"),
    ],
)
def test_fault_of_a_matcher_is_named(fault: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_matcher(module(fault))
