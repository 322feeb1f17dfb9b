"""The table and the picture of a comparison of indexes, by hand."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench import registry
from bench.speed.isolated import Costs
from bench.speed.search import IndexRow, Quality, SearchSpeed

report = registry.load("report", "search-speed")


def row(index: str, preset: str, single_ms: float, batched_ms: float, recall: float, exact: bool = False) -> IndexRow:
    costs = Costs(exact, 4_096_000, 12.5, single_ms, 100 if single_ms < 50 else 7, batched_ms, 512.4, 99.6)
    return IndexRow(index, preset, {}, "measured", "", costs, Quality(recall, recall - 0.01, 400, 0.8, 0.763, 0.832))


@pytest.fixture
def result() -> SearchSpeed:
    rows = (
        row("exact", "", 80.0, 2.0, 1.0, exact=True),
        row("faiss", "ivf-pq", 0.5, 0.04, 0.7312),
        IndexRow("falconn", "", {}, "not installed", "it needs the package falconn"),
        IndexRow("mine.py", "", {}, "out of memory", "its process was killed"),
    )
    return SearchSpeed(
        run="abcdef0123", encoder="mine", cell="noise/snr_5", length_s=3.0, top_k=20, vectors=8_000, real_vectors=5_000,
        dim=128, queries=500, query_vectors=10_500, machine="2 cores", load=1.25, rows=rows,
    )  # fmt: skip


def shown(result: SearchSpeed) -> list[str]:
    console = Console(width=80, record=True, file=StringIO())
    console.print(report.render(result))
    return console.export_text().splitlines()


def test_table_has_a_row_for_each_index_in_numbers_or_words(result: SearchSpeed) -> None:
    lines = shown(result)
    assert "500 queries of 21 vectors" in lines[0]
    assert "against 8,000 (5,000 of them real) of 128 dimensions" in lines[1]
    found, taken = [line.split() for line in lines if line.strip().startswith("faiss/ivf-pq")]
    assert found == ["faiss/ivf-pq", "0.7312", "0.7212", "80.0", "76.3-83.2"]
    assert taken == ["faiss/ivf-pq", "0.5", "160", "0.04", "50", "12.5", "512", "512", "100"]
    assert [line.split()[1:5] for line in lines if line.strip().startswith("exact ")][1] == ["80", "1", "2", "1"]
    assert any(line.split() == ["falconn", "not", "installed"] for line in lines)
    notes = " ".join(line.strip() for line in lines)
    assert "mine: out of memory; its process was killed" in notes
    assert "slow, so ms single is the median of few calls: exact 7" in notes
    assert "load 1.2" in notes


def test_names_of_a_row_are_fit_for_metrics(result: SearchSpeed) -> None:
    numbers = result.numbers()
    assert {name.rsplit("/", 1)[0] for name in numbers} == {"exact", "faiss/ivf-pq"}
    assert numbers["faiss/ivf-pq/times_faster_single"] == 160 and numbers["faiss/ivf-pq/bytes_per_vector"] == 512


def test_picture_shows_recall_against_time(
    result: SearchSpeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    report.draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    assert [tuple(float(v[0]) for v in line.get_data()) for line in axes.lines] == [(2.0, 1.0), (0.04, 0.7312)]
    assert [line.get_label() for line in axes.lines] == ["exact", "faiss/ivf-pq"]
