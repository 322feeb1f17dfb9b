"""The largest rise from a value to its neighbours' values, with its gradient, each in one pass on the CPU.

Torch keeps a mask of every comparison and writes the gradient of each step of the way.

Shape legend: K messages for each value, N values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.kernels.floats import as_array, kernel, like, to_float
from bench.kernels.rows import for_ranges

BLOCK = 4_096  # values handled at once, in the first-level cache


def largest_rise(messages_KN: Tensor, value_N: Tensor) -> Tensor:
    """Return max(0, largest message - value) for each value, in their number format: bfloat16 or float32.

    The gradient goes to the value and to its largest message, the first of equals; at no rise there is none.
    """
    rise_N: Tensor = _LargestRise.apply(messages_KN.contiguous(), value_N.contiguous())  # type: ignore[no-untyped-call]
    return rise_N


class _LargestRise(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, messages_KN: Tensor, value_N: Tensor) -> Tensor:
        rise_N, chosen_N = torch.empty_like(value_N), torch.empty(value_N.shape, dtype=torch.uint8)
        arrays = tuple(map(as_array, (messages_KN, value_N, rise_N, chosen_N)))
        _for_blocks(lambda first, end, _: _forward(*arrays, first, end), len(value_N))
        context.save_for_backward(chosen_N)
        context.num_messages = len(messages_KN)
        return rise_N

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradient_N: Tensor) -> Any:
        (chosen_N,) = context.saved_tensors
        by_value_N = torch.empty_like(gradient_N[0], memory_format=torch.contiguous_format)
        by_messages_KN = by_value_N.new_empty(context.num_messages, len(by_value_N))
        arrays = tuple(map(as_array, (gradient_N[0].contiguous(), chosen_N, by_messages_KN, by_value_N)))
        _for_blocks(lambda first, end, _: _backward(*arrays, first, end), len(by_value_N))
        return by_messages_KN, by_value_N


def _for_blocks(kernel: Any, num_values: int) -> None:
    for_ranges(kernel, -(-num_values // BLOCK))


@kernel
def _forward(messages_KN, value_N, rise_N, chosen_N, first, end):  # type: ignore[no-untyped-def]
    """Write the rises, and which message gave each: 0 for none."""
    largest_N = np.empty(BLOCK, np.float32)
    for start in range(first * BLOCK, end * BLOCK, BLOCK):
        block = slice(start, start + BLOCK)
        value, rise, chosen = value_N[block], rise_N[block], chosen_N[block]
        for n in range(len(value)):
            largest_N[n] = to_float(value[n])
            chosen[n] = np.uint8(0)
        for k in range(len(messages_KN)):
            message = messages_KN[k, block]
            for n in range(len(value)):
                other, largest = to_float(message[n]), largest_N[n]
                keeps = other <= largest or largest != largest  # NaN is passed on
                largest_N[n] = largest if keeps else other
                chosen[n] = chosen[n] if keeps else np.uint8(k + 1)
        for n in range(len(value)):
            rise[n] = like(largest_N[n] - to_float(value[n]), value[n])


@kernel
def _backward(gradient_N, chosen_N, by_messages_KN, by_value_N, first, end):  # type: ignore[no-untyped-def]
    for start in range(first * BLOCK, end * BLOCK, BLOCK):
        block = slice(start, start + BLOCK)
        gradient, chosen, by_value = gradient_N[block], chosen_N[block], by_value_N[block]
        for n in range(len(gradient)):
            slope = np.float32(0) if chosen[n] == np.uint8(0) else -to_float(gradient[n])
            by_value[n] = like(slope, gradient[n])
        for k in range(len(by_messages_KN)):
            by_message = by_messages_KN[k, block]
            for n in range(len(gradient)):
                slope = to_float(gradient[n]) if chosen[n] == np.uint8(k + 1) else np.float32(0)
                by_message[n] = like(slope, gradient[n])
