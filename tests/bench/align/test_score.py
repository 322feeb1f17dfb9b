import math
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bench.reports
from bench.align.baseline_grid import candidates, mean_prominence, oracle, usable_mask, windows
from bench.align.score import (
    FileScore,
    clip_times,
    compare_files,
    errors,
    format_missing,
    read_times,
    score_file,
    score_set,
    score_tables,
)
from bench.errors import DataError


def times(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


# One file


def test_a_file_is_scored_by_hand() -> None:
    scored = score_file("a.wav", times(0, 1, 2), times(0.5, 1.5, 2.5), times(0, 1, 2), times(0.5, 1.6, 2.2))
    assert scored.mse_s2 == pytest.approx((0.1**2 + 0.3**2) / 3)
    assert scored.mae_ms == pytest.approx(400 / 3)
    assert scored.median_ms == pytest.approx(100)
    assert (scored.num_keypoints, scored.num_missing) == (3, 0)


def test_an_error_is_positive_where_the_prediction_is_late() -> None:
    assert errors(times(0, 1), times(1, 2), times(0, 1), times(1.5, 1.75))[0].tolist() == [0.5, -0.25]


def test_all_right_scores_zero_and_doing_nothing_scores_the_squared_lag() -> None:
    true = times(3, 4, 5)
    assert score_file("a", times(1, 2, 3), true, times(1, 2, 3), true).mse_s2 == 0
    assert score_file("a", times(1, 2, 3), true, times(1, 2, 3), times(1, 2, 3)).mse_s2 == pytest.approx(4)


def test_of_an_annotated_time_that_repeats_the_first_row_counts() -> None:
    error, missing = errors(times(0, 0, 1), times(0.25, 9, 1), times(0, 1), times(0, 1))
    assert error.tolist() == [-0.25, 0] and missing == 0


def test_of_several_predictions_the_first_counts_and_extra_ones_are_ignored() -> None:
    error, missing = errors(times(0, 1), times(0, 1), times(7, 1, 1, 0), times(70, 1.5, 9, 0))
    assert error.tolist() == [0, 0.5] and missing == 0


def test_a_missing_prediction_is_the_time_in_channel_0_and_times_match_exactly() -> None:
    error, missing = errors(times(0, 1, 2), times(0.5, 1.5, 2.5), times(0, np.nextafter(1, 2)), times(0.5, 1.5))
    assert error.tolist() == [0, -0.5, -0.5] and missing == 2


def slow_errors(time0: list[float], time1: list[float], known0: list[float], known1: list[float]) -> list[float]:
    found = []
    for row, moment in enumerate(time0):
        if moment in time0[:row]:
            continue
        predicted = next((b for a, b in zip(known0, known1, strict=True) if a == moment), moment)
        found.append((moment, predicted - time1[row]))
    return [error for _, error in sorted(found)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 7), max_size=8))
def test_errors_are_those_of_the_definition_read_row_by_row(annotated: list[int], predicted: list[int]) -> None:
    draw = np.random.default_rng(len(annotated) * 10 + len(predicted))
    time0, known0 = ([float(value) for value in values] for values in (annotated, predicted))
    time1, known1 = (draw.uniform(0, 10, len(values)).tolist() for values in (time0, known0))
    found, _ = errors(times(*time0), times(*time1), times(*known0), times(*known1))
    assert found.tolist() == slow_errors(time0, time1, known0, known1)


def test_a_file_without_annotations_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.wav has no annotated keypoint"):
        score_file("a.wav", times(), times(), times(0), times(0))


def test_predictions_are_moved_into_the_recording() -> None:
    assert clip_times(times(-1, 3, 11), 10.0).tolist() == [0, 3, 10]


# Tables


def table(rows: list[tuple[str, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["Filename", "Time Channel 0", "Time Channel 1"])


def test_tables_are_scored_file_by_file_and_what_is_not_predicted_is_told() -> None:
    annotated = table([("b.wav", 0, 1), ("a.wav", 0, 0), ("b.wav", 1, 2)])
    predicted = table([("b.wav", 1, 2), ("c.wav", 0, 0), ("b.wav", 0, 1)])
    one, other = score_tables(annotated, predicted)
    assert (one.name, one.num_missing, one.mse_s2) == ("a.wav", 1, 0)
    assert (other.name, other.num_missing, other.mse_s2) == ("b.wav", 0, 0)
    assert "1 keypoints of 1 files" in format_missing([one, other]) and "a.wav" in format_missing([one, other])
    assert format_missing([other]) == ""


def test_times_are_read_from_the_challenges_columns(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("extra,Time Channel 1,Filename,Time Channel 0\n1,0.5,007,0\n1,1.5,007,1\n")
    found = read_times(path)
    assert found.to_numpy().tolist() == [["007", 0.0, 0.5], ["007", 1.0, 1.5]]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("Filename,Time Channel 0,Time Channel 1\na.wav,0,0\na.wav,nan,1\n", "line 3"),
        ("Filename,Time Channel 0,Time Channel 1\na.wav,0,inf\n", "line 2"),
        ("Filename,Time Channel 0,Time Channel 1\na.wav,soon,0\n", "line 2"),
        ("Filename,Time Channel 0,Time Channel 1\n,0,0\n", "line 2"),
        ("Filename,Time Channel 0\na.wav,0\n", "no column Time Channel 1"),
        ("", "cannot read"),
    ],
)
def test_times_that_are_none_are_refused_with_their_line(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=told):
        read_times(path)


def test_a_missing_file_of_times_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        read_times(tmp_path / "none.csv")


# Sets


def scored(name: str, mse_s2: float, num_keypoints: int = 3) -> FileScore:
    return FileScore(name, mse_s2, 10 * mse_s2, 5 * mse_s2, num_keypoints, 0)


def test_a_set_is_the_mean_over_files_whatever_their_keypoints() -> None:
    found = score_set([scored("a", 1, 1), scored("b", 2, 100), scored("c", 6, 1)])
    assert found.num_files == 3
    assert found.mse_s2.mean == 3 and found.mae_ms.mean == 30 and found.median_ms.mean == 15
    assert found.mse_s2.quartiles == (1.5, 2, 4)
    assert 1 <= found.mse_s2.low < 3 < found.mse_s2.high <= 6


def test_a_set_of_one_file_has_an_interval_of_no_width_and_one_of_none_has_none() -> None:
    one, none = score_set([scored("a", 2)]), score_set([])
    assert (one.mse_s2.low, one.mse_s2.high) == (2, 2)
    assert none.num_files == 0 and math.isnan(none.mse_s2.mean) and math.isnan(none.mae_ms.low)


def test_six_files_that_are_all_worse_have_a_p_of_two_in_sixty_four() -> None:
    one = {f"{i}.wav": 1.0 for i in range(6)}
    other = {f"{i}.wav": 1.0 + 2.0**i for i in range(6)}
    found = compare_files(one, other)
    assert found.num_files == 6 and found.mean == pytest.approx(63 / 6) and found.low > 0
    assert found.p == pytest.approx(2 / 64)
    turned = compare_files(other, one)
    assert turned.mean == -found.mean and turned.high < 0 and turned.p == found.p


def test_an_aligner_does_not_differ_from_itself() -> None:
    one = {"a": 1.0, "b": 2.0}
    found = compare_files(one, one)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_wilcoxons_sum_of_ranks_by_hand() -> None:
    # Ranks 1 (-), 2 (+), 3 (+): the rank sums are 1 and 5; 2 of 8 signs give a sum <= 1, so p = 2 * 2 / 8.
    one = {"a": 0.0, "b": 0.0, "c": 0.0, "same": 4.0}
    assert compare_files(one, {"a": -1.0, "b": 2.0, "c": 3.0, "same": 4.0}).p == pytest.approx(0.5)


def test_aligners_on_different_files_are_not_compared() -> None:
    with pytest.raises(DataError, match=r"2 are of one only, b\.wav"):
        compare_files({"a.wav": 1.0, "b.wav": 1.0}, {"a.wav": 1.0, "c.wav": 1.0})


# The candidate grid


def slow_candidates(time0: list[float], duration: float, most: float) -> list[list[float]]:
    found = []
    for o in range(10):
        for s in range(10):
            offset, slope = -most + o * 2 * most / 9, 1 - most / duration + s * 2 * most / duration / 9
            line = [min(max(slope * t + offset, 0), duration) for t in time0]
            if max(abs(b - a) for a, b in zip(time0, line, strict=True)) <= most + 1e-9 and slope > 0:
                found.append(line)
    return found


@pytest.mark.parametrize(("duration", "most"), [(115.0, 5.0), (60.5, 0.5), (7.3, 5.0)])
def test_candidates_are_those_of_the_definition(duration: float, most: float) -> None:
    time0 = np.arange(0, duration)
    found = candidates(time0, duration, most)
    np.testing.assert_allclose(found, slow_candidates(time0.tolist(), duration, most), atol=1e-9)


def test_seventy_of_a_hundred_candidates_remain_and_none_is_the_identity() -> None:
    time0 = np.arange(115.0)
    lag = candidates(time0, 115.0, 5.0) - time0
    assert lag.shape == (70, 115)
    assert np.abs(lag).max(axis=1).min() > 0.5  # neither no offset nor a slope of 1 is in the grid
    assert not np.isclose(lag[:, 40], lag[:, 60], atol=1e-3).any()


@pytest.mark.parametrize("duration", [0.1, 0.9, 3.0, 5.0, 6.0, 40.0])
def test_a_short_recording_has_candidates_and_none_falls(duration: float) -> None:
    found = candidates(np.arange(0, duration), duration, 5.0)
    assert len(found) and (np.diff(found, axis=1) >= 0).all() and (np.abs(found - np.arange(0, duration)) <= 5).all()


def test_the_oracle_of_the_grid_has_the_floor_that_was_derived_for_constant_offsets() -> None:
    time0, floor = np.arange(115.0), []
    for offset in np.linspace(-5, 5, 401):
        true = (time0 + offset).clip(0, 115)
        floor.append(np.square(oracle(time0, true, 115.0, 5.0) - true).mean())
    assert np.mean(floor) == pytest.approx(0.049, abs=0.001)
    assert np.max(floor) == pytest.approx(0.10, abs=0.005)


def test_the_oracle_is_the_candidate_that_was_the_truth() -> None:
    time0 = np.arange(30.0)
    true = candidates(time0, 30.0, 5.0)[17]
    np.testing.assert_array_equal(oracle(time0, true, 30.0, 5.0), true)


def test_times_that_clipping_made_equal_are_left_out_but_the_innermost() -> None:
    assert usable_mask(times(0, 0, 0, 1, 2, 2)).tolist() == [False, False, True, True, True, False]
    assert usable_mask(times(0, 1, 1, 2)).tolist() == [True] * 4
    assert usable_mask(times(3)).tolist() == [True]
    assert usable_mask(np.array([[0.0, 0, 1], [0, 1, 1]])).tolist() == [[False, True, True], [True, True, False]]


def test_windows_are_silent_beyond_a_recording_and_where_it_is_no_number() -> None:
    wave = np.array([1, 2, np.nan, 4], dtype=np.float32)
    assert windows(wave, np.array([-1, 1, 3, 9, -5]), 3).tolist() == [
        [0, 1, 2],
        [2, 0, 4],
        [4, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_a_choice_stands_out_by_its_way_from_the_mean_to_one() -> None:
    assert mean_prominence(times(0.25, 0.25, 1), 2) == 1
    assert mean_prominence(times(0, 0.2, 0.4), 2) == pytest.approx(0.25)
    assert mean_prominence(times(1, 1), 0) == 0


# What others published


def test_published_rows_are_whole_and_means_are_those_of_the_two_sets() -> None:
    path = Path(str(bench.reports.__path__[0])) / "published_alignment.toml"
    rows = tomllib.loads(path.read_text())["row"]
    names = ("system", "set", "split", "year", "metric")
    by_name = {tuple(row[name] for name in names): row["value"] for row in rows}
    assert len(by_name) == len(rows)
    assert all(row.keys() == {*names, "value", "source"} and row["source"] for row in rows)
    means = [key for key in by_name if key[1] == "mean"]
    assert len(means) == 14
    for system, _, *rest in means:
        parts = [by_name[system, name, *rest] for name in ("aru", "zebra_finch")]
        assert by_name[system, "mean", *rest] == pytest.approx(np.mean(parts), abs=0.0051)


def test_the_reports_third_table_is_labelled_as_validation() -> None:
    path = Path(str(bench.reports.__path__[0])) / "published_alignment.toml"
    rows = tomllib.loads(path.read_text())["row"]
    table3 = {(row["system"], row["set"]): row["value"] for row in rows if "Table 3" in row["source"]}
    assert {row["split"] for row in rows if "Table 3" in row["source"]} == {"val"}
    assert len(table3) == 12
    model_3 = "granular-fingerprinting, model 3 (median lag)"
    assert (table3[model_3, "aru"], table3[model_3, "zebra_finch"]) == (0.258, 5.739)
