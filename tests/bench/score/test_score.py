import json
import math

import jsonschema
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import score_ranking

from bench.degrade.cells import benchmark_name, list_cells
from bench.score.metrics import DECISIONS, METRICS, find_track_rank, list_metrics, list_track_metrics, recall_at
from bench.score.rows import Row, load_schema, score, to_frame, to_records
from bench.score.statistics import bootstrap_mean, wilson
from bench.search.sequence import Ranking
from bench.settings import EvalConfig
from bench.values import RATE_HZ, Cell, Fingerprints

HOP = 1600  # 100 ms
TOLERANCE = 800  # 50 ms
LENGTHS = (30, 20, 25)  # vectors of the three tracks of the database
TRACKS = (4, 2, 7)  # their numbers in the corpus


def database(order: tuple[int, ...] = (0, 1, 2)) -> Fingerprints:
    first = np.concatenate([[0], np.cumsum([LENGTHS[i] for i in order])]).astype(np.int64)
    vectors = np.zeros((sum(LENGTHS), 2), np.float32)
    return Fingerprints(vectors, np.array([TRACKS[i] for i in order]), first, HOP, "key")


def judged(places: list[list[int]], tracks: list[int], starts: list[int]) -> pd.DataFrame:
    placed = np.array(places, dtype=np.int64)
    scores = np.where(placed >= 0, 0.5, np.nan).astype(np.float32)
    return score_ranking(Ranking(placed, scores), database(), np.array(tracks), np.array(starts), TOLERANCE)


# What counts as found


@pytest.mark.parametrize(
    ("off", "hit", "near"),
    [
        (0, True, True),
        (799, True, True),
        (800, True, True),
        (-800, True, True),
        (801, False, True),
        (-801, False, True),
        (2400, False, True),
        (-2400, False, True),
        (2401, False, False),
        (-2401, False, False),
    ],
)
def test_exactly_50_ms_is_a_hit_and_one_sample_more_is_not(off: int, hit: bool, near: bool) -> None:
    row = judged([[35]], [2], [5 * HOP + off]).iloc[0]  # vector 35 is the fifth of the second track, number 2
    assert (row["hit"], row["near"], row["track_hit"], row["rank"]) == (hit, near, True, int(hit))
    assert row["found_track"] == 2 and row["found_s"] == 0.5
    assert row["track"] == 2 and row["start_s"] == (5 * HOP + off) / RATE_HZ


def test_right_time_in_the_wrong_track_is_nothing() -> None:
    row = judged([[35]], [4], [5 * HOP]).iloc[0]
    assert not row["hit"] and not row["near"] and not row["track_hit"] and row["rank"] == 0


def test_nothing_found_is_no_hit_even_at_the_start_of_the_first_track() -> None:
    row = judged([[-1, -1]], [4], [0]).iloc[0]
    assert not row["hit"] and not row["near"] and not row["track_hit"] and row["rank"] == 0
    assert row["found_track"] == -1 and math.isnan(row["found_s"]) and math.isnan(row["score"])


def test_rank_is_the_first_place_that_would_be_a_hit() -> None:
    rows = judged([[0, 34, 35, -1], [35, 0, -1, -1], [0, 1, 2, 3]], [2, 2, 2], [5 * HOP] * 3)
    assert rows["rank"].tolist() == [3, 1, 0]
    assert rows["hit"].tolist() == [False, True, False]
    assert rows["track_hit"].tolist() == [False, True, False]  # of the first place alone


def test_all_right_and_all_wrong() -> None:
    right = judged([[0], [30], [50]], [4, 2, 7], [0, 0, 0])
    wrong = judged([[30], [50], [0]], [4, 2, 7], [0, 0, 0])
    assert right["hit"].all() and (right["rank"] == 1).all()
    assert not wrong[["hit", "near", "track_hit"]].any().any() and (wrong["rank"] == 0).all()


def test_no_query_is_no_row() -> None:
    nothing = score_ranking(
        Ranking(np.zeros((0, 3), np.int64), np.zeros((0, 3), np.float32)),
        database(),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        TOLERANCE,
    )
    assert len(nothing) == 0 and "hit" in nothing


@given(
    st.permutations(range(3)),
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 30 * HOP),
            st.lists(st.integers(-1, sum(LENGTHS) - 1), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_order_of_the_database_does_not_change_what_is_a_hit(
    order: list[int], queries: list[tuple[int, int, list[int]]]
) -> None:
    one, other = database(), database(tuple(order))
    places = np.array([row for _, _, row in queries])
    moved = places.copy()
    for row in range(3):
        at = int(np.flatnonzero(other.tracks == one.tracks[row])[0])
        inside = (places >= one.first_vector[row]) & (places < one.first_vector[row + 1])
        moved[inside] += other.first_vector[at] - one.first_vector[row]
    tracks, starts = (np.array(part) for part in ([TRACKS[t] for t, _, _ in queries], [s for _, s, _ in queries]))
    scores = np.zeros(places.shape, np.float32)
    pd.testing.assert_frame_equal(
        score_ranking(Ranking(places, scores), one, tracks, starts, TOLERANCE),
        score_ranking(Ranking(moved, scores), other, tracks, starts, TOLERANCE),
    )


# Intervals


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_none_and_of_all_ends_at_the_bounds() -> None:
    assert wilson(0, 20)[0] == 0.0 and wilson(20, 20)[1] == 1.0
    assert wilson(20, 20)[0] == pytest.approx(1 - 0.1611, abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert wilson(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_bootstrap_is_about_the_normal_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).uniform(0, 1, 400)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)
    assert bootstrap_mean(values) == (low, high)


def test_bootstrap_of_equal_values_and_of_none() -> None:
    assert bootstrap_mean(np.full(5, 0.25)) == (0.25, 0.25)
    assert all(map(math.isnan, bootstrap_mean(np.zeros(0))))


# Rows


def hits_of(ranks: list[int], length_s: float = 0.96, sequence: str = "vote") -> pd.DataFrame:
    rank = np.array(ranks)
    return pd.DataFrame(
        {
            "rank": rank,
            "track_rank": np.minimum(rank, 1),
            "hit": rank == 1,
            "near": rank == 1,
            "track_hit": rank >= 1,
            "track": np.arange(len(rank)),
        }
        | {"length_s": length_s, "index": "exact", "sequence": sequence}
    )


def values_of(ranks: list[int]) -> dict[str, float]:
    rows = score(hits_of(ranks), Cell("clean"), run="r", benchmark="b", queries="q", system="s")
    return {row.metric: row.value for row in rows}


def test_metrics_by_hand() -> None:
    found = values_of([1, 1, 2, 4, 11, 0])
    assert found == pytest.approx(
        {
            "segment_top1": 2 / 6,
            "near_top1": 2 / 6,
            "audio_top1": 5 / 6,
            "recall@3": 3 / 6,
            "recall@10": 4 / 6,
            "mrr": (1 + 1 + 1 / 2 + 1 / 4 + 1 / 11) / 6,
            "track_recall@3": 5 / 6,
            "track_recall@10": 5 / 6,
            "track_mrr": 5 / 6,
        }
    )


def test_rank_of_a_track_counts_each_track_once() -> None:
    row_QR = np.array([[5, 5, 5, 2, 7], [7, 2, 7, -1, -1], [2, 2, 2, 2, 2], [-1, -1, -1, -1, -1], [3, -1, -1, -1, -1]])
    assert find_track_rank(row_QR, np.array([7, 7, 7, 7, -1])).tolist() == [3, 1, 0, 0, 0]
    assert find_track_rank(row_QR[:, :0], np.array([7, 7, 7, 7, 7])).tolist() == [0] * 5
    assert find_track_rank(row_QR[:0], np.array([], dtype=np.int64)).tolist() == []


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(0, 3))
def test_rank_of_a_track_agrees_with_a_list_without_repetitions(rows: list[list[int]], own: int) -> None:
    tracks = [list(dict.fromkeys(row)) for row in rows]
    expected = [row.index(own) + 1 if own in row else 0 for row in tracks]
    assert find_track_rank(np.array(rows), np.full(len(rows), own)).tolist() == expected


def test_track_metrics_by_hand() -> None:
    hits = pd.DataFrame({"track_rank": [1, 1, 2, 4, 0], "track": range(5)})
    found = {name: measure(hits)[0] for name, measure in list_track_metrics((1, 5)).items()}
    assert found == pytest.approx(
        {"track_recall@1": 2 / 5, "track_recall@5": 4 / 5, "track_mrr": (2 + 1 / 2 + 1 / 4) / 5}
    )


def test_recall_at_any_k() -> None:
    hits = hits_of([1, 1, 2, 4, 11, 0])
    assert [recall_at(k)(hits)[0] for k in (1, 2, 4, 20)] == pytest.approx([2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert [*list_metrics((1, 7))] == ["segment_top1", "near_top1", "audio_top1", "recall@1", "recall@7", "mrr"]
    assert recall_at(1)(hits) == METRICS["segment_top1"](hits)


@pytest.mark.parametrize("metric", list_track_metrics((1,)))
def test_track_metric_of_no_query_is_zero_and_says_that_nothing_is_known(metric: str) -> None:
    value, low, high = list_track_metrics((1,))[metric](pd.DataFrame({"track_rank": [], "track": []}))
    assert value == 0.0
    assert (low, high) == (0.0, 1.0) or (math.isnan(low) and math.isnan(high))


def test_decisions_by_hand() -> None:
    hits = hits_of([1, 1, 5, 0], sequence="rescore").assign(
        score=[0.9, 0.5, 0.8, 0.8], impostor_score=[0.6, 0.7, 0.1, 0.2], threshold=[0.7, 0.7, 0.7, 0.7]
    )
    rows = score(hits, Cell("clean"), run="r", benchmark="b", queries="q", system="s")
    values = {row.metric: row.value for row in rows}
    assert values["false_accept"] == 0.25  # 0.7 reaches the threshold
    assert values["false_reject"] == 0.5  # the second is too low, the fourth is another track
    assert set(values) == {*METRICS, *DECISIONS}


def test_metrics_of_all_right_and_all_wrong() -> None:
    assert set(values_of([1, 1, 1]).values()) == {1.0}
    assert set(values_of([0, 0, 0]).values()) == {0.0}


@pytest.mark.parametrize("metric", METRICS)
def test_metric_of_no_query_is_zero_and_says_that_nothing_is_known(metric: str) -> None:
    value, low, high = METRICS[metric](hits_of([]))
    assert value == 0.0
    assert (low, high) == (0.0, 1.0) or (math.isnan(low) and math.isnan(high))


def test_no_hits_give_no_rows() -> None:
    assert score(hits_of([]), Cell("clean"), run="r", benchmark="b", queries="q", system="s") == []


def every_row() -> list[Row]:
    config = EvalConfig()
    rows: list[Row] = []
    for cell in list_cells(config):
        hits = pd.concat([hits_of([1, 0, 2], length, s) for length in (0.96, 5.0) for s in ("vote", "rescore")])
        names = {"run": "0123456789abcdef", "benchmark": benchmark_name("fma", config), "queries": "fedcba9876543210"}
        rows += score(hits, cell, system="now-playing", **names)
    return rows


def test_one_row_for_each_length_search_and_metric() -> None:
    rows = score(
        pd.concat([hits_of([1, 0], length, s) for length in (0.96, 2.0) for s in ("vote", "rescore")]),
        Cell("noise_reverb", 5.0, 0.5),
        run="r",
        benchmark="b",
        queries="q",
        system="s",
    )
    assert len(rows) == 2 * 2 * len(METRICS)
    assert len({(r.length_s, r.index, r.sequence, r.metric) for r in rows}) == len(rows)
    first = rows[0]
    assert (first.cell, first.kind, first.snr_db, first.t60_s) == (
        "noise_reverb/snr_5/t60_0.5",
        "noise_reverb",
        5.0,
        0.5,
    )
    assert all(r.n == 2 and r.low <= r.value <= r.high for r in rows)
    assert next(r for r in rows if r.metric == "segment_top1").low == pytest.approx(wilson(1, 2)[0])


def test_rows_meet_the_published_schema_after_a_trip_through_a_file() -> None:
    table = to_frame(every_row())
    written = json.loads(json.dumps(to_records(table), allow_nan=False))
    jsonschema.Draft202012Validator.check_schema(load_schema())
    jsonschema.validate(written, load_schema(), cls=jsonschema.Draft202012Validator)
    assert {row["kind"] for row in written} == {"identity", "clean", "noise", "reverb", "noise_reverb"}
    clean = next(row for row in written if row["kind"] == "clean")
    assert clean["snr_db"] is None and clean["t60_s"] is None


@pytest.mark.parametrize(
    "wrong",
    [{"value": 1.2}, {"n": 0}, {"metric": "top1"}, {"benchmark": "mine"}, {"snr_db": "5"}, {"more": 1}, {"low": -0.1}],
)
def test_schema_refuses_a_row_that_is_wrong(wrong: dict[str, object]) -> None:
    rows = score(hits_of([1, 0]), Cell("clean"), run="r", benchmark="fma-segment/v1", queries="q", system="s")
    row = to_records(to_frame(rows))[0]
    jsonschema.validate([row], load_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([row | wrong], load_schema())


@settings(max_examples=20)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=40))
def test_order_of_queries_does_not_change_a_value(ranks: list[int]) -> None:
    assert values_of(ranks) == pytest.approx(values_of(ranks[::-1]))
    found = values_of(ranks)
    assert found["segment_top1"] <= found["mrr"] <= found["recall@10"] + 1 / 11
    assert found["segment_top1"] <= found["recall@3"] <= found["recall@10"] <= found["audio_top1"]


def test_a_place_is_no_repetition_of_itself_but_an_equal_one_elsewhere_is() -> None:
    base = database()
    vectors = np.random.default_rng(0).normal(size=base.vectors.shape).astype(np.float32)
    vectors[40:42] = vectors[35:37]  # the second track repeats its fifth and sixth place at its tenth
    looped = Fingerprints(vectors, base.tracks, base.first_vector, HOP, "key")

    def hit(place: int, start: int) -> bool:
        ranking = Ranking(np.array([[place]]), np.array([[0.5]], np.float32))
        return bool(score_ranking(ranking, looped, np.array([2]), np.array([start]), 100, 2)["hit"].iloc[0])

    assert hit(35, 5 * HOP) and hit(40, 5 * HOP)
    assert not hit(35, 5 * HOP + 101)  # the nearest place, at a time that is too far off
    assert not hit(41, 5 * HOP)
