"""Runs side by side: by hand on a grid of two cells, recorders of several runs in one table, and what is refused."""

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
            part = pd.DataFrame({"query": range(len(hits)), "hit": right, "track_hit": True})
            parts.append(part.assign(cell=cell, length_s=length_s, index=index, sequence=sequence))
    table = pd.concat(parts, ignore_index=True)
    table = table.sample(frac=1, random_state=3, ignore_index=True) if shuffled else table
    summary = {
        "run": run, "benchmark": benchmark, "system": "mine", "index": "exact", "sequence": "rescore",
        "queries_per_cell": 20, "database_vectors": 1000, "database_tracks": 9, "parameters": 7, "seconds": {},
    }  # fmt: skip
    rows = [
        {"cell": cell, "kind": cell.split("/")[0], "snr_db": 0.0 if "snr" in cell else None, "t60_s": None,
         "length_s": length_s, "system": "mine", "index": "exact", "sequence": "rescore", "metric": "segment_top1",
         "queries": queries}
        for cell, length_s in found
    ]  # fmt: skip
    return Result(pd.DataFrame(rows), table, pd.DataFrame(), summary)


@pytest.fixture
def two() -> list[Result]:
    better = {("noise/snr_0", 0.96): MORE, ("noise/snr_0", 3.0): MORE, ("clean", 0.96): [*MORE[1:], True]}
    return [result("a" * 16, CELLS), result("b" * 16, better)]


def segments(results: list[Result]) -> pd.DataFrame:
    """Return the rows of the runs for segment-level top-1."""
    table = report.compare(results)
    return table[(table["metric"] == "segment_top1") & table["run"].notna()]


def cells(results: list[Result]) -> pd.DataFrame:
    """Return those of single cells."""
    table = segments(results)
    return table[table["length_s"].notna()]


def shown(results: list[Result], width: int) -> str:
    console = Console(width=width, record=True, file=StringIO())
    console.print(report.render(*results))
    return console.export_text()


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
    assert first[["difference", "difference_low", "difference_high", "detectable", "p", "p_holm"]].isna().all(axis=None)
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
    means = segments(two).query("cell == 'mean'")
    assert means["length_s"].isna().all() and means["p"].isna().all()
    # Two degraded lengths: 0.3 and 0.9 of the first run, 0.9 and 0.9 of the second; clean is left out.
    assert means["value"].tolist() == pytest.approx([0.6, 0.9])
    assert means["difference"].iloc[1] == pytest.approx(0.3)
    # Queries differ by 0.5 or by nothing, twelve of twenty by 0.5.
    per_query = np.array([0.5] * 12 + [0.0] * 8)
    assert (means["difference_low"].iloc[1], means["difference_high"].iloc[1]) == bootstrap_mean(per_query)
    assert means["low"].iloc[0] < 0.6 < means["high"].iloc[0]
    assert means["rank"].tolist() == [2, 1]
    assert means["detectable"].iloc[1] == pytest.approx(2.8016 * per_query.std(ddof=1) / np.sqrt(20), rel=1e-4)


def test_runs_that_cannot_be_told_apart_share_a_rank(two: list[Result]) -> None:
    third = result("c" * 16, CELLS)  # as good as the first
    means = segments([*two, third]).query("cell == 'mean'")
    assert means["rank"].tolist() == [2, 1, 2]
    assert cells(two)["rank"].isna().all()


def test_table_of_differences_says_what_it_could_have_seen(two: list[Result]) -> None:
    [table] = registry.load("report", "compare").difference_tables(two)
    # Of the mean as above; of the entries one has twelve of twenty queries that differ, two others two, one way each.
    assert "seen in 80 % of cases: differences of the mean 15.7 and of an entry" in table.caption


def test_mean_is_left_out_where_nothing_is_degraded() -> None:
    clean = [result(run * 16, {("clean", 0.96): MORE}) for run in "ab"]
    assert segments(clean)["length_s"].notna().all()
    text = shown(clean, 80)
    assert "mine bbbbbb minus mine aaaaaa: segment-level top-1\n" in text and "top-1, means" not in text


def test_audio_level_is_compared_too_and_corrected_by_itself(two: list[Result]) -> None:
    table = report.compare(two)
    audio = table[table["metric"] == "audio_top1"]
    audio = audio[audio["run"].notna()]
    assert (audio["value"] == 1).all() and (audio["difference"].dropna() == 0).all()
    assert len(audio) == len(segments(two)) == 2 * (3 + 1)


def test_published_rows_come_last_with_their_source_and_no_test(two: list[Result]) -> None:
    table = report.compare(two)
    last = table[8 * 2 :]
    assert last["run"].isna().all() and last["source"].notna().all() and table[: 8 * 2]["source"].isna().all()
    assert last[["n", "low", "high", "difference", "p", "p_holm"]].isna().all(axis=None)
    row = last[(last["system"] == "Attention CNN") & (last["cell"] == "noise/snr_0")].iloc[0]
    assert (row["length_s"], row["value"], row["confidence"], row["data"]) == (0.96, 0.768, "A", "FMA medium")
    assert row["tolerance_ms"] == 50 and row["source"] == "Singh et al., ISMIR 2022, table 3"


def test_published_rows_do_not_stand_beside_made_up_music(two: list[Result]) -> None:
    made_up = [result(key * 16, CELLS, benchmark="synth-segment/v1") for key in "ab"]
    assert report.compare(made_up)["run"].notna().all()


def test_a_cell_that_one_run_lacks_is_a_row_without_difference(two: list[Result]) -> None:
    fewer = result("c" * 16, {("noise/snr_0", 0.96): MORE, ("noise/snr_5", 0.96): MORE})
    table = segments([two[0], fewer])
    own = table[table["run"] == "c" * 16]
    assert own["cell"].tolist() == ["noise/snr_0", "noise/snr_5", "mean"]
    assert own["difference"].tolist()[:2] == [pytest.approx(0.6), pytest.approx(np.nan, nan_ok=True)]
    # One comparison, so nothing is corrected; the means differ in the one cell that both have.
    assert own["p_holm"].iloc[0] == own["p"].iloc[0] == pytest.approx(2 / 2**12)
    assert own["difference"].iloc[2] == pytest.approx(0.6)
    assert "-" in next(line for line in shown([two[0], fewer], 80).splitlines() if line.startswith("clean")).split()


def test_one_run_alone_shows_tables_and_no_differences(two: list[Result]) -> None:
    table = segments(two[:1])
    assert len(table) == 4 and table["difference"].isna().all()
    text = shown(two[:1], 80)
    assert "segment-level top-1, noise" in text and "cost" in text and " minus " not in text


def test_table_shows_what_was_tested_and_differences_with_their_marks(two: list[Result]) -> None:
    text = shown(two, 80)
    assert text.startswith("fma-segment/v1: 20 queries per condition, 1,000 fingerprints of 9 tracks")
    assert "mine bbbbbb minus mine aaaaaa" in text and "the 3 entries of the table" in " ".join(text.split())
    table = text[text.index(" minus ") :].splitlines()
    noise = next(line for line in table if line.startswith("noise 0 dB")).split()
    assert noise[3] == "+60.0" and noise[-2:] == ["+0.0=", "+0..+0"]
    clean = next(line for line in table if line.startswith("clean")).split()
    assert clean == ["clean", "+0.0=", "-15..+15", "-"]
    assert "mean +30.0" in text
    assert max(map(len, text.splitlines())) <= 80


def aligned(run: str, errors: dict[str, float], true_s: float = 1.0) -> Result:
    """Return a result of six files of one set, aligned by these aligners with these errors (s^2, times the file)."""
    files = pd.DataFrame(
        {
            "set": "scenes", "split": "test", "aligner": aligner, "name": f"{i}.wav", "mse_s2": mse_s2 * i,
            "mae_ms": 1000 * mse_s2 * i, "median_ms": 1.0, "num_keypoints": 1, "num_missing": 0, "confidence": 1.0,
        }
        for aligner, mse_s2 in errors.items()
        for i in range(1, 7)
    )  # fmt: skip
    truth = pd.DataFrame({"set": "scenes", "split": "test", "file": files["name"], "time0_s": 1.0, "time1_s": true_s})
    summary = {"run": run, "system": "mine", "benchmark": "custom-align", "parameters": 7, "seconds": {}}
    return Result(pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), summary, files, truth)


def test_aligners_that_hear_are_told_by_run_and_the_others_stand_there_once() -> None:
    one = aligned("a" * 16, {"nosync": 9.0, "fingerprint-path": 1.0, "gcc-phat": 5.0, "oracle-of-the-grid": 3.0})
    other = aligned("b" * 16, {"nosync": 9.0, "fingerprint-path": 2.0, "gcc-phat": 6.0, "oracle-of-the-grid": 3.0})
    files = report.merge_alignments([one, other])
    by_name = files.groupby("aligner")["mse_s2"].mean().to_dict()
    assert by_name == {
        "nosync": pytest.approx(9 * 3.5), "oracle-of-the-grid": pytest.approx(3 * 3.5),
        "fingerprint-path, mine aaaaaa": pytest.approx(3.5), "fingerprint-path, mine bbbbbb": pytest.approx(2 * 3.5),
        # Deaf, but with other answers: other settings.
        "gcc-phat, mine aaaaaa": pytest.approx(5 * 3.5), "gcc-phat, mine bbbbbb": pytest.approx(6 * 3.5),
    }  # fmt: skip
    assert set(report.merge_alignments([one])["aligner"]) == set(one.alignment["aligner"])
    assert set(report.compare([one, other])["aligner"]) == set(by_name)
    text = shown([one, other], 80)
    assert "scenes, test, 6 files" in text and text.count("nosync") == 1


def test_runs_with_queries_and_runs_with_recorders_are_shown_together(two: list[Result]) -> None:
    text = shown([*two, aligned("c" * 16, {"nosync": 9.0, "fingerprint-path": 1.0})], 80)
    assert "scenes, test, 6 files" in text and "mine bbbbbb minus mine aaaaaa" in text and "mine cccccc" in text


def test_recorders_with_other_annotations_are_refused() -> None:
    with pytest.raises(ConfigError, match="their recordings of scenes differ"):
        report.merge_alignments([aligned("a" * 16, {"nosync": 9.0}), aligned("b" * 16, {"nosync": 9.0}, true_s=2.0)])


def test_a_file_of_numbers_wants_queries_of_every_run(two: list[Result]) -> None:
    with pytest.raises(ConfigError, match="cccccccccccccccc has no queries"):
        report.compare([*two, aligned("c" * 16, {"nosync": 9.0})])


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


def test_runs_searched_by_another_first_index_are_refused(two: list[Result]) -> None:
    two[1].summary["index"] = "falconn"
    with pytest.raises(ConfigError, match="their first index is exact and falconn"):
        report.compare(two)
