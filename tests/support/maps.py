"""Maps of numbers, channels last, for the tests of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = [torch.float32, torch.bfloat16]


def draw_map(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0, mean: float = 0.0) -> Tensor:
    """Return normal numbers (B, C, F, W) around a mean, with channels the fastest axis in memory."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=draw) + mean).to(dtype).contiguous(memory_format=torch.channels_last)


def assert_near(found: Tensor | None, expected: Tensor | None, relative: float) -> None:
    """Assert that no number is off by more than a share of the largest one."""
    assert found is not None and expected is not None
    found, expected = found.detach().double(), expected.detach()
    assert float((found - expected).abs().max()) <= relative * float(expected.abs().max())
