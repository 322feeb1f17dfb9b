import math

import pytest
import torch
from maps import FORMATS, assert_near, draw_map
from torch import Tensor

from bench.kernels.attention import attend

# Frames that can be halved often, not at all, and one; many channels and one.
SHAPES = [(3, 4, 8, 12), (2, 2, 64, 96), (2, 1, 5, 7), (5, 3, 1, 1), (3, 7, 9, 11), (1, 40, 2, 3)]


def slow_attend(x: Tensor, time_weights: Tensor, freq_weights: Tensor, scale: float, skip: Tensor | None) -> Tensor:
    over_bands = torch.einsum("bcfw,w->bcf", x, time_weights).softmax(dim=2)
    over_frames = torch.einsum("bcfw,f->bcw", x, freq_weights).softmax(dim=2)
    masked = x * scale * over_bands[..., None] * over_frames[:, :, None]
    return masked if skip is None else masked + skip


@pytest.mark.parametrize("has_skip", [True, False])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_the_equations(
    shape: tuple[int, ...], dtype: torch.dtype, has_skip: bool, threads: int
) -> None:
    draw = torch.Generator().manual_seed(1)
    given = [draw_map(shape, dtype, 0), *(torch.randn(size, generator=draw) for size in (shape[3], shape[2]))]
    given += [draw_map(shape, dtype, 3)] if has_skip else []
    double = [tensor.double().requires_grad_() for tensor in given]
    single = [tensor.requires_grad_() for tensor in given]
    gradient = draw_map(shape, dtype, 4)
    expected = slow_attend(*double[:3], 7.5, double[3] if has_skip else None)
    expected.backward(gradient.double())
    found = attend(*single[:3], 7.5, single[3] if has_skip else None)
    found.backward(gradient)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    # A bfloat16 has 8 digits: half a unit of the last one is 2^-9. The gradients of weights are float32.
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5
    assert_near(found, expected, rounding)
    for ours, theirs, relative in zip(single, double, (rounding, 1e-5, 1e-5, rounding), strict=False):
        if shape[2:] != (1, 1) or ours.dim() == 4:  # a softmax of one value has no gradient
            assert_near(ours.grad, theirs.grad, relative)


def test_gradients_in_another_memory_order_are_understood() -> None:
    x, weights = draw_map((2, 3, 4, 6), torch.float32, 0), torch.linspace(-1, 1, 10)
    gradient, made = draw_map((2, 3, 4, 6), torch.float32, 1), []
    for order in (torch.channels_last, torch.contiguous_format):
        one = x.clone().requires_grad_()
        attend(one, weights[:6], weights[6:], 2.0, x.contiguous()).backward(gradient.contiguous(memory_format=order))
        made.append(one.grad)
    assert made[0] is not None and made[1] is not None and torch.equal(made[0], made[1])


def test_large_logits_do_not_overflow() -> None:
    x = draw_map((2, 3, 4, 6), torch.float32, 0)
    out = attend(x, torch.full((6,), 1e4), torch.full((4,), -1e4), 100.0, None)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("dtype", FORMATS)
def test_nan_in_gives_nan_in_its_map_and_channel(dtype: torch.dtype) -> None:
    x, weights = draw_map((2, 3, 4, 6), dtype, 0), torch.ones(10)
    x[1, 2, 3, 4] = math.nan
    x.requires_grad_()
    out = attend(x, weights[:6], weights[6:].requires_grad_(), 2.0, torch.zeros_like(x))
    out.sum().backward()
    assert bool(out[1, 2].isnan().all()) and int(out.isnan().sum()) == 24
    assert x.grad is not None and bool(x.grad[1, 2].isnan().all()) and int(x.grad.isnan().sum()) == 24
