"""Reads the settings of a run: layers, presets, files and overrides become one checked RunConfig.

Later layers win: the defaults of `bench.settings`, the preset in `bench/presets.toml`, the preset in the encoder's own
TOML file, the user's `--config` files, `--set path=value`. Names and types are checked here, ranges by the classes
themselves, all before any work starts.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from bench.errors import ConfigError
from bench.registry import format_unknown, load
from bench.settings import AlignConfig, DataConfig, EvalConfig, RunConfig, TrainConfig, require

PRESETS = Path(__file__).with_name("presets.toml")


def resolve(
    encoder: str,
    plugin: ModuleType,
    preset: str,
    *,
    dataset: str | None = None,
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
) -> RunConfig:
    """Return the whole configuration of a run, every layer applied and checked.

    Raises: ConfigError naming the dotted path, the rule and the nearest right name.
    """
    own: dict[str, Any] = {}
    for layer in (*(_toml(f) for f in files), *(_override(o) for o in overrides)):
        own = _merge(own, layer)
    of_preset = _preset(preset, plugin)
    if isinstance(own.get("align"), dict) and "sets" in own["align"]:
        of_preset.pop("pairs", None)  # they are settings of the preset's own sets
    merged = _merge(of_preset, own)
    if dataset is not None:
        merged = _merge(merged, {"data": {"dataset": dataset}})
    return _build_config(encoder, plugin, preset, merged)


def _build_config(encoder: str, plugin: ModuleType, preset: str, merged: dict[str, Any]) -> RunConfig:
    kinds = get_type_hints(RunConfig)
    known = sorted(set(kinds) - {"encoder", "preset"})  # these two are named on the command line
    for name in merged:
        if name not in known:
            raise ConfigError(format_unknown("setting", name, known))
    tests = parse_section("eval", EvalConfig, merged.pop("eval", {}))
    align = parse_section("align", AlignConfig, merged.pop("align", {}))
    data = parse_section("data", DataConfig, merged.pop("data", {}))
    music = load("dataset", data.dataset)
    require(music.KIND == "music", "data.dataset must hold music", f"{data.dataset!r}, which holds {music.KIND}")
    return RunConfig(
        encoder=encoder,
        preset=preset,
        model=parse_section("model", plugin.Config, merged.pop("model", {})),
        music=parse_section("music", music.Config, merged.pop("music", {})),
        data=data,
        train=parse_section("train", TrainConfig, merged.pop("train", {})),
        eval=tests,
        index=_build_plugin_configs("index", "eval.indexes", tests.indexes, merged.pop("index", {})),
        align=align,
        pairs=_build_plugin_configs("pairs", "align.sets", align.sets, merged.pop("pairs", {})),
        aligner=_build_plugin_configs("aligner", "align.aligners", align.aligners, merged.pop("aligner", {})),
        **{name: _validate(name, kinds[name], value) for name, value in merged.items()},
    )


def _build_plugin_configs(group: str, where: str, names: tuple[str, ...], values: object) -> dict[str, Any]:
    """Return the Config of each plug-in that `where` names, with its own preset where a colon adds one."""
    if not isinstance(values, dict):
        raise ConfigError(f"{group} is a group of settings, one for each name in {where}; set one of those")
    known = [format_plugin_name(name) for name in names]
    for name in values:
        if name not in (*known, *(each.partition(":")[0] for each in known)):
            raise ConfigError(format_unknown(f"{group} in {where}", name, known))
    return {
        format_plugin_name(name): _build_plugin_config(
            group,
            name,
            values.get(format_plugin_name(name), values.get(format_plugin_name(name.partition(":")[0]), {})),
        )
        for name in names
    }


def format_plugin_name(name: str) -> str:
    """Return how settings, tables and metrics call a plug-in: one given by its path by the name of its file."""
    plain, colon, preset = name.partition(":")
    short = Path(plain).stem.replace("_", "-") if plain.endswith(".py") else plain
    return f"{short}{colon}{preset}"


def _build_plugin_config(group: str, name: str, values: object) -> Any:
    plain, _, preset = name.partition(":")
    plugin = load("dataset" if group == "pairs" else group, plain)
    if group == "pairs":
        require(plugin.KIND == "pairs", "align.sets must hold pairs of recordings", f"{plain!r}, with {plugin.KIND}")
    if not preset:
        return parse_section(f"{group}.{name}", plugin.Config, values)
    presets = plugin.presets() if hasattr(plugin, "presets") else {}
    if preset not in presets:
        raise ConfigError(format_unknown(f"preset of the {group} {plain!r}", preset, list(presets)))
    _check_names(f"{group}.{plain}", plugin.Config, values)
    assert isinstance(values, dict)
    return parse_section(f"{group}.{plain}", plugin.Config, dataclasses.asdict(presets[preset]) | values)


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Return {dotted path: value} of a configuration, in the order of its fields."""
    if dataclasses.is_dataclass(config):
        config = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.")
    return flat


def presets() -> list[str]:
    """Return the names of the presets that every encoder has."""
    return list(_toml(PRESETS))


def _preset(name: str, plugin: ModuleType) -> dict[str, Any]:
    shared = _toml(PRESETS)
    beside = Path(str(plugin.__file__)).with_suffix(".toml")
    own = _toml(beside) if beside.is_file() else {}
    if name not in shared and name not in own:
        raise ConfigError(format_unknown("preset", name, sorted({*shared, *own})))
    return _merge(shared.get(name, {}), own.get(name, {}))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def format_setting(value: object) -> str:
    """Return a setting to be read: a sampler draws seventeen digits, of which three matter."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def assignment(path: str, value: object) -> str:
    """Return a setting as `--set` wants it: JSON's numbers, texts, truth values and lists are TOML's too."""
    return f"{path}={json.dumps(value)}"


def _override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set wants path=value such as train.lr=3e-4, got {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string, as in --set train.schedule=cyclic
    for part in reversed(path.split(".")):
        parsed = {part: parsed}
    assert isinstance(parsed, dict)
    return parsed


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def restore_config(
    encoder: str, plugin: ModuleType, flat: Mapping[str, Any], overrides: Iterable[str] = ()
) -> RunConfig:
    """Return the configuration whose `flatten` is given, with changes, checked anew: that of a run that was kept.

    Raises: ConfigError if this version has other settings than the one that kept it.
    """
    values: dict[str, Any] = {}
    for name, value in flat.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        values = _merge(values, value)
    for override in overrides:
        values = _merge(values, _override(override))
    preset = values.pop("preset")
    values.pop("encoder")
    return _build_config(encoder, plugin, preset, values)


def parse_section(section: str, kind: type, values: object) -> Any:
    """Return a section's dataclass from plain values. Raises: ConfigError naming the dotted path and the rule."""
    _check_names(section, kind, values)
    return _validate(section, kind, values)


def _check_names(section: str, kind: type, values: object) -> None:
    if not isinstance(values, dict):
        raise ConfigError(
            f"{section} is a group of settings; set one of them, such as {section}.{dataclasses.fields(kind)[0].name}"
        )
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise ConfigError(
                format_unknown("setting", f"{section}.{name}", [f"{section}.{known}" for known in fields])
            )
        inner = fields[name].default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            _check_names(f"{section}.{name}", inner, values[name])


def _validate(path: str, kind: Any, value: object) -> Any:
    try:
        # As JSON, strictly: a list may be a tuple, but no text is a number and no truth value is one.
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str, allow_nan=False), strict=True)
    except ValueError as error:
        if not isinstance(error, ValidationError):
            raise ConfigError(f"a number in {path} is not finite: {_infinite(value)}") from error
        first = error.errors()[0]
        dotted = ".".join([path, *(str(part) for part in first["loc"])])
        raise ConfigError(f"{dotted}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}") from error


def _infinite(value: object) -> str:
    bad = {n: v for n, v in value.items() if str(v) in ("inf", "-inf", "nan")} if isinstance(value, dict) else {}
    return ", ".join(f"{name} = {number}" for name, number in bad.items()) or str(value)
