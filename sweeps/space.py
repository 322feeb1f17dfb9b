"""Search spaces: which settings a sweep varies and within which bounds, read from a TOML file.

The name of a parameter is the path of its setting, such as `train.lr`, in the file, on the command line, in Optuna, in
MLflow and in the report. A space varies only the encoder and its training, so that all trials are tested alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bench.config import assignment, flatten, format_setting, format_unknown_setting, parse_section, read_toml, resolve
from bench.errors import ConfigError
from bench.registry import format_unknown
from bench.settings import RunConfig, require

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

VARIABLE_SECTIONS = ("model.", "train.")
GRID = 32  # steps between the ends of a range, at which it is looked for the values that a preset allows
Scalar = bool | int | float | str
Value = Scalar | list[Any]


@dataclass(frozen=True)
class Parameter:
    """A range from `low` to `high` (of integers if both ends are integers), or a list of `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: tuple[Value, ...] | None = None

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return the values to be checked against the rules of the settings: both ends, or every choice."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        return self.low, self.high


@dataclass(frozen=True)
class Space:
    """The search space of a sweep."""

    preset: str
    """The preset from which trials start."""

    parameters: dict[str, Parameter]
    """The parameters that are varied, by the paths of their settings."""

    budget: dict[str, Value] = field(default_factory=dict)
    """Settings that make a trial cheaper than a full training."""


@dataclass(frozen=True)
class Basis:
    """What the trials of a sweep share: the encoder and the settings of the user, of which a trial varies some."""

    model: str
    encoder: str
    plugin: ModuleType
    preset: str
    dataset: str | None
    overrides: tuple[str, ...] = ()

    def config(self, *layers: Mapping[str, Value]) -> RunConfig:
        """Return the settings of a run, with `layers` of settings by path on top of these. Raises: ConfigError."""
        added = [assignment(path, value) for layer in layers for path, value in layer.items()]
        return resolve(
            self.encoder, self.plugin, self.preset, dataset=self.dataset, overrides=(*self.overrides, *added)
        )


def space_file(encoder: str) -> Path:
    """Return the file of the search space supplied for an encoder. Raises: ConfigError if there is none."""
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
    values = read_toml(path)
    known = ["preset", "budget", "space"]
    for name in values:
        if name not in known:
            raise ConfigError(f"{path}: {format_unknown('part of a space', name, known)}")
    for name in ("budget", "space"):
        require(
            isinstance(values.get(name, {}), dict), f"{path}: [{name}] must be a group of settings", values.get(name)
        )
    require(bool(values.get("space")), f"{path}: [space] must name at least one parameter", values.get("space"))
    parameters = {name: _parameter(path, name, fields) for name, fields in values["space"].items()}
    return Space(str(values.get("preset", "small")), parameters, dict(values.get("budget", {})))


def read_space(values: Any) -> Space:
    """Return a space from the plain values of JSON, as stored with a study or sent to a worker."""
    parameters = {
        name: Parameter(**fields | {"choices": fields["choices"] and tuple(fields["choices"])})
        for name, fields in values["parameters"].items()
    }
    return Space(values["preset"], parameters, values["budget"])


def check(space: Space, basis: Basis, path: Path) -> None:
    """Check the settings at both ends of every range and at every choice, before anything is trained.

    Raises: ConfigError naming the file at `path`, the parameter and the broken rule.
    """
    known = [name for name in flatten(basis.config()) if name.startswith(VARIABLE_SECTIONS)]
    for name in (*space.budget, *space.parameters):
        if not name.startswith(VARIABLE_SECTIONS):
            raise ConfigError(
                f"{path}: {name} cannot be varied; name settings of {' or '.join(f'{s}*' for s in VARIABLE_SECTIONS)} "
                "only, so that all trials are tested alike"
            )
        if name not in known:
            raise ConfigError(f"{path}: {format_unknown_setting(name, known)}")
    for name, parameter in space.parameters.items():
        for value in parameter.ends:
            try:
                basis.config(space.budget, {name: value})
            except ConfigError as error:
                raise ConfigError(f"{path}: {name} = {value}: {error}") from error


def narrow(space: Space, basis: Basis) -> tuple[Space, list[str]]:
    """Return the part of a space that the settings of `basis` allow, and a sentence on each parameter that changes.

    The spaces of `sweeps/` are written for one preset. Under another, a bound may break a rule: that range ends at the
    last value that keeps it, both in a trial and in the full training of a promotion. A parameter without two such
    values is left out.
    """
    parameters, sentences = {}, []
    for name, parameter in space.parameters.items():
        if all(_is_allowed(space, basis, {name: value}) for value in parameter.ends):
            parameters[name] = parameter
            continue
        kept = [value for value in list_values(parameter) if _is_allowed(space, basis, {name: value})]
        shown = ", ".join(map(format_setting, kept))
        if len(kept) < 2:
            sentences.append(
                f"{name} is not varied: the preset {basis.preset} allows {shown and 'only '}{shown or 'no value'}"
            )
        elif parameter.choices is not None:
            parameters[name] = replace(parameter, choices=tuple(kept))
            sentences.append(f"{name} is varied over {shown} only: the preset {basis.preset} allows no other choice")
        else:
            parameters[name] = between = replace(parameter, low=_as_number(kept[0]), high=_as_number(kept[-1]))
            sentences.append(
                f"{name} is varied from {between.low:g} to {between.high:g} instead of {parameter.low:g} to "
                f"{parameter.high:g}: the preset {basis.preset} allows no more"
            )
    if not parameters:
        raise ConfigError(f"the preset {basis.preset} allows no setting of this space to vary; write one with --space")
    return replace(space, parameters=parameters), sentences


def list_values(parameter: Parameter) -> list[Value]:
    """Return the choices of a parameter, or values from one end of its range to the other: all integers, if few."""
    low, high = parameter.low, parameter.high
    if parameter.choices is not None:
        return list(parameter.choices)
    assert low is not None and high is not None
    if isinstance(low, int) and isinstance(high, int) and high - low < GRID:
        return list(range(low, high + 1, int(parameter.step or 1)))
    shares = [i / GRID for i in range(GRID + 1)]
    inner = [low * (high / low) ** share if parameter.log else low + (high - low) * share for share in shares[1:-1]]
    if isinstance(low, int) and isinstance(high, int):
        inner = [round(value) for value in inner]
    return [low, *(float(f"{value:.3g}") if isinstance(value, float) else value for value in inner), high]


def _is_allowed(space: Space, basis: Basis, values: Mapping[str, Value]) -> bool:
    try:
        basis.config(space.budget, values)
        basis.config(values)
    except ConfigError:
        return False
    return True


def _as_number(value: Value) -> int | float:
    assert isinstance(value, int | float)
    return value


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the space as Optuna's distributions. A choice that is a list is represented by its JSON text."""
    return {name: _distribution(parameter) for name, parameter in space.parameters.items()}


def to_settings(space: Space, params: Mapping[str, Any]) -> dict[str, Value]:
    """Return the parameters of a trial as settings; choices that are lists are restored from their text."""
    return {name: _map_list_choices(space.parameters[name]).get(value, value) for name, value in params.items()}


def to_params(space: Space, config: RunConfig) -> dict[str, Any]:
    """Return the parameters of a trial with these settings; values outside the space are omitted."""
    params: dict[str, Any] = {}
    flat = flatten(config)
    for name, distribution in distributions(space).items():
        value = json.loads(json.dumps(flat[name]))  # tuples become lists, as in TOML
        value = next(
            (text for text, choice in _map_list_choices(space.parameters[name]).items() if choice == value), value
        )
        if _contains(distribution, value):
            params[name] = value
    return params


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a line for each difference between two nested values."""
    lines = []
    for name in dict.fromkeys((*old, *new)):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += differences(before, now, f"{prefix}{name}: ")
        elif before != now:
            lines.append(f"{prefix}{name} was {_format_value(before)}, is {_format_value(now)}")
    return lines


def _format_value(value: object) -> str:
    return "absent" if value is None else json.dumps(value)


def _parameter(path: Path, name: str, fields: object) -> Parameter:
    where = f"{path}: {name}"
    parameter: Parameter = parse_section(where, Parameter, fields)
    _check_parameter(where, parameter, fields)
    return parameter


def _check_parameter(where: str, parameter: Parameter, fields: object) -> None:
    low, high, choices = parameter.low, parameter.high, parameter.choices
    if choices is not None:
        alone = low is None and high is None and parameter.step is None and not parameter.log
        require(alone, f"{where} has choices or a range, not both", fields)
        require(
            len({json.dumps(c) for c in choices}) == len(choices) >= 2,
            f"{where} needs at least 2 different choices",
            choices,
        )
        return
    if low is None or high is None:
        raise ConfigError(f"{where} needs both low and high, or choices, got {fields}")
    require(low < high, f"{where} is empty: low must be below high", f"low = {low}, high = {high}")
    require(not parameter.log or low > 0, f"{where}: a range on a log scale must begin above 0", low)
    require(parameter.step is None or parameter.step > 0, f"{where}: step must be above 0", parameter.step)
    require(parameter.step is None or not parameter.log, f"{where} has a step or a log scale, not both", fields)


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
    """Return the choices that are lists, by their JSON text."""
    return {json.dumps(choice): choice for choice in parameter.choices or () if isinstance(choice, list)}


def _text(choice: Value) -> Scalar:
    return json.dumps(choice) if isinstance(choice, list) else choice


def _contains(distribution: BaseDistribution, value: object) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):  # raised by Optuna for a value of another type
        return False
