"""The largest rise to a neighbour and its gradient, against torch's comparisons one after another."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from bench.kernels.largest_rise import BLOCK, largest_rise


def draw(messages: int, values: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(messages * values)
    return (
        torch.randn(messages, values, generator=draws).to(dtype).requires_grad_(),
        torch.randn(values, generator=draws).to(dtype).requires_grad_(),
        torch.randn(values, generator=draws).to(dtype),
    )


def gradients(function: object, messages: Tensor, value: Tensor, gradient: Tensor) -> list[Tensor]:
    messages.grad = value.grad = None
    rise = function(messages, value)  # type: ignore[operator]
    rise.backward(gradient)
    assert messages.grad is not None and value.grad is not None
    return [rise.detach(), messages.grad, value.grad]


def one_after_another(messages: Tensor, value: Tensor) -> Tensor:
    return functional.relu(reduce(torch.maximum, messages.unbind()) - value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("messages", [1, 2, 5])
@pytest.mark.parametrize("values", [1, 100, BLOCK, BLOCK + 1, 5 * BLOCK - 7])
def test_rise_and_gradients_are_those_of_torch(messages: int, values: int, dtype: torch.dtype) -> None:
    given = draw(messages, values, dtype)
    found, wanted = gradients(largest_rise, *given), gradients(one_after_another, *given)
    if dtype == torch.bfloat16:  # torch shares a gradient among equals, which in bfloat16 there are
        top = given[0].amax(dim=0)
        single = (given[0] == top).sum(dim=0) == 1
        found, wanted = ([tensor[..., single] for tensor in tensors] for tensors in (found, wanted))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype and torch.equal(one, other)


def test_of_equal_messages_the_first_gets_the_gradient() -> None:
    messages = torch.tensor([[1.0, 3.0, 0.0], [2.0, 3.0, 0.0], [2.0, 3.0, -1.0]], requires_grad=True)
    value = torch.tensor([0.5, 1.0, 0.0], requires_grad=True)
    rise, by_messages, by_value = gradients(largest_rise, messages, value, torch.ones(3))
    assert rise.tolist() == [1.5, 2.0, 0.0]
    assert by_messages.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert by_value.tolist() == [-1, -1, 0]


def test_nan_is_passed_on() -> None:
    nan = float("nan")
    messages, value = torch.tensor([[nan, 1.0, 1.0], [1.0, 1.0, nan]]), torch.tensor([0.0, nan, 0.0])
    assert torch.isnan(largest_rise(messages, value)).all()
