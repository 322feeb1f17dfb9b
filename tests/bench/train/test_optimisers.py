"""The optimisers against their equations, number by number, and across a checkpoint."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.settings import TrainConfig
from bench.train import checkpoint
from bench.train.optimisers import Lamb, build_optimiser, set_rate

CPU = torch.device("cpu")
SHAPES = [(3, 4), (5,), (), (2, 2, 2)]


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw, dtype=dtype)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in SHAPES]


def walked(optimiser: torch.optim.Optimizer, weights: list[torch.nn.Parameter], steps: range) -> list[np.ndarray]:
    for step in steps:
        for weight, gradient in zip(weights, gradients(step), strict=True):
            weight.grad = gradient.to(weight.dtype)
        set_rate(optimiser, 0.1 / (1 + step))
        optimiser.step()
    return [weight.detach().numpy().copy() for weight in weights]


def slow(name: str, weight: np.ndarray, steps: int, number: int, decay: float) -> np.ndarray:
    """Return one tensor after some steps, one number at a time: Adam, or LAMB with the length of the whole tensor."""
    shape, values = weight.shape, [float(w) for w in weight.reshape(-1)]
    first, second = ([0.0] * len(values) for _ in range(2))
    for step in range(steps):
        gradient = [float(g) for g in gradients(step)[number].reshape(-1)]
        rate, epsilon = 0.1 / (1 + step), 1e-8 if name == "adam" else 1e-6
        change = []
        for i, g in enumerate(gradient):
            g += decay * values[i] if name == "adam" else 0
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            ahead, spread = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            change.append(ahead / (math.sqrt(spread) + epsilon))
            change[i] += decay * values[i] if name == "lamb" else 0
        if name == "lamb":
            length, wanted = math.hypot(*values), math.hypot(*change)
            rate *= length / wanted if length > 0 and wanted > 0 else 1
        values = [w - rate * c for w, c in zip(values, change, strict=True)]
    return np.array(values).reshape(shape)


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_steps_are_the_published_equations(name: Any, decay: float) -> None:
    weights = parameters()
    before = [weight.detach().numpy().copy() for weight in weights]
    optimiser = build_optimiser(TrainConfig(optimiser=name, weight_decay=decay), weights, CPU)
    found = walked(optimiser, weights, range(5))
    for number, (start, end) in enumerate(zip(before, found, strict=True)):
        # The state of steps is float32, as torch keeps it: the bias corrections have its rounding.
        np.testing.assert_allclose(end, slow(name, start, 5, number, decay), rtol=1e-5, atol=1e-7)
        assert not np.allclose(end, start, atol=1e-3)


def test_first_step_of_lamb_by_hand() -> None:
    # Both moments are the gradient's at first, so that the step is its signs: (1, -1), of length sqrt 2.
    # The weights have length 5, and so each of them moves by 0.1 * 5 / sqrt 2.
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([0.5, -2.0])
    Lamb([weight], lr=0.1).step()
    assert weight.tolist() == pytest.approx([3 - 0.5 / math.sqrt(2), 4 + 0.5 / math.sqrt(2)], abs=2e-6)


def test_first_step_of_lamb_with_decay_by_hand() -> None:
    # The step is (1, -1) + 0.5 * (3, 4) = (2.5, 1), of length sqrt 7.25.
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([0.5, -2.0])
    Lamb([weight], lr=0.1, weight_decay=0.5).step()
    scale = 0.1 * 5 / math.sqrt(7.25)
    assert weight.tolist() == pytest.approx([3 - 2.5 * scale, 4 - scale], abs=2e-6)


def test_lamb_moves_weights_of_zero_by_adams_step_and_leaves_what_has_no_gradient() -> None:
    zeros, still, other = (torch.nn.Parameter(torch.full((2,), value)) for value in (0.0, 1.0, 1.0))
    zeros.grad, still.grad = torch.tensor([1.0, -3.0]), torch.zeros(2)
    optimiser = Lamb([zeros, still, other], lr=0.1)
    optimiser.step()
    assert zeros.tolist() == pytest.approx([-0.1, 0.1], abs=1e-6)
    assert still.tolist() == other.tolist() == [1.0, 1.0]
    assert list(optimiser.state[other]) == []


def test_scale_of_the_gradient_does_not_matter_to_lamb() -> None:
    ends = []
    for scale in (1e-2, 1e3):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        weight.grad = scale * torch.tensor([1.0, 5.0, -2.0])
        Lamb([weight], lr=0.2).step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_step_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(tmp_path: Path, name: Any) -> None:
    config, path = TrainConfig(optimiser=name, weight_decay=0.01), tmp_path / "o.safetensors"
    whole = parameters(dtype=torch.float32)
    wanted = walked(build_optimiser(config, whole, CPU), whole, range(6))
    first = parameters(dtype=torch.float32)
    killed = build_optimiser(config, first, CPU)
    walked(killed, first, range(3))
    checkpoint.save(path, checkpoint.optimiser_tensors(killed), {})
    second = [torch.nn.Parameter(weight.detach().clone()) for weight in first]
    resumed = build_optimiser(config, second, CPU)
    checkpoint.restore_optimiser(resumed, checkpoint.load(path)[0])
    for found, end in zip(walked(resumed, second, range(3, 6)), wanted, strict=True):
        assert np.array_equal(found, end)


@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_rate_as_a_tensor_is_the_rate_as_a_number_and_stays_the_same_tensor(name: str) -> None:
    made = {"adam": lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True), "lamb": Lamb}[name]
    rate = torch.tensor(1.0)
    as_tensor, as_number = (parameters(dtype=torch.float32) for _ in range(2))
    optimiser = made(as_tensor, rate)  # type: ignore[operator]
    found = walked(optimiser, as_tensor, range(3))
    wanted = walked(made(as_number, 1.0), as_number, range(3))  # type: ignore[operator]
    assert optimiser.param_groups[0]["lr"] is rate
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_on_cuda_the_state_and_the_rate_stay_on_the_device_through_a_checkpoint(tmp_path: Path, name: Any) -> None:
    device, path = torch.device("cuda"), tmp_path / "o.safetensors"
    weight = torch.nn.Parameter(torch.ones(4, device=device))
    optimisers = [build_optimiser(TrainConfig(optimiser=name), [weight], device) for _ in range(2)]
    weight.grad = torch.ones_like(weight)
    optimisers[0].step()
    checkpoint.save(path, checkpoint.optimiser_tensors(optimisers[0]), {})
    checkpoint.restore_optimiser(optimisers[1], checkpoint.load(path)[0])
    for optimiser in optimisers:
        assert all(value.is_cuda for value in optimiser.state[weight].values())
        assert optimiser.param_groups[0]["lr"].is_cuda
