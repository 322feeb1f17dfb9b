import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.errors import ConfigError, StoreError
from bench.search.indexes import balanced_codes
from bench.search.indexes.balanced_codes import (
    Config,
    balanced_targets,
    build,
    code_loss,
    codes_of,
    corners,
    entropy_bits,
    load,
    probing_order,
    save,
    transport,
)

QUICK = Config(bits=5, probes=32, blocks=2)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit(np.random.default_rng(0).standard_normal((900, 16)))


@pytest.mark.parametrize("most", [1, 2, 7, 40, 64, 100])
def test_probing_order_is_that_of_all_corners_compared(most: int) -> None:
    draw = np.random.default_rng(most)
    corner_CK = corners(6).double().numpy()
    for value_K in unit(draw.standard_normal((30, 6))):
        right = np.argsort(-(corner_CK @ value_K.astype(np.float64)), kind="stable")[:most]
        assert probing_order(value_K, most) == right.tolist()


def test_corners_are_all_signs_in_the_order_of_their_codes() -> None:
    corner_CK = corners(3)
    np.testing.assert_array_equal(codes_of(corner_CK.numpy()), np.arange(8))
    torch.testing.assert_close(corner_CK.square().sum(1), torch.ones(8))
    for one, other in itertools.combinations(range(8), 2):
        assert corner_CK[one] @ corner_CK[other] == pytest.approx(1 - 2 * (one ^ other).bit_count() / 3, abs=1e-6)


def test_shares_of_the_transport_fill_rows_and_columns_equally() -> None:
    kernel = torch.rand(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    factor_M, factor_C = transport(kernel, 100)
    share = factor_M[:, None] * kernel * factor_C
    torch.testing.assert_close(share.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(share.sum(0), torch.full((4,), 3.0, dtype=torch.float64))
    after_one = transport(kernel, 1)
    torch.testing.assert_close(
        (after_one[0][:, None] * kernel * after_one[1]).sum(1), torch.ones(12, dtype=torch.float64)
    )


def test_targets_are_the_marginals_of_the_shares() -> None:
    value = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    kernel = torch.exp(value @ corners(3).T / balanced_codes.EPSILON)
    factor_M, factor_C = transport(kernel, balanced_codes.ROUNDS)
    share = factor_M[:, None] * kernel * factor_C
    expected = torch.stack([sum(share[:, c] for c in range(8) if c >> k & 1) for k in range(3)], dim=1)  # type: ignore[misc]
    torch.testing.assert_close(balanced_targets(value), expected, atol=1e-5, rtol=1e-4)


def test_loss_is_the_cross_entropy_of_the_softmax_over_all_corners() -> None:
    value = torch.nn.functional.normalize(torch.randn(5, 4, dtype=torch.float64), dim=1)
    bit = torch.rand(5, 4, dtype=torch.float64)
    corner_CK = corners(4).double()
    # Shares whose bits are independent, with these marginals.
    share = torch.where(corner_CK > 0, bit[:, None], 1 - bit[:, None]).prod(dim=2)
    log_softmax = (value @ corner_CK.T / balanced_codes.TEMPERATURE).log_softmax(dim=1)
    torch.testing.assert_close(code_loss(value, bit), -(share * log_softmax).sum(1).mean())


def test_entropy_of_buckets() -> None:
    assert entropy_bits(np.full(64, 5)) == pytest.approx(6)
    assert entropy_bits(np.array([3, 0, 0, 3])) == pytest.approx(1)
    assert entropy_bits(np.array([9, 0])) == 0 and entropy_bits(np.zeros(4, dtype=np.int64)) == 0
    draw = np.random.default_rng(0)
    sizes = np.bincount(codes_of(draw.standard_normal((50_000, 6)).astype(np.float32)), minlength=64)
    assert entropy_bits(sizes) == pytest.approx(6, abs=0.01)


def test_search_of_all_buckets_finds_what_all_inner_products_find(vectors: np.ndarray) -> None:
    queries = unit(vectors[::30] + 0.3 * np.random.default_rng(1).standard_normal((30, 16)))
    right = np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1, kind="stable")[:, :9]
    index = build(QUICK, vectors)
    np.testing.assert_array_equal(index.neighbours(queries, 9), right)
    assert index.compared_share(queries) == 1
    fewer = replace(index, probes=4)
    assert 0 < fewer.compared_share(queries) < 0.5
    assert (fewer.neighbours(queries, 9) != right).any()


def test_learning_fills_the_buckets_more_evenly_than_signs_of_a_skewed_database() -> None:
    skewed = unit(np.random.default_rng(3).standard_normal((2_000, 16)) + 1.5 * np.eye(16)[0])
    index = build(replace(QUICK, blocks=20), skewed)
    signs = entropy_bits(np.bincount(codes_of(skewed[:, :5]), minlength=32))
    measures = index.measures
    assert measures["bits"] == 5 and signs < measures["bucket_entropy_bits"] <= 5
    assert measures["bucket_entropy_bits"] > 4.7 and measures["empty_buckets"] == 0


def test_number_of_bits_follows_the_database_and_its_size_is_counted(vectors: np.ndarray) -> None:
    index = build(replace(QUICK, bits=0), vectors)
    assert index.bits == 7  # 900 vectors are nearly 2^10
    weights = 512 * 16 + 512 + 4 * 512 + 1 + 7 * 512 + 7
    assert index.num_bytes == 4 * 900 * 16 + 4 * 900 + 8 * (2**7 + 1) + 4 * weights


def test_same_settings_give_the_same_index_and_another_seed_another(vectors: np.ndarray) -> None:
    one, same, other = (build(replace(QUICK, seed=seed), vectors).code_N for seed in (0, 0, 1))
    assert (one == same).all() and (one != other).any()


def test_damaged_or_foreign_file_is_refused(vectors: np.ndarray, tmp_path: Path) -> None:
    save(build(QUICK, vectors), tmp_path)
    with pytest.raises(StoreError, match="has codes of 900 vectors, expected 899"):
        load(QUICK, tmp_path, vectors[:899])
    with pytest.raises(StoreError, match=r"codes\.npz cannot be read"):
        load(QUICK, tmp_path, vectors[:, :8])
    (tmp_path / balanced_codes.FILE).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        load(QUICK, tmp_path, vectors)


@pytest.mark.parametrize("wrong", [{"bits": 15}, {"probes": 0}, {"noise": -0.1}, {"blocks": 0}, {"seed": -1}], ids=str)
def test_setting_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=rf"index\.balanced-codes\.{name} must be .*, got {value}$"):
        Config(**wrong)  # type: ignore[arg-type]
