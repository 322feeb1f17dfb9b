"""Activation and layer norm in one pass, against torch's own and against a definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from bench.kernels.map_norm import BLOCK, Order, map_norm

ORDERS: tuple[Order, ...] = ("norm-relu", "elu-norm")
SHAPES = [(1, 1), (3, 7), (5, 130), (4, BLOCK), (2, BLOCK + 1), (7, 2 * BLOCK + 333)]


def draw(maps: int, values: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return maps of various levels and means, weights, biases, and a gradient of the output."""
    draws = torch.Generator().manual_seed(maps + values)
    level = torch.rand(maps, 1, generator=draws) * 3 + 0.1
    x = torch.randn(maps, values, generator=draws) * level + torch.randn(maps, 1, generator=draws)
    weight, bias = torch.randn(2, values, generator=draws)
    return x.to(dtype), weight, bias, torch.randn(maps, values, generator=draws).to(dtype)


def separately(x: Tensor, weight: Tensor, bias: Tensor, order: Order) -> Tensor:
    if order == "norm-relu":
        return functional.relu(functional.layer_norm(x, x.shape[1:], weight, bias, 1e-5))
    return functional.layer_norm(functional.elu(x), x.shape[1:], weight, bias, 1e-5)


def gradients(function: object, x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the output, and the gradients by x, weight and bias."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    out = function(*leaves)  # type: ignore[operator]
    out.backward(gradient)
    return [out.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[misc]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("maps", "values"), SHAPES)
def test_float32_is_that_of_float64_within_rounding(maps: int, values: int, order: Order) -> None:
    given = draw(maps, values)
    exact = gradients(lambda *a: separately(*a, order), *(t.double() for t in given))
    found = gradients(lambda *a: map_norm(*a, 1e-5, order), *given)
    if values == 1:  # nothing but the bias passes a norm over one value
        assert max(float(tensor.abs().max()) for tensor in found[1:3]) < 1e-3
    for name, one, other in zip(("output", "by x", "by weight", "by bias"), found, exact, strict=True):
        assert one.dtype == torch.float32
        scale = max(float(other.abs().max()), 1.0)
        np.testing.assert_allclose(one.double() / scale, other / scale, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("order", ORDERS)
def test_bfloat16_is_that_of_float32_rounded_where_it_is_kept(order: Order) -> None:
    x, weight, bias, gradient = draw(6, 5_000, torch.bfloat16)

    def rounded_separately(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if order == "norm-relu":
            return separately(x, weight, bias, order)
        value = functional.elu(x)
        kept = value + (value.detach().bfloat16().float() - value.detach())  # rounded, with the gradient of ELU
        return functional.layer_norm(kept, x.shape[1:], weight, bias, 1e-5)

    exact = gradients(rounded_separately, x.float(), weight, bias, gradient.float())
    found = gradients(lambda *a: map_norm(*a, 1e-5, order), x, weight, bias, gradient)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    # Where float32 sums differ by rounding, the nearest bfloat16 may be the next one, in one value of a hundred.
    assert float((found[0] != exact[0].to(torch.bfloat16)).float().mean()) < 0.01
    np.testing.assert_allclose(found[0].float(), exact[0], rtol=2**-8, atol=1e-5)
    # ELU's slope is taken from its rounded value: it is off by half a step of bfloat16 below 1.
    off = (found[1].float() - exact[1]).abs() / exact[1].abs().amax(dim=1, keepdim=True)
    assert float(off.max()) < 2 * 2**-9 and float(off.mean()) < 2**-11
    for one, other in zip(found[2:], exact[2:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_elu_and_relu_at_their_ends(order: Order) -> None:
    x = torch.tensor([[-1e4, -100.0, -87.5, -20.0, -1e-4, 0.0, 1e-4, 50.0]])
    weight, bias = torch.ones(8), torch.zeros(8)
    np.testing.assert_allclose(
        map_norm(x, weight, bias, 1e-5, order), separately(x, weight, bias, order), rtol=1e-5, atol=1e-6
    )


def test_elu_of_values_of_all_sizes() -> None:
    x = -torch.logspace(-6, 1, 200)[None]
    ones = torch.ones(200)
    found = map_norm(x, ones, 0 * ones, 1e-5, "elu-norm")
    exact = separately(x.double(), ones.double(), 0 * ones.double(), "elu-norm")
    np.testing.assert_allclose(found, exact, atol=2e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_not_hidden(order: Order, bad: float, dtype: torch.dtype) -> None:
    x, weight, bias, gradient = draw(3, 500, dtype)
    x[1, 77] = bad
    out, by_x, by_weight, _ = gradients(lambda *a: map_norm(*a, 1e-5, order), x, weight, bias, gradient)
    assert not torch.isfinite(out[1]).any() if order == "elu-norm" else not torch.isfinite(out[1]).all()
    assert torch.isfinite(out[[0, 2]]).all() and torch.isfinite(by_x[[0, 2]]).all()
    assert not torch.isfinite(by_weight).all()
    x[1, 77], gradient[1, 77] = 1, float("nan")
    _, by_x, *_ = gradients(lambda *a: map_norm(*a, 1e-5, "elu-norm"), x, weight, bias, gradient)
    assert torch.isnan(by_x[1]).all()


@pytest.mark.parametrize("order", ORDERS)
def test_flat_map_is_its_bias(order: Order) -> None:
    weight, bias = torch.full((300,), 2.0), torch.linspace(0.1, 1, 300)
    for level in (0.0, 3.0, -2.0):
        out = map_norm(torch.full((2, 300), level), weight, bias, 1e-5, order)
        np.testing.assert_allclose(out, bias.expand(2, -1), atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("maps", [1, 2, 3, 10])
def test_any_number_of_threads_gives_the_same(order: Order, maps: int) -> None:
    given = draw(maps, 3_000)
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(gradients(lambda *a: map_norm(*a, 1e-5, order), *given))
    for other in found[1:]:
        # A map is of one thread; weights and biases have sums over maps, in another order.
        assert torch.equal(found[0][0], other[0]) and torch.equal(found[0][1], other[1])
        for one, two in zip(found[0][2:], other[2:], strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_map_that_is_not_contiguous_is_read_in_its_order() -> None:
    x, weight, bias, _ = draw(4, 600)
    out = map_norm(x.T.contiguous().T, weight, bias, 1e-5, "elu-norm")
    assert torch.equal(out, map_norm(x, weight, bias, 1e-5, "elu-norm"))


@pytest.mark.parametrize("order", ORDERS)
def test_without_gradients_the_output_is_the_same(order: Order) -> None:
    x, weight, bias, _ = draw(9, 1_000)
    with torch.no_grad():
        alone = map_norm(x, weight, bias, 1e-5, order)
    with torch.inference_mode():
        inferred = map_norm(x, weight, bias, 1e-5, order)
    kept = map_norm(x, weight.requires_grad_(), bias, 1e-5, order)
    assert torch.equal(alone, kept) and torch.equal(inferred, kept)


def test_no_map_gives_no_map() -> None:
    weight = torch.ones(30, requires_grad=True)
    out = map_norm(torch.zeros(0, 30), weight, torch.zeros(30), 1e-5, "norm-relu")
    assert out.shape == (0, 30)
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and not weight.grad.any()


def test_weights_that_need_no_gradient_are_left_alone() -> None:
    x, weight, bias, gradient = draw(2, 100)
    x.requires_grad_()
    map_norm(x, weight, bias, 1e-5, "elu-norm").backward(gradient)
    assert weight.grad is None and x.grad is not None
