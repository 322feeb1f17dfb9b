"""The errors a user meets, and what the command answers with."""

from __future__ import annotations

import pytest

from bench.errors import BenchError, ConfigError, DataError, PluginError, StoreError


@pytest.mark.parametrize("error", [ConfigError, DataError, PluginError])
def test_mistake_of_the_user_exits_with_2(error: type[BenchError]) -> None:
    assert error.exit_code == 2


@pytest.mark.parametrize("error", [BenchError, StoreError])
def test_failure_of_ours_exits_with_1(error: type[BenchError]) -> None:
    assert error.exit_code == 1


def test_one_root_catches_all() -> None:
    assert all(issubclass(error, BenchError) for error in (ConfigError, DataError, PluginError, StoreError))
