"""The results of one run in the terminal."""

from __future__ import annotations

from io import StringIO

import pandas as pd
from rich.console import Console

from bench.reports import grid
from bench.results import Result
from bench.values import Cell


def result(*cells: Cell) -> Result:
    """Return a result that finds 90, 80, ... per cent of these cells' queries."""
    rows = [
        {
            "system": "mine", "cell": cell.name, "kind": cell.kind, "snr_db": cell.snr_db, "t60_s": cell.t60_s,
            "distortion": cell.distortion or None,
            "length_s": 0.96, "index": "exact", "sequence": "rescore", "metric": metric, "value": 0.9 - i / 10,
            "low": 0.8 - i / 10, "high": 1.0 - i / 10, "n": 100,
        }
        for i, cell in enumerate(cells)
        for metric in ("segment_top1", "audio_top1")
    ]  # fmt: skip
    summary = {"system": "mine", "benchmark": "fma-segment/v1+custom-abcdef", "index": "exact", "sequence": "rescore",
               "queries_per_cell": 100, "headline": {"segment_top1/mean": 0.9}}  # fmt: skip
    return Result(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), summary)


def test_measured_rooms_are_told_from_simulated_ones() -> None:
    console = Console(width=140, record=True, file=StringIO())
    console.print(grid.render(result(Cell("reverb", t60_s=0.4), Cell("measured_reverb", t60_s=0.4))))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert lines.count("reverb 0.4 s 90.0 80-100 -") == 2  # segment- and audio-level
    assert lines.count("measured room 0.4 s 80.0 70-90 -") == 2
    assert " ".join(lines).count("measured room: measured responses of about this t60") == 2


def test_distortions_have_a_row_each_and_the_means_name_what_they_are_over() -> None:
    console = Console(width=140, record=True, file=StringIO())
    cells = (
        Cell("noise", snr_db=0.0), Cell("speed", distortion="speed_0.98"), Cell("codec", distortion="opus_16"),
        Cell("device", snr_db=10.0, t60_s=0.5, distortion="loudspeaker"),
    )  # fmt: skip
    console.print(grid.render(result(*cells)))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    for row in ("speed -2 % 80.0 70-90 -", "Opus 16 kbit/s 70.0 60-80 -", "loudspeaker 10 dB 60.0 50-70 -"):
        assert lines.count(row) == 2
    assert "over the cells noise, speed, codec, device and" in " ".join(lines)
