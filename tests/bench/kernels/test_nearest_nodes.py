"""The nearest nodes by cosine, against a sort of all cosines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from bench.kernels.nearest_nodes import COLUMNS, nearest_nodes


def draw(segments: int, nodes: int, channels: int) -> Tensor:
    draws = torch.Generator().manual_seed(segments * nodes + channels)
    return functional.normalize(torch.randn(segments, nodes, channels, generator=draws), dim=2)


def sort_all(unit_BNC: Tensor, num_nearest: int) -> Tensor:
    cosine_BNN = unit_BNC.double() @ unit_BNC.double().transpose(1, 2)
    cosine_BNN.diagonal(dim1=1, dim2=2).fill_(-2)
    return cosine_BNN.argsort(dim=2, descending=True, stable=True)[..., :num_nearest]


@pytest.mark.parametrize("num_nearest", [1, 2, 6])
@pytest.mark.parametrize(
    ("nodes", "channels"),
    [(7, 3), (COLUMNS, 8), (COLUMNS + 1, 5), (191, 4), (256, 32), (1024, 8), (257, 64), (130, 1)],
)
def test_nearest_nodes_are_those_of_a_sort(nodes: int, channels: int, num_nearest: int) -> None:
    unit = draw(3, nodes, channels)
    found, wanted = nearest_nodes(unit, num_nearest), sort_all(unit, num_nearest)
    assert found.shape == (3, nodes, num_nearest) and found.dtype == torch.int64
    # Where two cosines differ by rounding, either node may come first.
    cosine = unit.double() @ unit.double().transpose(1, 2)
    np.testing.assert_allclose(cosine.gather(2, found), cosine.gather(2, wanted), atol=1e-6)
    assert not (found == torch.arange(nodes)[:, None]).any()
    assert all(len(set(row)) == num_nearest for row in found.flatten(0, 1).tolist())


def test_of_equal_nodes_the_first_is_nearer() -> None:
    unit = draw(1, 5, 8)[:, [0, 1, 0, 2, 0, 1, 3, 4, 0]]
    assert nearest_nodes(unit, 3)[0, [0, 2, 4, 8]].tolist() == [[2, 4, 8], [0, 4, 8], [0, 2, 8], [0, 2, 4]]
    same = functional.normalize(torch.ones(2, 100, 6), dim=2)
    assert nearest_nodes(same, 2)[1, [0, 1, 2, 99]].tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_any_number_of_threads_finds_the_same(segments: int) -> None:
    unit, found = draw(segments, 200, 8), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(nearest_nodes(unit, 2))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_nan_gives_nodes_of_the_segment() -> None:
    unit = draw(2, 150, 8)
    unit[0, 70:] = float("nan")
    found = nearest_nodes(unit, 2)
    assert int(found.min()) >= 0 and int(found.max()) < 150
    assert torch.equal(found[1], nearest_nodes(draw(2, 150, 8), 2)[1])
    nearest_nodes(torch.full((1, 100, 4), float("nan")), 3)
