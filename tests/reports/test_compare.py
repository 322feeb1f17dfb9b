"""Runs side by side: by hand on a grid of two cells, and what is refused."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench import registry
from bench.errors import ConfigError
from bench.results import Result
from bench.score.statistics import bootstrap_difference, bootstrap_mean, mcnemar, wilson

report = registry.load("report", "compare")

BASE = [True] * 6 + [False] * 14
MORE = [True] * 18 + [False] * 2
CELLS = {("noise/snr_0", 0.96): BASE, ("noise/snr_0", 3.0): MORE, ("clean", 0.96): MORE}


def result(
    run: str,
    found: dict[tuple[str, float], list[bool]],
    benchmark: str = "fma-segment/v1",
    queries: str = "q1",
    shuffled: bool = False,
) -> Result:
    """Return a result whose headline search found these; other searches found nothing at all."""
    parts = []
    for (cell, length_s), hits in found.items():
        for index, sequence in (("exact", "vote"), ("exact", "rescore"), ("falconn", "rescore")):
            right = hits if (index, sequence) == ("exact", "rescore") else [False] * len(hits)
            part = pd.DataFrame({"query": range(len(hits)), "hit": right})
            parts.append(part.assign(cell=cell, length_s=length_s, index=index, sequence=sequence))
    table = pd.concat(parts, ignore_index=True)
    table = table.sample(frac=1, random_state=3, ignore_index=True) if shuffled else table
    summary = {"run": run, "benchmark": benchmark, "encoder": "mine", "index": "exact", "sequence": "rescore"}
    return Result(pd.DataFrame({"queries": [queries] * 2}), table, pd.DataFrame(), summary)


@pytest.fixture
def two() -> list[Result]:
    better = {("noise/snr_0", 0.96): MORE, ("noise/snr_0", 3.0): MORE, ("clean", 0.96): [*MORE[1:], True]}
    return [result("a" * 16, CELLS), result("b" * 16, better)]


def cells(results: list[Result]) -> pd.DataFrame:
    """Return the rows of single cells."""
    table = report.compare(results)
    return table[table["length_s"].notna()]


def test_every_run_has_a_row_for_each_cell_and_length_in_the_order_tested(two: list[Result]) -> None:
    table = cells(two)
    assert table[["run", "cell", "length_s"]].to_numpy().tolist() == [
        [run, cell, length_s] for run in ("a" * 16, "b" * 16) for cell, length_s in CELLS
    ]
    assert table["n"].tolist() == [20] * 6
    assert table["value"].tolist() == [0.3, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert table[["low", "high"]].to_numpy().tolist()[:2] == [list(wilson(6, 20)), list(wilson(18, 20))]


def test_differences_are_paired_and_from_the_first_run(two: list[Result]) -> None:
    table = cells(two)
    first, second = table[:3], table[3:]
    assert first[["difference", "difference_low", "difference_high", "p", "p_holm"]].isna().all(axis=None)
    assert second["difference"].tolist() == pytest.approx([0.6, 0.0, 0.0])
    # Twelve queries found by the second alone: 2 / 2 ** 12. The clean cell: 17 both, one each alone.
    assert second["p"].tolist() == pytest.approx([2 / 2**12, 1.0, 1.0])
    assert second["p_holm"].tolist() == pytest.approx([3 * 2 / 2**12, 1.0, 1.0])
    bounds = second[["difference_low", "difference_high"]].to_numpy()
    assert bounds[0].tolist() == list(bootstrap_difference(np.array(BASE), np.array(MORE)))
    assert bounds[1].tolist() == [0, 0]  # the very same queries
    assert bounds[2, 0] < 0 < bounds[2, 1]  # as many, but others


def test_order_of_rows_does_not_unpair_queries(two: list[Result]) -> None:
    mixed = result("b" * 16, {key: [not hit for hit in hits] for key, hits in CELLS.items()}, shuffled=True)
    table = cells([two[0], mixed])
    for (key, hits), row in zip(CELLS.items(), table[3:].to_dict("records"), strict=True):
        assert (row["cell"], row["length_s"]) == key
        assert row["p"] == mcnemar(np.array(hits), ~np.array(hits))


def test_each_run_is_corrected_for_its_own_cells(two: list[Result]) -> None:
    third = result("c" * 16, CELLS)  # as good as the first
    table = cells([*two, third])
    assert table["run"].nunique() == 3
    pd.testing.assert_frame_equal(table[:6], cells(two))
    assert table[6:]["p_holm"].tolist() == [1.0] * 3 and table[6:]["difference"].tolist() == [0.0] * 3


def test_mean_is_over_degraded_cells_and_its_difference_is_paired(two: list[Result]) -> None:
    means = report.compare(two).query("cell == 'mean'")
    assert means["length_s"].isna().all() and means["p"].isna().all()
    # Two degraded lengths: 0.3 and 0.9 of the first run, 0.9 and 0.9 of the second; clean is left out.
    assert means["value"].tolist() == pytest.approx([0.6, 0.9])
    assert means["difference"].iloc[1] == pytest.approx(0.3)
    # Queries differ by 0.5 or by nothing, twelve of twenty by 0.5.
    per_query = np.array([0.5] * 12 + [0.0] * 8)
    assert (means["difference_low"].iloc[1], means["difference_high"].iloc[1]) == bootstrap_mean(per_query)
    assert means["low"].iloc[0] < 0.6 < means["high"].iloc[0]


def test_mean_is_left_out_where_nothing_is_degraded() -> None:
    clean = [result(run * 16, {("clean", 0.96): MORE}) for run in "ab"]
    assert report.compare(clean)["length_s"].notna().all()


def test_table_shows_shares_differences_and_p(two: list[Result]) -> None:
    console = Console(width=80, record=True, file=StringIO())
    console.print(report.render(*two))
    text = console.export_text()
    rows = [line.split() for line in text.splitlines() if " s " in line]
    assert [row[:-9] for row in rows] == [["noise/snr_0", "0.96", "s"], ["3", "s"], ["clean", "0.96", "s"]]
    assert rows[0][3:8] == ["30.0", "15-52", "90.0", "70-97", "+60.0"] and rows[0][-1] == "0.001"
    assert rows[1][2:] == ["90.0", "70-97", "90.0", "70-97", "+0.0", "+0", "to", "+0", "1.000"]
    assert "aaaaaa" in text and "bbbbbb" in text and "n = 20" in text and "3 rows" in text


def test_small_p_is_shown_as_small() -> None:
    many = {("clean", 0.96): [True] * 100}, {("clean", 0.96): [False] * 100}
    console = Console(width=140, record=True, file=StringIO())
    console.print(report.render(*(result(run * 16, hits) for run, hits in zip("ab", many, strict=True))))
    assert "<0.001" in console.export_text()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"queries": "q2"}, "query set is q1 and q2"),
        ({"benchmark": "custom"}, "benchmark is fma-segment/v1 and custom"),
        ({"run": "a" * 16}, "must not name a run twice"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(two: list[Result], other: dict[str, str], named: str) -> None:
    unlike = result(**({"run": "c" * 16, "found": CELLS} | other))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=named):
        report.compare([two[0], unlike])


def test_one_run_alone_is_refused(two: list[Result]) -> None:
    with pytest.raises(ConfigError, match="at least two runs, got 1"):
        report.compare(two[:1])


def test_runs_searched_by_another_first_index_are_refused(two: list[Result]) -> None:
    two[1].summary["index"] = "falconn"
    with pytest.raises(ConfigError, match="their first index is exact and falconn"):
        report.compare(two)
