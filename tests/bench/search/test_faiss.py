import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import ConfigError, PluginError, StoreError
from bench.search.indexes import faiss
from bench.search.indexes.faiss import Config, build, load, presets, save
from bench.testing import check_index

library = pytest.importorskip("faiss", reason="faiss-cpu is installed by `make setup`")

D = 16
KINDS = {
    "flat": Config(kind="flat"),
    "ivf-flat": Config(kind="ivf-flat", nlist=32, nprobe=8),
    "ivf-pq": Config(kind="ivf-pq", nlist=32, nprobe=8, sub_quantisers=8, bits=6),
    "ivf-pq by inner product": Config(kind="ivf-pq", metric="inner_product", nlist=32, nprobe=8, sub_quantisers=8),
    "ivf-pq-refine": Config(kind="ivf-pq-refine", nlist=32, nprobe=8, sub_quantisers=8, bits=6),
    "hnsw": Config(kind="hnsw"),
    "binary-flat": Config(kind="binary-flat"),
    "binary-ivf": Config(kind="binary-ivf", nlist=32, nprobe=8),
    "binary-hash": Config(kind="binary-hash", hash_bits=8, hash_flips=2),
}
BINARY = [name for name in KINDS if "binary" in name]
CODED = [name for name in KINDS if "pq" in name]
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


def clustered(num_vectors: int, dim: int = D, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors around centres, and queries near every 17th of them."""
    draw = np.random.default_rng(seed)
    centres = unit(draw.standard_normal((max(1, num_vectors // 10), dim)))
    near = centres[draw.integers(len(centres), size=num_vectors)] + 0.1 * draw.standard_normal((num_vectors, dim))
    vectors = unit(near)
    return vectors, unit(vectors[::17] + 0.02 * draw.standard_normal((len(vectors[::17]), dim)))


def slow_neighbours(vectors_ND: np.ndarray, queries_QD: np.ndarray, top_k: int) -> np.ndarray:
    """Sort all inner products, equal ones by number."""
    found = np.full((len(queries_QD), top_k), -1, dtype=np.int64)
    for q, query in enumerate(queries_QD):
        similarity = [float(np.float64(vector) @ np.float64(query)) for vector in vectors_ND]
        best = sorted(range(len(vectors_ND)), key=lambda n: (-similarity[n], n))[:top_k]
        found[q, : len(best)] = best
    return found


def file_of(config: Config, vectors_ND: np.ndarray, folder: Path) -> bytes:
    save(build(config, vectors_ND), folder)
    return (folder / faiss.FILE).read_bytes()


# What is found


@every_kind
def test_every_kind_keeps_the_contract(config: Config) -> None:
    check_index(faiss, replace(config, bits=8), 2.0 if "binary" in config.kind else 0.1)


@every_kind
def test_most_true_neighbours_of_clustered_vectors_are_found(config: Config) -> None:
    vectors, queries = clustered(1500, dim=64 if "binary" in config.kind else D)
    true = slow_neighbours(vectors, queries, 5)
    if "binary" in config.kind:  # a bit per dimension tells clusters apart, and little of their members
        found = build(config, vectors).neighbours(queries, 5)
        assert (np.take(vectors, found[:, 0], 0) * queries).sum(1).min() > 0.3
        assert np.mean(found[:, 0] == true[:, 0]) > 0.3
        return
    found = build(config, vectors).neighbours(queries, 5)
    share = np.mean([len(set(f) & set(t)) / 5 for f, t in zip(found.tolist(), true.tolist(), strict=True)])
    assert share > (0.75 if "pq" in config.kind else 0.97)
    assert np.mean(found[:, 0] == true[:, 0]) > (0.85 if "pq" in config.kind else 0.97)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 12))
def test_flat_finds_equal_vectors_by_number(axes: list[int], top_k: int) -> None:
    vectors = np.eye(4, dtype=np.float32)[axes].reshape(-1, 4)  # inner products are exactly 0 or 1
    found = build(Config(kind="flat"), vectors).neighbours(np.eye(4, dtype=np.float32), top_k)
    np.testing.assert_array_equal(found, slow_neighbours(vectors, np.eye(4, dtype=np.float32), top_k))


def test_flat_finds_the_first_of_many_copies_behind_one_better() -> None:
    vectors = np.tile(unit(np.float32([3, 4, 0, 0])), (2500, 1))  # more than FAISS compares at once
    vectors[1700] = [0, 1, 0, 0]
    found = build(Config(kind="flat"), vectors).neighbours(np.tile(np.float32([0, 1, 0, 0]), (25, 1)), 4)
    np.testing.assert_array_equal(found, np.tile([1700, 0, 1, 2], (25, 1)))


@pytest.mark.parametrize("kind", CODED)
def test_coded_neighbours_are_all_decoded_vectors_in_order(kind: str) -> None:
    vectors, queries = clustered(600)
    config = replace(KINDS[kind], nprobe=32, refine_factor=600)  # all lists, and all that is in them
    index = build(config, vectors)
    index.index.make_direct_map()
    decoded = index.index.reconstruct_n(0, len(vectors)).astype(np.float64)
    assert 1e-3 < np.abs(decoded - vectors).mean() < 0.1
    cost = np.square(queries[:, None] - decoded).sum(2) if config.metric == "l2" else -queries @ decoded.T
    found = index.neighbours(queries, 20)
    wanted = np.argsort(cost, axis=1, kind="stable")[:, :20]
    # Rounding may swap two that are as good as equal.
    best, got = (np.take_along_axis(cost, part, 1) for part in (wanted, found))
    np.testing.assert_allclose(got, best, atol=1e-5)
    assert np.mean(found == wanted) > 0.99


@pytest.mark.parametrize("kind", CODED)
def test_vectors_of_equal_codes_come_by_number(kind: str) -> None:
    vectors = np.tile(clustered(40)[0], (3, 1))
    found = build(replace(KINDS[kind], nprobe=32), vectors).neighbours(vectors[:40], 3)
    np.testing.assert_array_equal(found, np.arange(40)[:, None] + [0, 40, 80])


def signs(num_vectors: int, dim: int = 32) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, 2, (num_vectors, dim)) * 2 - 1
    return (drawn / dim**0.5).astype(np.float32)  # type: ignore[no-any-return]


def test_binary_flat_finds_of_signs_what_all_inner_products_find() -> None:
    vectors = signs(700)
    bit = vectors > 0
    differ = (bit[:17, None] != bit).sum(2)
    np.testing.assert_allclose(vectors[:17] @ vectors.T, 1 - 2 * differ / 32, atol=1e-6)
    right = np.argsort(differ, axis=1, kind="stable")[:, :9]  # of whole numbers, many equal
    np.testing.assert_array_equal(build(KINDS["binary-flat"], vectors).neighbours(vectors[:17], 9), right)
    all_lists = replace(KINDS["binary-ivf"], nprobe=32)
    found = build(all_lists, vectors).neighbours(vectors[:17], 9)
    np.testing.assert_array_equal(np.take_along_axis(differ, found, 1), np.take_along_axis(differ, right, 1))


def test_binary_hash_finds_what_differs_in_few_of_its_first_bits_alone() -> None:
    vectors = signs(700)
    config = Config(kind="binary-hash", hash_bits=8, hash_flips=1)
    found = build(config, vectors).neighbours(vectors[:9], 20)
    for query, row in zip(vectors[:9], found, strict=True):
        near = np.flatnonzero(((vectors[:, :8] > 0) != (query[:8] > 0)).sum(1) <= 1)
        assert set(row[row >= 0]) <= set(near.tolist()) and len(row[row >= 0]) == min(20, len(near))


def test_signs_of_dimensions_that_fill_no_byte_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"binary-flat packs eight signs .* multiple of 8, got 12; .* with 16"):
        build(KINDS["binary-flat"], clustered(20, dim=12)[0])


@every_kind
@pytest.mark.parametrize("num_vectors", [0, 1, 2, 7])
def test_database_of_next_to_nothing_is_answered(config: Config, num_vectors: int, tmp_path: Path) -> None:
    vectors = clustered(40)[0][:num_vectors]
    queries = clustered(40)[0][:3]
    index = build(replace(config, nprobe=32, hash_flips=config.hash_bits), vectors)
    save(index, tmp_path)
    if "binary" in config.kind:
        found = index.neighbours(queries, 9)
        assert (np.sort(found, axis=1)[:, 9 - num_vectors :] == np.arange(num_vectors)).all()
        assert (found >= 0).sum() == 3 * num_vectors
        return
    for answering in (index, load(config, tmp_path, vectors)):
        np.testing.assert_array_equal(answering.neighbours(queries, 9), slow_neighbours(vectors, queries, 9))
        assert answering.neighbours(queries[:0], 9).shape == (0, 9)


def test_what_was_not_found_is_minus_one() -> None:
    vectors, queries = clustered(400)
    found = build(Config(kind="ivf-flat", nlist=64, nprobe=1), vectors).neighbours(queries, 100)
    for row in found:
        heard = row[row >= 0]
        assert 0 < len(heard) < 100
        assert (row[: len(heard)] >= 0).all() and len(set(heard)) == len(heard)


# How it is built


class Watched:
    """Vectors that note how many are read at once."""

    def __init__(self, vectors_ND: np.ndarray) -> None:
        self.vectors, self.shape, self.size, self.reads = vectors_ND, vectors_ND.shape, vectors_ND.size, list[int]()

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, part: Any) -> np.ndarray:
        self.reads.append(len(self.vectors[part]))
        return self.vectors[part]  # type: ignore[no-any-return]


@every_kind
def test_vectors_are_read_in_blocks(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, train_vectors=300)
    vectors, queries = clustered(1000)
    whole = build(config, vectors).neighbours(queries, 5)
    monkeypatch.setattr(faiss, "BLOCK_VECTORS", 300)
    watched: Any = Watched(vectors)
    blocks = build(config, watched).neighbours(queries, 5)
    assert max(watched.reads) == 300
    # A graph depends on the order in which its nodes come, and that on the blocks.
    assert np.mean(blocks == whole) > 0.95 if config.kind == "hnsw" else np.array_equal(blocks, whole)


@every_kind
def test_same_seed_gives_the_same_index(config: Config, tmp_path: Path) -> None:
    vectors, _ = clustered(600)
    one, two = (file_of(config, vectors, tmp_path) for _ in range(2))
    other = file_of(replace(config, seed=5), vectors, tmp_path)
    assert one == two
    assert (one == other) == (config.kind in ("flat", "binary-flat", "binary-hash"))


def test_graph_is_the_same_where_there_are_several_threads(tmp_path: Path) -> None:
    vectors, _ = clustered(1200)
    alone = file_of(KINDS["hnsw"], vectors, tmp_path)
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(2)
    try:
        assert file_of(KINDS["hnsw"], vectors, tmp_path) == alone
        assert library.omp_get_max_threads() == 2
    finally:
        library.omp_set_num_threads(before)


def test_lists_are_trained_on_a_sample_of_the_wanted_size() -> None:
    vectors, _ = clustered(500)
    sample = faiss._draw_training_vectors(Config(kind="ivf-flat", train_vectors=50), vectors)
    numbers = [int(np.flatnonzero((vectors == row).all(1))[0]) for row in sample]
    assert len(set(numbers)) == 50 and numbers == sorted(numbers)
    assert build(Config(kind="ivf-flat", train_vectors=50), vectors).index.nlist == 50  # of the 256 that are set


def test_size_is_that_of_codes_or_vectors() -> None:
    vectors, _ = clustered(2000)
    per_vector = {kind: build(config, vectors).num_bytes / 2000 for kind, config in KINDS.items()}
    assert per_vector["flat"] == pytest.approx(4 * D, abs=0.1)
    assert per_vector["ivf-flat"] == pytest.approx(4 * D + 8, abs=3)  # 8 for the number, 32 centres
    links = 4 * 2 * KINDS["hnsw"].hnsw_m + 12  # twice as many below, and where they begin
    assert per_vector["binary-flat"] == pytest.approx(D / 8, abs=0.1)
    assert per_vector["binary-ivf"] == pytest.approx(D / 8 + 8, abs=1)
    assert per_vector["hnsw"] == pytest.approx(4 * D + links, rel=0.1)
    tables = 4 * (32 * D + 64 * D + 32 * 8 * 64) / 2000  # centres, centroids of codes, products of both
    assert per_vector["ivf-pq"] == pytest.approx(6 + 8 + tables, abs=1)
    refine = 2 + 4 * 16 * D / 2000
    assert per_vector["ivf-pq-refine"] == pytest.approx(per_vector["ivf-pq"] + refine, abs=0.2)


# What is kept


@every_kind
def test_loaded_index_answers_as_the_saved_one(config: Config, tmp_path: Path) -> None:
    vectors, queries = clustered(700)
    index = build(config, vectors)
    save(index, tmp_path)
    again = load(config, tmp_path, vectors)
    np.testing.assert_array_equal(again.neighbours(queries, 8), index.neighbours(queries, 8))
    assert (again.exact, again.num_bytes) == (index.exact, index.num_bytes)


@pytest.mark.parametrize(
    ("config", "fewer"),
    [
        (KINDS["ivf-flat"], {"nprobe": 1}),
        (KINDS["ivf-pq-refine"], {"refine_factor": 1}),
        (KINDS["hnsw"], {"ef_search": 1}),
    ],
    ids=["nprobe", "refine_factor", "ef_search"],
)
def test_what_only_queries_feel_is_asked_of_the_index_that_was_saved_with_other_values(
    config: Config, fewer: dict[str, int], tmp_path: Path
) -> None:
    vectors, queries = clustered(700)
    save(build(config, vectors), tmp_path)
    other = replace(config, **fewer)
    found = load(other, tmp_path, vectors).neighbours(queries, 8)
    np.testing.assert_array_equal(found, build(other, vectors).neighbours(queries, 8))
    assert (found != build(config, vectors).neighbours(queries, 8)).any()


@every_kind
def test_file_that_is_cut_off_anywhere_is_refused(config: Config, tmp_path: Path) -> None:
    vectors, _ = clustered(300)
    whole = file_of(config, vectors, tmp_path)
    for length in (0, 3, 4, 30, 60, len(whole) // 2, len(whole) - 1):
        (tmp_path / faiss.FILE).write_bytes(whole[:length])
        with pytest.raises(StoreError, match=r"index\.faiss cannot be read .* delete the folder"):
            load(config, tmp_path, vectors)


@pytest.mark.parametrize("content", [b"RIFF" + bytes(400), b"not an index at all", bytes(4096)])
def test_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / faiss.FILE).write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read"):
        load(Config(kind="flat"), tmp_path, clustered(20)[0])


def test_missing_file_and_index_of_something_else_are_refused(tmp_path: Path) -> None:
    vectors, _ = clustered(300)
    with pytest.raises(StoreError, match="cannot be read"):
        load(KINDS["flat"], tmp_path, vectors)
    save(build(KINDS["flat"], vectors), tmp_path)
    for config, others, words in (
        (KINDS["hnsw"], vectors, "kind: IndexFlatIP, expected IndexHNSWFlat"),
        (KINDS["flat"], vectors[:299], "vectors: 300, expected 299"),
        (KINDS["flat"], vectors[:, :8], "dimensions: 16, expected 8"),
    ):
        with pytest.raises(StoreError, match=words):
            load(config, tmp_path, others)


# What is refused, and what is set


@pytest.mark.parametrize(
    "wrong",
    [
        {"nlist": 0, "nprobe": 0}, {"nprobe": 0}, {"nprobe": 257}, {"sub_quantisers": 0}, {"bits": 0}, {"bits": 17},
        {"refine_sub_quantisers": 0}, {"refine_bits": 17}, {"refine_factor": 0}, {"hnsw_m": 1}, {"ef_construction": 0},
        {"ef_search": 0}, {"train_vectors": 0}, {"hash_bits": 0}, {"hash_bits": 33}, {"hash_flips": -1},
        {"seed": -1}, {"seed": 2**31},
        {"metric": "inner_product", "kind": "ivf-pq-refine"},
    ],
    ids=str,
)  # fmt: skip
def test_setting_that_cannot_work_is_refused_by_its_name_and_value(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=rf"index\.faiss\.{name} must be .*, got {value}$"):
        Config(**wrong)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Config(sub_quantisers=64), "sub_quantisers must divide the 24 dimensions of the vectors, got 64; use 24"),
        (Config(sub_quantisers=9), "got 9; use 8"),
        (
            Config(kind="ivf-pq-refine", sub_quantisers=8, refine_sub_quantisers=5),
            "refine_sub_quantisers must divide the 24 dimensions of the vectors, got 5; use 4",
        ),
    ],
)
def test_codes_that_do_not_fit_the_dimensions_are_refused_with_some_that_do(config: Config, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(config, clustered(50, dim=24)[0])


def test_presets_are_the_published_settings() -> None:
    lists = {name: (c.nlist, c.nprobe) for name, c in presets().items() if c.kind.startswith("ivf")}
    assert lists == {
        "nafp": (256, 40), "nafp-ivf": (400, 40), "nafp-refine": (256, 40), "grafprint": (64, 20), "nmfp": (256, 40),
        "pfann": (200, 50),
    }  # fmt: skip
    coded = [c for c in presets().values() if "pq" in c.kind]
    assert {(c.sub_quantisers, c.bits) for c in coded} == {(64, 8)}
    assert [name for name, c in presets().items() if c.metric == "inner_product"] == ["pfann"]
    refined, graph = presets()["nafp-refine"], presets()["nafp-hnsw"]
    assert (refined.refine_sub_quantisers, refined.refine_bits) == (4, 4)
    assert (graph.kind, graph.hnsw_m, graph.ef_construction) == ("hnsw", 16, 80)
    assert presets()["nafp-flat"].kind == "flat"
    assert presets()["hnsw32"].hnsw_m == 32
    assert [presets()[kind].kind for kind in BINARY] == BINARY
    assert Config() == presets()["nafp"]


def test_all_but_a_copy_of_the_vectors_is_kept_and_read_back_with_trust_alone() -> None:
    assert {kind for kind, config in KINDS.items() if not faiss.keeps(config)} == {"flat"}
    assert faiss.TRUSTED_FILES_ONLY


def test_default_fits_128_dimensions() -> None:
    vectors, _ = clustered(300, dim=128)
    assert build(Config(), vectors).neighbours(vectors[:50], 1)[:, 0].tolist() == list(range(50))


def test_missing_library_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(PluginError, match=r"needs the package faiss-cpu: run `make setup`"):
        build(Config(kind="flat"), clustered(20)[0])


@pytest.mark.parametrize("order", ["faiss, torch", "torch, faiss"])
def test_faiss_and_torch_compute_right_in_one_process_in_either_order(order: str) -> None:
    code = f"""
import {order}
import numpy as np
vectors = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
index = faiss.IndexFlatIP(64)
for _ in range(2):
    index.reset()
    index.add(vectors)
    found = index.search(vectors[:50], 3)[1]
    similar = torch.from_numpy(vectors[:50]) @ torch.from_numpy(vectors).T
    assert (found == similar.topk(3).indices.numpy()).all()
"""
    # In a process of its own: each brings an OpenMP runtime, and two in one process are known to crash on macOS.
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
