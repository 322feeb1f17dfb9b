import copy
import math

import pytest
import torch
import torch.nn.functional as functional
from maps import FORMATS, assert_near, draw_map
from torch import Tensor, nn

from bench.kernels.channel_norm import is_channels_last_on_cpu, norm_channels

MEAN = 0.3  # of the maps
# One pixel more or less than whole tiles and blocks, a single column, and channels that divide no tile.
SHAPES = [(3, 4, 8, 12), (2, 1, 5, 7), (5, 3, 1, 1), (3, 7, 9, 11), (2, 16, 61, 33), (2, 513, 2, 3), (1, 4, 257, 129)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0, mean: float = MEAN) -> Tensor:
    return draw_map(shape, dtype, seed, mean)


def norm_of(channels: int, training: bool = True) -> nn.BatchNorm2d:
    """Return a norm with the weights and statistics of some training."""
    draw = torch.Generator().manual_seed(7)
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            assert tensor is not None
            tensor.add_(0.5 * torch.randn(channels, generator=draw))
        assert norm.running_var is not None
        norm.running_var.mul_(0.5 + torch.rand(channels, generator=draw))
    return norm.train(training)


def torch_values(x: Tensor, norm: nn.BatchNorm2d, gradient: Tensor, relu: bool) -> list[Tensor]:
    """Return what torch computes in double precision: output, gradients, statistics."""
    x, norm = x.double().requires_grad_(), copy.deepcopy(norm).double()
    return values(x, norm, gradient.double(), norm(functional.relu(x) if relu else x))


def values(x: Tensor, norm: nn.BatchNorm2d, gradient: Tensor, out: Tensor) -> list[Tensor]:
    out.backward(gradient)
    found = [out.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    return [value for value in found if value is not None]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_training_gives_outputs_gradients_and_statistics_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, relu: bool, threads: int
) -> None:
    x, gradient, norm = drawn(shape, dtype), drawn(shape, dtype, seed=1), norm_of(shape[1])
    expected = torch_values(x, norm, gradient, relu)
    x.requires_grad_()
    out = norm_channels(x, norm, relu)
    assert out.dtype == dtype and is_channels_last_on_cpu(out) and "TrainingNorm" in str(out.grad_fn)
    # A bfloat16 has 8 digits: half a unit of the last one is 2^-9. Weights and statistics are float32.
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5
    for found, value, relative in zip(
        values(x, norm, gradient, out), expected, (rounding, rounding, 1e-5, 1e-5, 1e-5, 1e-5), strict=True
    ):
        assert_near(found, value, relative)
    assert int(norm.num_batches_tracked or 0) == 1


def test_statistics_of_millions_of_values_are_exact() -> None:
    # Torch adds up those of a channel in float32, one after another: its variance of these is off by 0.1 %.
    x = drawn((64, 4, 64, 96))
    expected = x.double().relu().var(dim=(0, 2, 3))
    norm = nn.BatchNorm2d(4, momentum=1)
    norm_channels(x, norm, relu=True)
    assert norm.running_var is not None
    assert_near(norm.running_var, expected, 1e-6)


def test_a_mean_far_from_0_costs_no_digits_of_the_variance() -> None:
    x = drawn((4, 4, 32, 32), mean=1_000)
    norm = nn.BatchNorm2d(4, momentum=1)
    norm_channels(x, norm, relu=False)
    assert norm.running_var is not None
    assert_near(norm.running_var, x.double().var(dim=(0, 2, 3)), 1e-5)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_uses_the_running_statistics_and_leaves_them(
    shape: tuple[int, ...], dtype: torch.dtype, relu: bool, threads: int
) -> None:
    x, norm = drawn(shape, dtype), norm_of(shape[1], training=False)
    kept = copy.deepcopy(norm.state_dict())
    with torch.no_grad():
        expected = copy.deepcopy(norm).double()(functional.relu(x.double()) if relu else x.double())
        found = norm_channels(x, norm, relu)
    assert found.dtype == dtype
    assert_near(found, expected, 2**-8 if dtype == torch.bfloat16 else 1e-5)
    assert all(torch.equal(kept[name], value) for name, value in norm.state_dict().items())


def test_evaluation_with_gradients_goes_through_torch() -> None:
    x, norm = drawn((2, 4, 5, 6)).requires_grad_(), norm_of(4, training=False)
    out = norm_channels(x * 1, norm, relu=True)
    assert torch.equal(out, norm(functional.relu(x)))
    out.sum().backward()
    assert x.grad is not None and norm.weight.grad is not None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", FORMATS)
def test_nan_in_gives_nan_in_its_channel(dtype: torch.dtype, training: bool) -> None:
    x = drawn((2, 3, 5, 7), dtype)
    x[1, 2, 3, 4] = math.nan
    gradient = torch.ones_like(x)
    norm = norm_of(3, training)
    if not training:
        with torch.no_grad():
            out = norm_channels(x, norm, relu=True)
        assert bool(out[1, 2, 3, 4].isnan()) and int(out.isnan().sum()) == 1
        return
    out = norm_channels(x.requires_grad_(), norm, relu=True)
    out.backward(gradient)
    assert bool(out[:, 2].isnan().all()) and bool(out[:, :2].isfinite().all())
    assert norm.weight.grad is not None and bool(norm.weight.grad[2].isnan())
    assert x.grad is not None and bool(x.grad[:, 2][x[:, 2] > 0].isnan().all()) and bool(x.grad[:, :2].isfinite().all())


def test_nan_in_a_gradient_reaches_the_weights() -> None:
    x, norm = drawn((2, 3, 5, 7)).requires_grad_(), norm_of(3)
    gradient = torch.ones_like(x)
    gradient[0, 1, 0, 0] = math.nan
    norm_channels(x, norm, relu=True).backward(gradient)
    assert norm.weight.grad is not None and norm.bias.grad is not None
    assert norm.weight.grad.isnan().tolist() == norm.bias.grad.isnan().tolist() == [False, True, False]


def test_a_silent_channel_gives_its_bias_and_finite_gradients() -> None:
    x, norm = drawn((2, 3, 5, 7)), norm_of(3)
    x[0, 1], x[1, 1] = -1, 0
    x.requires_grad_()
    out = norm_channels(x, norm, relu=True)
    out.backward(drawn((2, 3, 5, 7), seed=1))
    assert bool((out[:, 1] == norm.bias[1]).all())
    assert x.grad is not None and bool((x.grad[:, 1] == 0).all()) and bool(x.grad.isfinite().all())


@pytest.mark.parametrize(
    "norm",
    [
        nn.SyncBatchNorm(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, track_running_stats=False),
    ],
    ids=["synchronised", "no-weights", "cumulative", "no-statistics"],
)
def test_other_norms_go_through_torch(norm: nn.BatchNorm2d) -> None:
    x = drawn((2, 4, 5, 6))
    other = copy.deepcopy(norm)
    assert torch.equal(norm_channels(x.clone(), norm, relu=True), other(functional.relu(x)))


def test_other_memory_orders_and_formats_go_through_torch() -> None:
    for x in (drawn((2, 4, 5, 6)).contiguous(), drawn((2, 4, 5, 6)).double()):
        norm = norm_of(4).to(x.dtype)
        other = copy.deepcopy(norm)
        assert torch.equal(norm_channels(x.clone(), norm, relu=True), other(functional.relu(x)))


def test_one_value_per_channel_is_refused_in_training_as_by_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_channels(drawn((1, 4, 1, 1)), norm_of(4), relu=True)
