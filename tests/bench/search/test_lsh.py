"""K hyperplanes x L tables: keys by hand, candidates by a slow oracle, their number by the formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.errors import ConfigError, StoreError
from bench.search.indexes import exact, lsh
from bench.testing import check_index


def unit(draw: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = draw.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def vectors() -> np.ndarray:
    return unit(np.random.default_rng(1), 400, 12)


@pytest.fixture
def queries(vectors: np.ndarray) -> np.ndarray:
    near = vectors[:100:2] + 0.1 * np.random.default_rng(2).standard_normal((50, 12)).astype(np.float32)
    return np.asarray(near / np.linalg.norm(near, axis=1, keepdims=True), dtype=np.float32)


def test_key_has_a_bit_for_each_side() -> None:
    # The normals are the axes x and y, then -x and y. A vector on a plane is on the side of the normal.
    planes = np.float32([[1, 0, -1, 0], [0, 1, 0, 1]])
    vectors = np.float32([[3, 4], [3, -4], [-3, 4], [-3, -4], [0, 1]])
    keys_LB = lsh._hash(lsh.Config(bits=2, tables=2), planes, vectors)
    assert keys_LB.tolist() == [[0b11, 0b01, 0b10, 0b00, 0b11], [0b10, 0b00, 0b11, 0b01, 0b11]]


def test_probability_of_a_shared_key_by_hand() -> None:
    # At 60, 90 and 180 degrees one plane has both on one side with 2/3, 1/2 and 0.
    shared = lsh.share_key(np.float32([0.5, 0.0, -1.0, 1.0]), bits=2, tables=3)
    assert shared == pytest.approx([1 - (1 - 4 / 9) ** 3, 1 - (3 / 4) ** 3, 0, 1], abs=1e-6)


def test_products_by_the_slides_formula() -> None:
    # Two tables of three planes in four dimensions: 24 for the keys, 2 x 4 x 80 / 8 for the buckets.
    assert lsh.count_products(lsh.Config(bits=3, tables=2), num_vectors=80, dim=4) == 24 + 80


def test_candidates_are_the_union_of_the_buckets(vectors: np.ndarray, queries: np.ndarray) -> None:
    config = lsh.Config(bits=5, tables=3)
    index = lsh.build(config, vectors)
    query_P, number_P = index.candidates(queries)
    planes_DLC = index.planes_DX.reshape(12, 3, 5)
    centre = vectors.mean(axis=0)
    sides = [np.einsum("nd,dlc->nlc", each - centre, planes_DLC) >= 0 for each in (queries, vectors)]
    expected = [
        (q, n)
        for q in range(len(queries))
        for n in range(len(vectors))
        if any((sides[0][q, table] == sides[1][n, table]).all() for table in range(3))
    ]
    assert list(zip(query_P.tolist(), number_P.tolist(), strict=True)) == expected


def test_neighbours_are_the_best_candidates(vectors: np.ndarray, queries: np.ndarray) -> None:
    index = lsh.build(lsh.Config(bits=6, tables=2), vectors)
    query_P, number_P = index.candidates(queries)
    found_QK = index.neighbours(queries, 30)
    for q, query in enumerate(queries):
        candidates = number_P[query_P == q]
        best = candidates[np.argsort(-(vectors[candidates] @ query), kind="stable")][:30]
        assert found_QK[q].tolist() == [*best, *[-1] * (30 - len(best))]


def test_blocks_of_queries_change_nothing(
    vectors: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = lsh.build(lsh.Config(bits=3, tables=4), vectors)
    whole = index.neighbours(queries, 7)
    monkeypatch.setattr(lsh, "BLOCK_VECTORS", 20)
    for most in (1, 1_000, 4_000):
        monkeypatch.setattr(lsh, "MOST_HITS", most)
        blocks = list(index._block_queries(queries))
        assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(50))
        assert len(blocks) == 50 if most == 1 else len(blocks) < 50
        np.testing.assert_array_equal(index.neighbours(queries, 7), whole)


def test_one_bit_and_many_tables_find_what_exact_search_finds(vectors: np.ndarray, queries: np.ndarray) -> None:
    found = lsh.build(lsh.Config(bits=1, tables=20), vectors).neighbours(queries, 5)
    np.testing.assert_array_equal(found, exact.build(exact.Config(), vectors).neighbours(queries, 5))


@pytest.mark.parametrize(("bits", "tables", "centre"), [(1, 1, True), (8, 1, False), (4, 6, True), (8, 6, False)])
def test_formula_gives_the_number_of_candidates_within_its_error(
    bits: int, tables: int, centre: bool, vectors: np.ndarray, queries: np.ndarray
) -> None:
    # The planes are what is random. Over 400 draws of them the mean count of all queries together has a standard error;
    # candidates of one draw depend on each other, so that it is taken from the counts.
    counts = []
    for seed in range(400):
        index = lsh.build(lsh.Config(bits, tables, centre, seed), vectors)
        counts.append(len(index.candidates(queries[:10])[0]))
    expected = lsh.expect_candidates(index, queries[:10]).sum()
    error = np.std(counts, ddof=1) / np.sqrt(len(counts))
    assert abs(np.mean(counts) - expected) < 4 * error  # one in 16,000 by chance
    assert error < 0.06 * expected  # so that a formula that is 24 % off would be noticed
    assert expected > 0


def test_slides_assume_vectors_at_right_angles() -> None:
    axes = np.eye(64, dtype=np.float32)
    index = lsh.build(lsh.Config(bits=10, tables=1, centre=False), axes[1:])
    expected = lsh.expect_candidates(index, axes[:1])
    assert expected == pytest.approx([63 / 2**10])


def test_about_the_mean_vectors_that_share_one_are_hashed_as_without_it(
    vectors: np.ndarray, queries: np.ndarray
) -> None:
    config = lsh.Config(bits=8, tables=2)
    index, moved = lsh.build(config, vectors), lsh.build(config, vectors + np.float32(2))
    number = len(index.candidates(queries)[0])
    assert abs(len(moved.candidates(queries + np.float32(2))[0]) - number) < 0.01 * number  # rounding turns a few bits
    from_origin = lsh.build(lsh.Config(bits=8, tables=2, centre=False), vectors + np.float32(2))
    assert len(from_origin.candidates(queries + np.float32(2))[0]) > 5 * number


def test_index_keeps_its_contract_with_other_settings() -> None:
    check_index(lsh, lsh.Config(bits=8, tables=4, centre=False))


def test_tables_of_other_settings_are_refused(vectors: np.ndarray, tmp_path: Path) -> None:
    lsh.save(lsh.build(lsh.Config(bits=4, tables=2), vectors), tmp_path)
    with pytest.raises(StoreError, match=r"has the shape \(2, 2, 400\), not \(2, 3, 400\)"):
        lsh.load(lsh.Config(bits=4, tables=3), tmp_path, vectors)


@pytest.mark.parametrize("wrong", [{"bits": 0}, {"bits": 33}, {"tables": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"index\.lsh\."):
        lsh.Config(**wrong)


def test_most_bits_fit_a_key(vectors: np.ndarray) -> None:
    index = lsh.build(lsh.Config(bits=32, tables=1), vectors)
    np.testing.assert_array_equal(index.neighbours(vectors, 1)[:, 0], np.arange(400))
    assert index.key_LN.max() >= 2**31


def test_presets_are_settings_of_their_names() -> None:
    assert lsh.presets()["default"] == lsh.Config()
    assert (lsh.presets()["singh"].bits, lsh.presets()["singh"].tables) == (18, 50)
    assert lsh.presets()["few-tables"].tables < lsh.Config().tables
