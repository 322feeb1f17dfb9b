"""Numbers inside kernels, and kernels where nothing can be written."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.kernels import floats
from bench.kernels.floats import as_array, exp_of_negative, kernel, like, to_float


@kernel
def _convert(given, found):  # type: ignore[no-untyped-def]
    for n in range(len(given)):
        found[n] = like(to_float(given[n]), found[n])


@kernel
def _exponential(given, found):  # type: ignore[no-untyped-def]
    for n in range(len(given)):
        found[n] = exp_of_negative(given[n])


def test_bfloat16_is_read_and_written_as_torch_does() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(5_000, generator=draw) * torch.logspace(-38, 37, 5_000)
    values = torch.cat([values, torch.tensor([0.0, -0.0, math.inf, -math.inf, 1.00390625, 1.01171875])])
    found = torch.empty_like(values, dtype=torch.bfloat16)
    _convert(as_array(values), as_array(found))
    assert torch.equal(found, values.to(torch.bfloat16))
    wide = torch.empty_like(values)
    _convert(as_array(found), as_array(wide))
    assert torch.equal(wide, found.float())


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_no_number_stays_no_number(bits: int) -> None:
    found = torch.zeros(1, dtype=torch.bfloat16)
    _convert(np.array([bits], np.uint32).view(np.float32), as_array(found))
    assert torch.isnan(found).all()


def test_exponential_is_right_to_the_last_digits() -> None:
    values = -np.concatenate([[0.0], np.logspace(-8, math.log10(86), 20_000)]).astype(np.float32)
    found = np.empty_like(values)
    _exponential(values, found)
    np.testing.assert_allclose(found, np.exp(values.astype(np.float64)), rtol=3.6e-7)
    far = np.array([-88, -1e4, -np.inf, np.nan], np.float32)
    found = np.empty_like(far)
    _exponential(far, found)
    assert (found[:3] < 2e-38).all() and (found[:3] >= 0).all() and np.isnan(found[3])


def test_kernel_is_compiled_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def njit(**options: Any) -> Any:
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'double': no locator available")
        return numba.njit(**options)

    def double(values):  # type: ignore[no-untyped-def]
        return 2 * values

    monkeypatch.setattr(floats, "njit", njit)
    assert kernel(double)(np.float32(3)) == 6
    assert [options.get("cache", False) for options in asked] == [True, False]


def test_kept_kernels_are_named_by_this_source() -> None:
    assert floats.OWN_DIGEST in _convert.py_func.__qualname__
    digest = hashlib.sha256(Path(floats.__file__).read_bytes()).hexdigest()
    assert digest.startswith(floats.OWN_DIGEST)


def test_kernels_step_aside_for_what_has_to_see_operations() -> None:
    assert floats.is_for_kernels(torch.zeros(1)) and not floats.is_for_kernels(torch.zeros(1, dtype=torch.float64))
    with FlopCounterMode(display=False):
        assert not floats.is_for_kernels(torch.zeros(1))


def test_functions_of_kernels_say_where_they_work() -> None:
    with pytest.raises(TypeError, match="inside a kernel"):
        to_float(np.uint16(1))
    with pytest.raises(TypeError, match="inside a kernel"):
        like(np.float32(1), np.uint16(1))
