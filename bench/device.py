"""Which device to compute on, and at what precision it multiplies."""

from __future__ import annotations

import os

import torch

from bench.errors import ConfigError


def pick_device(setting: str) -> torch.device:
    """Return the device that the setting `device` (auto, cpu or cuda) names; under torchrun, this process's own GPU.

    Raises: ConfigError if it is cuda and torch sees no GPU.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda, but torch sees no GPU here; use --set device=auto, or see `bench doctor`")
    return usable_device(setting)


def usable_device(setting: str) -> torch.device:
    """Return the device that the setting names, the CPU where it asks for a GPU and there is none."""
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank())


def use_full_fp32() -> None:
    """Make fp32 products and convolutions on a GPU full fp32, for the whole process.

    By default torch rounds the inputs of convolutions, and not of matrix products, to ten bits (TF32) there.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def local_rank() -> int:
    """Return which of the processes that torchrun started on this machine this is; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))
