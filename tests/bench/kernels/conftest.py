"""Numbers of threads."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> int:
    """Set the threads of torch; every test begins with one (`tests/conftest.py`)."""
    torch.set_num_threads(request.param)
    return int(request.param)
