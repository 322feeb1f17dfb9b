"""Scores a ranking of places as an evaluation does."""

from __future__ import annotations

from functools import partial

import pandas as pd

from bench.score.hits import score_hits
from bench.search.repetitions import find_repetitions
from bench.search.sequence import Ranking
from bench.values import Fingerprints, Ints


def score_ranking(
    ranking: Ranking,
    database: Fingerprints,
    track_Q: Ints,
    start_Q: Ints,
    tolerance_samples: int,
    num_segments: int | None = None,
) -> pd.DataFrame:
    """Return the hits; with `num_segments`, other places with the fingerprints of the true one are right too."""
    again = None
    if num_segments is not None:
        again = partial(find_repetitions, ranking, database, num_segments, tolerance_samples)
    near = tolerance_samples + database.hop_samples
    return score_hits(
        ranking.found(database, database.hop_samples),
        database.tracks,
        track_Q,
        start_Q,
        tolerance_samples,
        near,
        again,
    )
