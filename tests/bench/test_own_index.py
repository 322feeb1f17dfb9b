"""An index in a file of the user's own, by its path: in a run's settings, its evaluation, and a catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bench import registry
from bench.catalogue.build import build_catalogue
from bench.catalogue.folder import Catalogue, read_catalogue
from bench.config import flatten, resolve, restore_config
from bench.errors import ConfigError, DataError, PluginError
from bench.fingerprint import build_random_projection
from bench.run import RunContext, check_run
from bench.settings import RunConfig
from bench.speed.search import parse_index_specs
from bench.store import Store
from bench.train import checkpoint
from bench.values import RATE_HZ, no_progress

ENCODER = "random-projection"
INDEX = """
from dataclasses import dataclass

import numpy as np

CITE, LICENSE, SOURCE = "", "", ""


@dataclass(frozen=True)
class Config:
    scale: float = 1.0


def build(config, vectors_ND):
    return Index(config.scale * vectors_ND)


class Index:
    exact = True

    def __init__(self, vectors_ND):
        self.vectors_ND, self.num_bytes = vectors_ND, vectors_ND.nbytes

    def neighbours(self, queries_QD, top_k):
        order_QN = np.argsort(-(queries_QD @ self.vectors_ND.T), axis=1, kind="stable")[:, :top_k]
        missing = max(0, top_k - order_QN.shape[1])
        return np.pad(order_QN, ((0, 0), (0, missing)), constant_values=-1).astype(np.int64)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "my_index.py"
    file.write_text(INDEX)
    return file


def settings(*overrides: str) -> RunConfig:
    return resolve(ENCODER, registry.load("encoder", ENCODER), "tiny", overrides=overrides)


def context(store: Path) -> RunContext:
    return RunContext(registry.load("encoder", ENCODER), None, Store(store), no_progress, pytest.fail)


def test_a_run_accepts_presets_of_an_index_by_name(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is installed by `make setup`")
    names = ["faiss:binary-flat", "faiss:hnsw32"]
    config = settings('eval.indexes=["exact", "faiss:binary-flat", "faiss:hnsw32"]', "index.faiss:hnsw32.ef_search=99")
    check_run(config, context(tmp_path))
    assert [config.index[name].kind for name in names] == ["binary-flat", "hnsw"]
    assert (config.index["faiss:hnsw32"].hnsw_m, config.index["faiss:hnsw32"].ef_search) == (32, 99)


def test_a_preset_that_an_index_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match=r"preset of the index 'faiss'.*'binary-flt'.*binary-flat"):
        settings('eval.indexes=["faiss:binary-flt"]')


def test_a_run_accepts_an_index_by_path(path: Path, tmp_path: Path) -> None:
    config = settings(f'eval.indexes=["exact", "{path}"]', "index.my-index.scale=2.0")
    check_run(config, context(tmp_path))
    assert list(config.index) == ["exact", "my-index"] and config.index["my-index"].scale == 2.0
    plugin = registry.load("encoder", ENCODER)
    assert restore_config(ENCODER, plugin, flatten(config)) == config


def test_two_indexes_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "exact.py").write_text(INDEX)
    with pytest.raises(ConfigError, match=r"eval\.indexes must not give two plug-ins the same name; rename a file"):
        settings(f'eval.indexes=["exact", "{tmp_path / "exact.py"}"]')


def test_an_index_that_cannot_be_built_is_named_before_work_starts(path: Path, tmp_path: Path) -> None:
    path.write_text(INDEX.replace("return Index(config.scale * vectors_ND)", "return Index(config.size)"))
    with pytest.raises(
        PluginError, match=r"index 'my-index' .*my_index\.py.* cannot be built by .*no attribute 'size'"
    ):
        check_run(settings(f'eval.indexes=["{path}"]'), context(tmp_path))


@pytest.mark.parametrize("name", ["exact", "falconn", "faiss"])
def test_the_indexes_of_the_suite_pass(name: str, tmp_path: Path) -> None:
    if name != "exact":
        pytest.importorskip(name)
    check_run(settings(f'eval.indexes=["{name}"]'), context(tmp_path))


def test_an_index_that_answers_in_another_shape_is_named_before_work_starts(path: Path, tmp_path: Path) -> None:
    path.write_text(INDEX.replace(".astype(np.int64)", "[:, :1].astype(np.int64)"))
    with pytest.raises(PluginError, match=r"returns an int64 array of shape .*, here \(2, 2\), got int64 \(2, 1\)"):
        check_run(settings(f'eval.indexes=["{path}"]'), context(tmp_path))


def test_an_index_by_path_can_be_measured(path: Path) -> None:
    specs = parse_index_specs([str(path)], ["index.my-index.scale=3.0"])
    assert [spec.config.scale for spec in specs if spec.index == str(path)] == [3.0]


def build(tmp_path: Path, index: str) -> Catalogue:
    """Return a catalogue of three short tracks with this index, in tmp_path / "catalogue"."""
    music = tmp_path / "music"
    music.mkdir()
    for number in range(3):
        soundfile.write(music / f"{number}.wav", np.random.default_rng(number).normal(0, 0.1, 4 * RATE_HZ), RATE_HZ)
    embedder = build_random_projection(torch.device("cpu"))
    checkpoint.save(tmp_path / "weights.safetensors", dict(embedder.encoder.state_dict()), {})  # type: ignore[attr-defined]
    config = resolve(
        ENCODER, registry.load("encoder", ENCODER), "tiny", dataset="folder", overrides=[f'eval.indexes=["{index}"]']
    )
    weights, store = tmp_path / "weights.safetensors", Store(tmp_path / "store")
    return build_catalogue(tmp_path / "catalogue", config, embedder, weights, music, store)


def test_a_catalogue_with_a_preset_of_an_index_is_read_with_its_settings(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is installed by `make setup`")
    made = build(tmp_path, "faiss:hnsw32")
    assert (made.about["index"]["name"], made.about["index"]["config"]["hnsw_m"]) == ("faiss", 32)
    again = read_catalogue(tmp_path / "catalogue", trust=True)
    assert again.index.neighbours(np.array(again.database.vectors[7:8]), 1).tolist() == [[7]]


def test_a_catalogue_with_an_index_by_path_is_built_and_read_with_its_file(path: Path, tmp_path: Path) -> None:
    made = build(tmp_path, str(path))
    folder = tmp_path / "catalogue"
    assert made.about["index"]["name"] == "my-index"
    with pytest.raises(DataError, match="'my-index', which is not installed; give its file as --index-file"):
        read_catalogue(folder)
    again = read_catalogue(folder, index=str(path))
    assert again.index.neighbours(np.array(again.database.vectors[7:8]), 1).tolist() == [[7]]
    other = tmp_path / "other.py"
    other.write_text(INDEX)
    with pytest.raises(DataError, match=r"was made with the index 'my-index', not with .*other\.py"):
        read_catalogue(folder, index=str(other))
