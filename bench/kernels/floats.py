"""Numbers inside compiled kernels: bfloat16 is read and written as bits, and computed with as float32.

The kernels beside this file are compiled by Numba when they are first called, and kept compiled beside their own source
file. Numba compiles them anew when that file changes; that they are compiled anew when this one does, `kernel` sees to.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# Sums may be reordered, so that they use all lanes of the processor; infinities and NaN keep their meaning.
FAST = {"reassoc", "contract", "nsz", "arcp"}
OWN_DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
NAN_BITS = np.uint32(0x7FC0)  # a bfloat16 that is no number
LEAST_EXPONENT = -87.0  # e to the power of this is the smallest normal float32


def kernel(function: Any, fastmath: set[str] = FAST) -> Any:
    """Return a function compiled for the types that it is called with, which releases the GIL.

    What is compiled is kept beside the source, or in the user's cache; where neither can be written, for this process.
    """
    function.__qualname__ += f"_{OWN_DIGEST}"  # by which Numba names the file that it keeps
    try:
        return njit(nogil=True, cache=True, fastmath=fastmath)(function)
    except RuntimeError:  # Numba's, where no place can be written
        return njit(nogil=True, fastmath=fastmath)(function)


def is_for_kernels(tensor: Tensor) -> bool:
    """Return whether kernels can compute with a tensor: on the CPU, in float32 or bfloat16.

    They step aside for what has to see every operation of torch and cannot look into them: torch.compile, and modes of
    dispatch such as the counter of operations by which `bench speed` reckons its floors.
    """
    known = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16)
    return known and not torch.compiler.is_compiling() and not is_in_torch_dispatch_mode()


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a contiguous tensor on the CPU as an array that shares its memory; bfloat16 as uint16 bits."""
    assert tensor.is_contiguous()
    return (tensor.detach().view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor.detach()).numpy()


@intrinsic
def float_of_bits(context: Any, bits: Any) -> Any:
    """Return the float32 that has these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def bits_of_float(context: Any, value: Any) -> Any:
    """Return the 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def to_float(value: Any) -> Any:
    """Return a float32, or a bfloat16 given by its bits, as float32; only inside a kernel."""
    raise TypeError("to_float works inside a kernel; elsewhere use Tensor.float()")


@overload(to_float, inline="always", strict=False)
def _to_float(value: Any) -> Any:
    if value == types.uint16:
        return lambda value: float_of_bits(np.uint32(value) << np.uint32(16))
    return lambda value: value


def like(value: Any, example: Any) -> Any:
    """Return a float32 as the number format of `example`: itself, or the bits of the nearest bfloat16, ties to even.

    Only inside a kernel.
    """
    raise TypeError("like works inside a kernel; elsewhere use Tensor.to(example.dtype)")


@overload(like, inline="always", strict=False)
def _like(value: Any, example: Any) -> Any:
    if example == types.uint16:
        return lambda value, example: _nearest_bfloat16(value)
    return lambda value, example: value


@njit(inline="always")
def _nearest_bfloat16(value: Any) -> Any:
    bits = bits_of_float(value)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    nearest = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    # Rounding would carry some NaN over into the sign.
    return np.uint16(nearest if value == value else NAN_BITS)


@njit(inline="always", fastmath=FAST)
def exp_of_negative(value: Any) -> Any:
    """Return e to the power of a float32 that is at most 0, within 3 units in the last place; NaN of NaN.

    Source: the range reduction and polynomial of Cephes (Moshier), expf.
    """
    # Comparisons of NaN are false: written so, it stays NaN.
    value = np.float32(LEAST_EXPONENT) if value < np.float32(LEAST_EXPONENT) else value
    whole = np.floor(value * np.float32(1.4426950408889634) + np.float32(0.5))
    rest = value - whole * np.float32(0.693359375) - whole * np.float32(-2.12194440e-4)
    sum_ = np.float32(1.9875691500e-4) * rest + np.float32(1.3981999507e-3)
    sum_ = sum_ * rest + np.float32(8.3334519073e-3)
    sum_ = sum_ * rest + np.float32(4.1665795894e-2)
    sum_ = sum_ * rest + np.float32(1.6666665459e-1)
    sum_ = sum_ * rest + np.float32(5.0000001201e-1)
    power = float_of_bits(np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23))
    return (sum_ * rest * rest + rest + np.float32(1.0)) * power
