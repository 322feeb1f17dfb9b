import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.score.threshold import cross_fit_thresholds, threshold


def test_threshold_by_hand() -> None:
    impostors = np.linspace(0.01, 1.0, 100, dtype=np.float32)
    limit = threshold(impostors, 0.03)  # three may pass: 0.98, 0.99, 1.0; 0.97 may not
    assert 0.97 < limit <= 0.98
    assert (impostors >= limit).sum() == 3
    assert (impostors >= threshold(impostors, 0.0)).sum() == 0


def test_too_few_impostors_accept_none_of_them() -> None:
    impostors = np.float32([0.2, 0.9, 0.5])
    assert 0.9 < threshold(impostors, 0.01) < 0.9001


def test_threshold_of_nothing_known_accepts_nothing_and_of_all_allowed_everything() -> None:
    assert threshold(np.zeros(0, dtype=np.float32)) == math.inf
    assert threshold(np.float32([0.5, 0.6]), 1.0) == -math.inf


def test_an_impostor_that_found_no_place_is_never_accepted() -> None:
    impostors = np.float32([np.nan, np.nan, np.nan, 0.5])
    assert threshold(impostors, 0.25) < -1e30  # the one of four that may pass is the one with a score
    assert threshold(impostors, 0.2) > 0.5


@settings(max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0, 1))
def test_no_more_impostors_pass_than_wanted_and_a_lower_threshold_would_let_more_pass(
    scores: list[int], rate: float
) -> None:
    impostors = np.float32(scores)
    limit = threshold(impostors, rate)
    passed = (impostors >= limit).sum()
    assert passed <= rate * len(scores)
    if passed < len(scores):
        lower = impostors[impostors < limit].max()
        assert (impostors >= lower).sum() > int(rate * len(scores))


def hits(impostors: list[float], length_s: float = 1.0, sequence: str = "rescore") -> pd.DataFrame:
    return pd.DataFrame(
        {"query": range(len(impostors)), "impostor_score": np.float32(impostors)}
        | {"length_s": length_s, "index": "exact", "sequence": sequence}
    )


def test_each_half_is_judged_by_the_threshold_of_the_other() -> None:
    limits = cross_fit_thresholds(hits([0.1, 0.8, 0.2, 0.9]), 0.0)
    assert limits[[0, 2]].to_numpy() == pytest.approx(0.9, abs=1e-6) and (limits[[0, 2]] > 0.9).all()
    assert limits[[1, 3]].to_numpy() == pytest.approx(0.2, abs=1e-6) and (limits[[1, 3]] > 0.2).all()


def test_conditions_are_pooled_and_lengths_and_searches_are_not() -> None:
    parts = {
        "clean": hits([0.1, 0.1]),
        "noise": hits([0.3, 0.5]),
        "longer": hits([0.7, 0.9], length_s=5.0),
        "everywhere": hits([0.6, 0.2], sequence="diagonal"),
    }
    limits = cross_fit_thresholds(pd.concat(parts), 0.0)
    wanted = {"clean": (0.5, 0.3), "noise": (0.5, 0.3), "longer": (0.9, 0.7), "everywhere": (0.2, 0.6)}
    for name, values in wanted.items():
        assert tuple(limits[name]) == pytest.approx(values, abs=1e-6)
