"""The two coding sessions: their blocks run as they stand, one after another, in one folder."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SESSIONS = ("tutorial-train-by-hand.md", "tutorial-index-and-search.md")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
MOST_LINES, MOST_CPU_S = 160, 60.0
LEVELS = ("0 dB", "10 dB", "20 dB", "clean")


def executed(name: str) -> dict[str, Any]:
    """Return what the blocks of a document leave behind, run in the current folder; `cpu_s` is what they took."""
    names: dict[str, Any] = {"__name__": "session"}
    text = (DOCS / name).read_text(encoding="utf-8")
    began_s = time.process_time()
    for block in BLOCK.finditer(text):
        before = "\n" * text[: block.start(1)].count("\n")  # so that a traceback names the document's own line
        exec(compile(before + block.group(1), name, "exec"), names)
    return names | {"cpu_s": time.process_time() - began_s}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sessions")


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, Any]:
    pytest.importorskip("matplotlib").use("agg")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return executed(SESSIONS[0])
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def second(folder: Path, first: dict[str, Any]) -> dict[str, Any]:
    pytest.importorskip("falconn", reason="FALCONN is not installed; `make setup` builds it")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return executed(SESSIONS[1])
    finally:
        os.chdir(before)


def test_hand_made_nt_xent_is_that_of_the_suite(first: dict[str, Any]) -> None:
    import torch

    from bench.train.losses import nt_xent

    clean_ND, heard_ND = torch.nn.functional.normalize(torch.randn(2, 9, 16), dim=-1)
    assert float(first["nt_xent"](clean_ND, heard_ND)) == pytest.approx(float(nt_xent(clean_ND, heard_ND, 0.05)))


def test_training_makes_the_encoder_find_more(first: dict[str, Any]) -> None:
    shares = [share for _, share in first["curve"]]
    assert len(shares) == 6 and shares[-1] > 1.5 * shares[0] and shares[-1] > 0.5


def test_the_first_session_leaves_its_pictures_and_weights(first: dict[str, Any], folder: Path) -> None:
    for name in ("session-1-pair.png", "session-1-curve.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (DOCS / "images" / name).is_file()
    from bench.train.checkpoint import load

    assert load(folder / "session-1.safetensors")[1]["step"] == first["STEPS"]


def test_clean_queries_are_found_and_noise_costs(second: dict[str, Any]) -> None:
    by_index = second["one"].pivot(index="noise", columns="index", values="top-1").loc[list(LEVELS)]
    exact = by_index["exact"]
    assert exact["0 dB"] + 0.1 < exact["10 dB"] < exact["20 dB"] and exact["clean"] > 0.8
    assert ((second["one"]["low"] <= second["one"]["top-1"]) & (second["one"]["top-1"] <= second["one"]["high"])).all()
    assert (by_index["exact"] - by_index["falconn"]).abs().max() < 0.1


def test_a_sequence_finds_more_than_one_fingerprint(second: dict[str, Any]) -> None:
    one = second["one"][second["one"]["index"] == "exact"].set_index("noise")["top-1"]
    sequence = second["sequence"].loc[list(LEVELS), "rescore"]
    assert sequence["clean"] > 0.95 and (sequence >= one.loc[list(LEVELS)]).all()


def test_recall_grows_with_k_and_mrr_lies_between(second: dict[str, Any]) -> None:
    recall = list(second["recall"].values())
    assert recall == sorted(recall) and recall[0] <= second["mrr"] <= recall[-1]
    assert recall[0] == second["hits"]["exact", "0 dB"]["hit"].mean()


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_is_short(name: str) -> None:
    assert len((DOCS / name).read_text(encoding="utf-8").splitlines()) < MOST_LINES


def test_sessions_take_less_than_a_minute_of_one_core(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert max(first["cpu_s"], second["cpu_s"]) < MOST_CPU_S
