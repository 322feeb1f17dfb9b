"""Which category of noise each query of a stored query set has, for results by noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.audio.pcm import find_corpus
from bench.errors import ConfigError
from bench.store import Store, read_frame

UNLABELLED = "without category"


def read_noise_categories(store: Store, queries: str, noise: str) -> npt.NDArray[np.object_]:
    """Return the category of the noise of each query (Q,): the label of its track in the noise corpus.

    `queries` is the key of the query set, and `noise` the digest of the corpus that its noise is from.
    Raises: ConfigError if the store no longer has them, or the queries have no noise; StoreError if they are damaged.
    """
    table = _read_queries(store.folder("queries", queries) / "queries.parquet", queries, store)
    if "noise" not in table:
        raise ConfigError(f"the query set {queries} has no noise; set eval.snr_db to one or more levels and run again")
    corpus = find_corpus(store, noise)
    if corpus is None:
        raise ConfigError(
            f"the noise corpus {noise} of the run is no longer in the store {store.root}, so that nothing tells the "
            "categories; repeat the run's command, and it is prepared again"
        )
    labels = corpus.tracks["label"].replace("", UNLABELLED).to_numpy(dtype=object)
    categories: npt.NDArray[np.object_] = labels[table["noise"].to_numpy()]
    return categories


def _read_queries(path: Path, queries: str, store: Store) -> pd.DataFrame:
    if not path.is_file():
        raise ConfigError(
            f"the query set {queries} of the run is no longer in the store {store.root}, so that nothing tells which "
            "noise a query has; repeat the run's command, and it is prepared again"
        )
    return read_frame(path)
