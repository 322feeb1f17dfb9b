"""Categories of the noise of stored queries: found by the digest of the corpus, or one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.audio.pcm import Corpus, prepare_corpus
from bench.degrade.noise_categories import read_noise_categories
from bench.errors import ConfigError
from bench.store import Store, write_frame
from bench.testing.source import Arrays


def corpus(store: Store, labels: dict[str, str], seed: int) -> Corpus:
    draw = np.random.default_rng(seed)
    waves = {name: draw.uniform(-1, 1, 20_000).astype(np.float32) for name in labels}
    return prepare_corpus(store, "noise", Arrays(waves, {}, labels), min_track_s=1.0, workers=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    folder = tmp_path / "queries" / "q"
    folder.mkdir(parents=True)
    write_frame(folder / "queries.parquet", pd.DataFrame({"query": [0, 1, 2], "noise": [2, 0, 1]}))
    return Store(tmp_path)


def test_category_is_the_label_of_the_noise_in_the_corpus_of_the_run(store: Store) -> None:
    corpus(store, {"a": "wrong", "b": "wrong", "c": "wrong"}, seed=1)
    noise = corpus(store, {"a": "rain", "b": "", "c": "car"}, seed=0)
    assert read_noise_categories(store, "q", noise.digest).tolist() == ["car", "rain", "without category"]


def test_what_the_store_lost_is_named(store: Store) -> None:
    noise = corpus(store, {"a": "rain", "b": "car", "c": "car"}, seed=0)
    with pytest.raises(ConfigError, match="query set other of the run is no longer in the store"):
        read_noise_categories(store, "other", noise.digest)
    with pytest.raises(ConfigError, match="noise corpus abc of the run is no longer in the store"):
        read_noise_categories(store, "q", "abc")


def test_queries_without_noise_have_no_categories(store: Store) -> None:
    write_frame(store.folder("queries", "q") / "queries.parquet", pd.DataFrame({"query": [0]}))
    with pytest.raises(ConfigError, match="has no noise"):
        read_noise_categories(store, "q", "abc")
