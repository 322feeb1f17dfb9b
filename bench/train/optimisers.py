"""Optimisers: Adam from torch, and LAMB. Their state consists of tensors only, as checkpoints require.

Shape legend: P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.settings import TrainConfig

LAMB_EPSILON = 1e-6  # as in the paper's code and in NAFP


def build_optimiser(config: TrainConfig, parameters: Sequence[Tensor], device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser named `train.optimiser`, for parameters on a device.

    On CUDA the learning rate is a tensor on the device, so that a captured or compiled step sees a new rate. With Adam,
    `weight_decay` is added to the gradient; with LAMB, to the step.
    """
    rate: Any = torch.tensor(config.lr, device=device) if device.type == "cuda" else config.lr
    if config.optimiser == "lamb":
        return Lamb(parameters, rate, config.weight_decay)
    # Fused into one kernel, on the CPU too: 10 ms instead of 60 ms for 16 million parameters on one thread.
    return torch.optim.Adam(parameters, lr=rate, weight_decay=config.weight_decay, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next steps. Does not wait for the device."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Lamb(torch.optim.Optimizer):
    """Adam with the step of each tensor rescaled to the tensor's norm times the learning rate.

    A tensor of zeros, or one whose step is zero, takes Adam's step unscaled.
    Source: You et al., ICLR 2020, algorithm 2, with bias correction and the identity for phi.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float | Tensor,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = LAMB_EPSILON,
    ) -> None:
        # `capturable` makes torch move `step` back to the device when a state is loaded.
        settings = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "epsilon": epsilon, "capturable": True}
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return the closure's loss if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, [weight.grad for weight in weights], group)
        return loss

    def _update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        # 1. running means of the gradients and of their squares
        states = [self._get_state(weight) for weight in weights]
        steps, first, second = ([state[name] for state in states] for name in ("step", "exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        # 2. Adam's step, with bias correction and weight decay
        done_P = torch.stack(steps)
        spread = torch._foreach_div(second, (1 - beta2**done_P).unbind())
        torch._foreach_sqrt_(spread)
        torch._foreach_add_(spread, group["epsilon"])
        change = torch._foreach_div(first, (1 - beta1**done_P).unbind())
        torch._foreach_div_(change, spread)
        torch._foreach_add_(change, weights, alpha=group["weight_decay"])
        # 3. rescaled to the norm of each tensor
        weight_norm_P, change_norm_P = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, change))
        trust_P = torch.where((weight_norm_P > 0) & (change_norm_P > 0), weight_norm_P / change_norm_P, 1.0)
        torch._foreach_mul_(change, (-group["lr"] * trust_P).unbind())
        torch._foreach_add_(weights, change)

    def _get_state(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        return state
