"""The pins: every requirement has one, and it is a version that anybody's index can offer."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def requirements() -> list[Requirement]:
    """Return every requirement of pyproject.toml: to build, to run, extras and groups."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [*content["project"]["optional-dependencies"].values(), *content["dependency-groups"].values()]
    texts = [text for group in groups for text in group if isinstance(text, str)]
    return [Requirement(t) for t in (*content["build-system"]["requires"], *content["project"]["dependencies"], *texts)]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_requirement_has_one_pin_that_it_allows(requirement: Requirement) -> None:
    found = [pin for pin in pins() if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
    assert len(found) == 1
    assert requirement.specifier.contains(next(iter(found[0].specifier)).version)


def test_pins_are_exact_public_versions_each_name_once() -> None:
    names = [canonicalize_name(pin.name) for pin in pins()]
    assert len(set(names)) == len(names)
    for pin in pins():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and not pin.url and not pin.marker, f"{pin} is no plain pin"
        assert Version(specifier.version).local is None, f"{pin} is a build that the package index does not have"
