"""Search spaces: which settings a sweep varies, within which bounds, from a TOML file beside this one.

A parameter is called by its config path, so that it is the same word in the file, on the command line, in Optuna,
in MLflow and in the report. A space varies the encoder and its training alone: what is tested stays what it is.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bench.config import assignment, flatten, format_unknown_setting, parse_section, resolve
from bench.errors import ConfigError
from bench.registry import format_unknown
from bench.settings import RunConfig, require

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

VARIABLE_SECTIONS = ("model.", "train.")
Scalar = bool | int | float | str
Value = Scalar | list[Any]


@dataclass(frozen=True)
class Parameter:
    """Either a range from `low` to `high`, whole numbers where both are, or a list of `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: tuple[Value, ...] | None = None

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return the values at which a rule of the settings may be broken: both ends, or every choice."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        return self.low, self.high


@dataclass(frozen=True)
class Space:
    """What is varied, from which preset, and which settings make a trial cheaper than a full training."""

    preset: str
    parameters: dict[str, Parameter]
    budget: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Basis:
    """What the trials of a sweep share: the encoder and the user's own settings, of which a trial changes some."""

    model: str
    encoder: str
    plugin: ModuleType
    preset: str
    dataset: str | None
    overrides: tuple[str, ...] = ()

    def config(self, *layers: Mapping[str, Value]) -> RunConfig:
        """Return the settings of a run with further ones on top, by their paths. Raises: ConfigError."""
        later = [assignment(path, value) for layer in layers for path, value in layer.items()]
        return resolve(
            self.encoder, self.plugin, self.preset, dataset=self.dataset, overrides=(*self.overrides, *later)
        )


def space_file(encoder: str) -> Path:
    """Return the file of the space that comes with an encoder. Raises: ConfigError if none does."""
    folder = Path(__file__).parent
    path = folder / f"{encoder.replace('-', '_')}.toml"
    if not path.is_file():
        known = sorted(p.stem.replace("_", "-") for p in folder.glob("*.toml"))
        raise ConfigError(f"{format_unknown('search space', encoder, known)}; write one and name it with --space FILE")
    return path


def load_space(path: Path) -> Space:
    """Return the space in a TOML file: `preset`, [budget] and [space], whose keys are quoted config paths.

    Raises: ConfigError naming the file, the parameter and the rule.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a TOML file as --space") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    known = ["preset", "budget", "space"]
    for name in values:
        if name not in known:
            raise ConfigError(f"{path}: {format_unknown('part of a space', name, known)}")
    require(bool(values.get("space")), f"{path}: [space] must name at least one parameter", values.get("space"))
    parameters = {name: _parameter(path, name, given) for name, given in values["space"].items()}
    return Space(str(values.get("preset", "small")), parameters, dict(values.get("budget", {})))


def read_space(values: Any) -> Space:
    """Return a space from plain values, as it was kept or sent."""
    parameters = {
        name: Parameter(**given | {"choices": given["choices"] and tuple(given["choices"])})
        for name, given in values["parameters"].items()
    }
    return Space(values["preset"], parameters, values["budget"])


def check(space: Space, basis: Basis, where: Path) -> None:
    """Resolve the settings at both ends of every range and at every choice, as nothing is trained yet.

    Raises: ConfigError naming the file, the parameter and the broken rule.
    """
    known = [name for name in flatten(basis.config()) if name.startswith(VARIABLE_SECTIONS)]
    for name in (*space.budget, *space.parameters):
        if not name.startswith(VARIABLE_SECTIONS):
            raise ConfigError(
                f"{where}: {name} cannot be varied, only settings of {' and '.join(VARIABLE_SECTIONS)}*: the test stays"
            )
        if name not in known:
            raise ConfigError(f"{where}: {format_unknown_setting(name, known)}")
    for name, parameter in space.parameters.items():
        for value in parameter.ends:
            try:
                basis.config(space.budget, {name: value})
            except ConfigError as error:
                raise ConfigError(f"{where}: {name} = {value}: {error}") from error


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the space in Optuna's words. A choice that is a list is called by its text."""
    return {name: _distribution(parameter) for name, parameter in space.parameters.items()}


def to_settings(space: Space, params: Mapping[str, Any]) -> dict[str, Value]:
    """Return a trial's parameters as settings, with the choices that are lists put back."""
    return {name: _map_list_choices(space.parameters[name]).get(value, value) for name, value in params.items()}


def to_params(space: Space, config: RunConfig) -> dict[str, Any]:
    """Return the parameters of the trial that has these settings, as far as the space holds them."""
    found: dict[str, Any] = {}
    flat = flatten(config)
    for name, distribution in distributions(space).items():
        value = json.loads(json.dumps(flat[name]))  # as TOML has it: a tuple is a list
        called = next(
            (text for text, choice in _map_list_choices(space.parameters[name]).items() if choice == value), value
        )
        if _holds(distribution, called):
            found[name] = called
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a line for everything in which two nested values differ."""
    lines = []
    for name in dict.fromkeys((*old, *new)):
        was, now = old.get(name), new.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            lines += differences(was, now, f"{prefix}{name}: ")
        elif was != now:
            lines.append(f"{prefix}{name} was {_format_value(was)}, is {_format_value(now)}")
    return lines


def _format_value(value: object) -> str:
    return "not there" if value is None else json.dumps(value)


def _parameter(path: Path, name: str, given: object) -> Parameter:
    where = f"{path}: {name}"
    found: Parameter = parse_section(where, Parameter, given)
    _check_parameter(where, found, given)
    return found


def _check_parameter(where: str, parameter: Parameter, given: object) -> None:
    low, high, choices = parameter.low, parameter.high, parameter.choices
    if choices is not None:
        alone = low is None and high is None and parameter.step is None and not parameter.log
        require(alone, f"{where} has choices or a range, not both", given)
        require(len({json.dumps(c) for c in choices}) == len(choices) >= 2, f"{where} needs 2 choices or more", choices)
        return
    if low is None or high is None:
        raise ConfigError(f"{where} needs both low and high, or choices, got {given}")
    require(low < high, f"{where} is empty: low must be below high", f"low = {low}, high = {high}")
    require(not parameter.log or low > 0, f"{where}: a range on a log scale must begin above 0", low)
    require(parameter.step is None or parameter.step > 0, f"{where}: step must be above 0", parameter.step)
    require(parameter.step is None or not parameter.log, f"{where} has a step or a log scale, not both", given)


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high = parameter.low, parameter.high
    if parameter.choices is not None:
        return CategoricalDistribution([_text(choice) for choice in parameter.choices])
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=parameter.log, step=int(parameter.step or 1))
    assert low is not None and high is not None
    return FloatDistribution(low, high, log=parameter.log, step=parameter.step)


def _map_list_choices(parameter: Parameter) -> dict[Any, Value]:
    """Return each choice that is a list by its text."""
    return {json.dumps(choice): choice for choice in parameter.choices or () if isinstance(choice, list)}


def _text(choice: Value) -> Scalar:
    return json.dumps(choice) if isinstance(choice, list) else choice


def _holds(distribution: BaseDistribution, value: object) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):  # Optuna's answers to a value of another kind
        return False
