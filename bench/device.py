"""Picks the device to compute on, sets the precision of its fp32 products, and how many threads the CPU has."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from bench.errors import ConfigError
from bench.machine import cores, describe_busy_cores, find_busy_cores, thread_settings


def pick_device(setting: str) -> torch.device:
    """Return the device for the setting `device` (auto, cpu or cuda); under torchrun, the GPU of this process.

    Raises: ConfigError if the setting is cuda and torch sees no GPU.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda, but torch sees no GPU here; use --set device=auto, or see `bench doctor`")
    return usable_device(setting)


def usable_device(setting: str) -> torch.device:
    """Return the device for the setting `device`, or the CPU if it names a GPU and torch sees none."""
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank())


def use_full_fp32() -> None:
    """Switch TF32 off for this process, so that fp32 products and convolutions on a GPU keep the full mantissa.

    By default torch rounds the inputs of convolutions, but not of matrix products, to a 10-bit mantissa (TF32).
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def local_rank() -> int:
    """Return this process's number among those that torchrun started on this machine; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def limit_threads() -> None:
    """Give torch no more threads than this process has cores, unless the user has set their number.

    torch goes by the affinity and does not know the quota of a container.
    """
    if not thread_settings(os.environ) and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


def warn_of_busy_cores(warn: Callable[[str], None]) -> None:
    """Warn if other jobs leave fewer cores free than torch will have threads."""
    limit_threads()
    if message := describe_busy_cores(torch.get_num_threads(), find_busy_cores(), os.cpu_count() or 1):
        warn(message)
