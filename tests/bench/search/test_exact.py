"""Exact search, and nearly exact search with codes, against a sort of all inner products."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import ConfigError, StoreError
from bench.search.indexes import exact
from bench.testing import check_index

D = 6
STORAGES = ("fp32", "fp16", "int8")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unit(draw: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = draw.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def clustered(num_vectors: int, num_queries: int, dim: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of which each has close neighbours, as segments that overlap do, and queries near some."""
    draw = np.random.default_rng(3)
    centres = unit(draw, num_vectors // 10, dim)
    near = centres[draw.integers(len(centres), size=num_vectors)] + 0.05 * draw.standard_normal((num_vectors, dim))
    asked = near[draw.integers(num_vectors, size=num_queries)] + 0.06 * draw.standard_normal((num_queries, dim))
    one, two = ((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (near, asked))
    return one, two


def slow_neighbours(vectors_ND: np.ndarray, queries_QD: np.ndarray, top_k: int) -> np.ndarray:
    """Sort all inner products, equal ones by number."""
    found = np.full((len(queries_QD), top_k), -1, dtype=np.int64)
    for q, query in enumerate(queries_QD):
        similarity = [float(np.float64(vector) @ np.float64(query)) for vector in vectors_ND]
        best = sorted(range(len(vectors_ND)), key=lambda n: (-similarity[n], n))[:top_k]
        found[q, : len(best)] = best
    return found


def tiled(storage: str, vectors_ND: np.ndarray, queries: int, block: int, group: int, copied: int = 1 << 20) -> object:
    """Return an index with small tiles: so many queries, and so many vectors, at once."""
    index = exact.build(exact.Config(device="cpu", storage=storage), vectors_ND)  # type: ignore[arg-type]
    return replace(index, tiles=exact.Tiles(queries, queries * block, group, copied))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("group", [1, 2, 7, 16, 64])
@pytest.mark.parametrize("block", [1, 3, 16, 50, 51, 1000])
def test_it_is_all_inner_products_whatever_the_size_of_blocks_and_groups(storage: str, group: int, block: int) -> None:
    draw = np.random.default_rng(1)
    vectors, queries = unit(draw, 50, D), unit(draw, 11, D)
    wanted = slow_neighbours(vectors, queries, 7)  # the codes leave 22 of 50 as candidates
    for at_once in (1, 4, 100):
        found = tiled(storage, vectors, at_once, block, group).neighbours(queries, 7)  # type: ignore[attr-defined]
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, wanted)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(1, 12),
    st.sampled_from([1, 2, 5, 13, 1000]),
    st.sampled_from([1, 2, 3, 8]),
    st.sampled_from(STORAGES),
)
def test_equal_neighbours_come_by_number(axes: list[int], top_k: int, block: int, group: int, storage: str) -> None:
    vectors = np.eye(4, dtype=np.float32)[axes].reshape(-1, 4)  # inner products are exactly 0 or 1
    queries = np.eye(4, dtype=np.float32)
    found = tiled(storage, vectors, 3, block, group).neighbours(queries, top_k)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found, slow_neighbours(vectors, queries, top_k))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=300),
    st.integers(1, 5),
    st.sampled_from([8, 40, 1000]),
    st.sampled_from([8, 64]),
    st.sampled_from(STORAGES),
)
def test_copies_of_any_vector_come_by_number(
    copies: list[int], num_queries: int, block: int, group: int, storage: str
) -> None:
    # A matrix product rounds equal vectors in other ways where they stand at a ragged end.
    vectors = unit(np.random.default_rng(5), 5, 33)[copies]
    queries = unit(np.random.default_rng(6), num_queries, 33)
    found = tiled(storage, vectors, 100, block, group).neighbours(queries, 9)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found, slow_neighbours(vectors, queries, 9))


@pytest.mark.parametrize("storage", STORAGES)
def test_many_equal_vectors_in_one_block_come_by_number(storage: str) -> None:
    vectors = np.tile(np.float32([1, 0]), (500, 1))
    vectors[7] = [0, 1]
    found = exact.build(exact.Config(storage=storage), vectors).neighbours(vectors[:1], 8)  # type: ignore[arg-type]
    assert found.tolist() == [[0, 1, 2, 3, 4, 5, 6, 8]]


def test_an_answer_does_not_depend_on_the_other_queries() -> None:
    vectors, queries = clustered(3000, 40)
    index = exact.build(exact.Config(), vectors)
    alone = np.concatenate([index.neighbours(query[None], 10) for query in queries])
    np.testing.assert_array_equal(alone, index.neighbours(queries, 10))


@pytest.mark.parametrize("storage", STORAGES)
def test_more_neighbours_than_vectors_are_filled_with_minus_one(storage: str) -> None:
    vectors = -np.eye(3, dtype=np.float32)  # similarities below that of no vector at all
    index = exact.build(exact.Config(storage=storage), vectors)  # type: ignore[arg-type]
    assert index.neighbours(np.float32([[0.3, 0.9, 0.1]]), 5).tolist() == [[2, 0, 1, -1, -1]]


@pytest.mark.parametrize("storage", STORAGES)
def test_no_query_no_vector_and_one_vector_are_answered(storage: str) -> None:
    vectors = np.eye(3, dtype=np.float32)
    config = exact.Config(storage=storage)  # type: ignore[arg-type]
    assert exact.build(config, vectors).neighbours(vectors[:0], 4).shape == (0, 4)
    assert exact.build(config, vectors[:0]).neighbours(vectors[:1], 2).tolist() == [[-1, -1]]
    assert exact.build(config, vectors[:1]).neighbours(vectors, 2).tolist() == [[0, -1]] * 3


@pytest.mark.parametrize("storage", STORAGES)
def test_vectors_and_queries_of_zeros_are_answered(storage: str) -> None:
    nothing = np.zeros((3, 8), dtype=np.float32)
    index = exact.build(exact.Config(storage=storage), nothing)  # type: ignore[arg-type]
    assert index.neighbours(nothing[:2], 2).tolist() == [[0, 1]] * 2


@pytest.mark.parametrize(("storage", "times", "is_exact"), [("fp32", 1, True), ("fp16", 2, False), ("int8", 4, False)])
def test_codes_take_fewer_bytes_and_say_that_they_are_not_exact(storage: str, times: int, is_exact: bool) -> None:
    vectors, _ = clustered(1001, 1)
    index = exact.build(exact.Config(storage=storage), vectors)  # type: ignore[arg-type]
    assert index.num_bytes * times == vectors.nbytes
    assert index.exact is is_exact


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_codes_find_what_float32_finds_among_clustered_vectors(storage: str) -> None:
    vectors, queries = clustered(8000, 500)
    true = exact.build(exact.Config(), vectors).neighbours(queries, 20)
    index = exact.build(exact.Config(storage=storage), vectors)  # type: ignore[arg-type]
    np.testing.assert_array_equal(index.neighbours(queries, 1), true[:, :1])
    found = index.neighbours(queries, 20)
    np.testing.assert_array_equal(found[:, 0], true[:, 0])
    assert np.mean(found == true) > 0.999


def test_int8_without_candidates_would_lose_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MARGIN", 0)
    vectors, queries = clustered(8000, 500)
    true = exact.build(exact.Config(), vectors).neighbours(queries, 20)
    alike = [
        np.mean(exact.build(exact.Config(storage="int8", spare=spare), vectors).neighbours(queries, 20) == true)
        for spare in (1, 2)
    ]
    assert alike[0] < 0.99 < alike[1]


@pytest.mark.parametrize("storage", STORAGES)
def test_blocks_that_are_copied_are_small(storage: str) -> None:
    draw = np.random.default_rng(2)
    vectors, queries = unit(draw, 90, D), unit(draw, 3, D)
    index = tiled(storage, vectors, 2, 64, 8, copied=16 * 4 * D)
    assert index._block_vectors(3, torch.float32) == (64 if storage == "fp32" else 16)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(index.neighbours(queries, 5), slow_neighbours(vectors, queries, 5))  # type: ignore[attr-defined]


def test_vectors_come_from_a_memory_map_and_are_left_as_they_are(tmp_path: Path) -> None:
    vectors, queries = clustered(500, 5)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    index = exact.build(exact.Config(device="cpu"), mapped)
    assert index.codes_ND.data_ptr() == mapped.ctypes.data  # not copied
    np.testing.assert_array_equal(index.neighbours(queries, 3), slow_neighbours(vectors, queries, 3))


# Keys: the order of (similarity, number) as one whole number


@given(
    st.lists(st.tuples(st.floats(-2, 2, width=32), st.integers(0, exact.LAST - 1)), min_size=1, unique=True),
    st.sampled_from([torch.float32, torch.float16]),
)
def test_keys_are_in_the_order_of_similarity_and_then_number(pairs: list[tuple[float, int]], kind: torch.dtype) -> None:
    similarity = torch.tensor([s for s, _ in pairs]).to(kind)
    number = torch.tensor([n for _, n in pairs])
    key = exact._pack_keys(similarity, number)
    wanted = sorted(range(len(pairs)), key=lambda i: (-float(similarity[i]), pairs[i][1]))
    by_key = key.argsort(descending=True, stable=True).tolist()
    assert [pairs[i][1] for i in by_key] == [pairs[i][1] for i in wanted]
    assert exact._unpack_numbers(key).tolist() == number.tolist()
    assert (key > exact.EMPTY).all()


def test_keys_of_whole_numbers_are_in_their_order() -> None:
    similarity = torch.tensor([-5, 3, 3, 0, -5], dtype=torch.int32)
    key = exact._pack_keys(similarity, torch.tensor([4, 9, 2, 0, 1]))
    assert exact._unpack_numbers(key.sort(descending=True).values).tolist() == [2, 9, 0, 1, 4]
    assert exact._unpack_numbers(torch.tensor(exact.EMPTY)) == exact.LAST


def test_whole_numbers_filled_up_for_cuda_have_the_same_product() -> None:
    draw = torch.Generator().manual_seed(0)
    for num_queries, dim in [(1, 128), (17, 128), (40, 13)]:
        query, block = (torch.randint(-127, 128, (n, dim), generator=draw, dtype=torch.int8) for n in (num_queries, 64))
        query_filled, block_filled = exact._pad_for_cuda(query, block)
        assert len(query_filled) > 16 and query_filled.shape[1] == block_filled.shape[1]
        assert query_filled.shape[1] % 8 == 0
        found = exact._int_product(query_filled, block_filled)[:num_queries]
        np.testing.assert_array_equal(found.numpy(), query.numpy().astype(int) @ block.numpy().astype(int).T)


# Settings, keeping, and the contract


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="use auto"):
        exact.Config(device="cuda")


def test_less_than_one_candidate_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 0"):
        exact.Config(spare=0)


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_a_kept_index_answers_as_the_saved_one(storage: str, tmp_path: Path) -> None:
    vectors, queries = clustered(700, 30)
    config = exact.Config(storage=storage)  # type: ignore[arg-type]
    index = exact.build(config, vectors)
    exact.save(index, tmp_path)
    loaded = exact.load(config, tmp_path, vectors)
    assert torch.equal(loaded.codes_ND.cpu(), index.codes_ND.cpu())
    np.testing.assert_array_equal(loaded.neighbours(queries, 9), index.neighbours(queries, 9))


def test_only_codes_are_kept() -> None:
    assert [exact.keeps(exact.Config(storage=storage)) for storage in STORAGES] == [False, True, True]  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [0, 40, 5000])
def test_a_file_of_codes_that_is_cut_off_is_named_with_the_remedy(kept: int, tmp_path: Path) -> None:
    vectors, _ = clustered(700, 1)
    config = exact.Config(storage="int8")
    exact.save(exact.build(config, vectors), tmp_path)
    path = tmp_path / exact.CODES
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match=rf"{path}.*damaged.*delete the folder {tmp_path} and run again"):
        exact.load(config, tmp_path, vectors)


def test_codes_of_another_database_or_kind_and_a_lost_file_are_refused(tmp_path: Path) -> None:
    vectors, _ = clustered(700, 1)
    exact.save(exact.build(exact.Config(storage="int8"), vectors), tmp_path)
    for storage, others in (("int8", vectors[:699]), ("fp16", vectors)):
        with pytest.raises(StoreError, match="are not codes of"):
            exact.load(exact.Config(storage=storage), tmp_path, others)  # type: ignore[arg-type]
    (tmp_path / exact.CODES).unlink()
    with pytest.raises(StoreError, match="run again"):
        exact.load(exact.Config(storage="int8"), tmp_path, vectors)


@pytest.mark.parametrize("storage", STORAGES)
def test_it_meets_the_contract(storage: str) -> None:
    check_index(exact, exact.Config(storage=storage))  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("on_device", [True, False])
def test_a_gpu_finds_what_the_cpu_finds(storage: str, on_device: bool) -> None:
    vectors, queries = clustered(9001, 70)
    index = exact.build(exact.Config(device="cuda", storage=storage), vectors)  # type: ignore[arg-type]
    if not on_device:  # as if there were no room
        index = replace(index, vectors_ND=index.vectors_ND.cpu(), codes_ND=index.codes_ND.cpu())
        index = replace(index, tiles=replace(index.tiles, copied=1 << 18))
    true = exact.build(exact.Config(device="cpu"), vectors)
    for num_queries in (1, 70):
        found = index.neighbours(queries[:num_queries], 5)
        assert np.mean(found == true.neighbours(queries[:num_queries], 5)) > 0.99
