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
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from bench.errors import ConfigError
from bench.registry import format_unknown, load
from bench.settings import AlignConfig, DataConfig, EvalConfig, RunConfig, TrainConfig, require

SystemKind = Literal["encoder", "matcher"]
NO_TOML = (ValueError, RecursionError)  # a number of thousands of digits, or groups that deep, are no TOMLDecodeError
PRESETS = Path(__file__).with_name("presets.toml")
# Names of earlier versions, and of now. `--set` and files are answered with the new name, finished runs translated.
RENAMED_SETTINGS = {"train.twins_per_track": "train.hard_negatives_per_track"}
MATCHER_GROUPS = ("model", "music", "seed", "data", "eval")  # a matcher has no training, no index and no aligner
RENAMED_PRESETS = {
    "report-1": "biodcase-1",
    "report-4": "biodcase-4",
    "fingerprint-global:report-1": "fingerprint-global:biodcase-1",
    "fingerprint-global:report-4": "fingerprint-global:biodcase-4",
    "fingerprint-median-regress:report-2": "fingerprint-median-regress:biodcase-2",
}


def resolve(
    system: str,
    plugin: ModuleType,
    preset: str,
    *,
    dataset: str | None = None,
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
    kind: SystemKind = "encoder",
) -> RunConfig:
    """Return the whole configuration of a run, every layer applied and checked.

    `system` is the name of the encoder, or of the matcher with its own preset (`landmarks:audfprint`).
    Raises: ConfigError naming the dotted path, the rule and the nearest right name.
    """
    by_user = read_user_settings(files, overrides)
    by_preset = _read_preset(preset, plugin)
    if isinstance(by_user.get("align"), dict) and "sets" in by_user["align"]:
        by_preset.pop("pairs", None)  # they are settings of the preset's own sets
    if kind == "matcher":
        by_preset = {name: group for name, group in by_preset.items() if name in MATCHER_GROUPS}
        by_preset["model"] = dataclasses.asdict(_pick_preset("matcher", plugin, system))
    merged = _merge(by_preset, by_user)
    if dataset is not None:
        merged = _merge(merged, {"data": {"dataset": dataset}})
    return _build_config(system, plugin, preset, merged, kind)


def flatten_run(config: RunConfig) -> dict[str, Any]:
    """Return {dotted path: value} of the settings that a run has a use for, in the order of its fields."""
    flat = flatten(config)
    if not config.matcher:
        return {path: value for path, value in flat.items() if path != "matcher"}
    kept = ("matcher", "preset", *MATCHER_GROUPS)
    return {path: value for path, value in flat.items() if path.split(".")[0] in kept}


def read_user_settings(files: Iterable[Path], overrides: Iterable[str]) -> dict[str, Any]:
    """Return what the user's files and `--set` say, in groups. Raises: ConfigError for what cannot be read."""
    by_user: dict[str, Any] = {}
    for layer in (*(read_toml(f) for f in files), *(_parse_override(o) for o in overrides)):
        by_user = _merge(by_user, layer)
    return by_user


def restore_config(
    system: str, plugin: ModuleType, flat: Mapping[str, Any], overrides: Iterable[str] = ()
) -> RunConfig:
    """Return the configuration of a finished run, checked anew: `flat` is its `flatten_run`, `overrides` are changes.

    Settings and presets that an older version called otherwise are translated (`translate_settings`).
    Raises: ConfigError if this version lacks one of the settings.
    """
    values: dict[str, Any] = {}
    for path, value in translate_settings(flat, plugin).items():
        values = _merge(values, _nest(path, value))
    for override in overrides:
        values = _merge(values, _parse_override(override))
    preset = values.pop("preset")
    values.pop("encoder", None)
    kind: SystemKind = "matcher" if values.pop("matcher", "") else "encoder"
    return _build_config(system, plugin, preset, values, kind)


def translate_settings(flat: Mapping[str, Any], plugin: ModuleType) -> dict[str, Any]:
    """Return the settings of a finished run of the encoder `plugin`, with every old name replaced by the new one."""
    translated: dict[str, Any] = {}
    for path, value in flat.items():
        parts = path.split(".")
        if parts[0] == "aligner" and len(parts) > 1:
            parts[1] = RENAMED_PRESETS.get(parts[1], parts[1])
        path = ".".join(parts)
        translated[RENAMED_SETTINGS.get(path, path)] = value
    if "align.aligners" in flat:
        translated["align.aligners"] = [RENAMED_PRESETS.get(name, name) for name in flat["align.aligners"]]
    if flat.get("preset") in RENAMED_PRESETS and flat["preset"] not in _read_own_presets(plugin):
        translated["preset"] = RENAMED_PRESETS[flat["preset"]]
    return translated


def _build_config(system: str, plugin: ModuleType, preset: str, merged: dict[str, Any], kind: SystemKind) -> RunConfig:
    kinds = get_type_hints(RunConfig)
    known = sorted(set(kinds) - {"encoder", "matcher", "preset"})  # these are named on the command line
    if kind == "matcher":
        known = sorted(MATCHER_GROUPS)
    for name in merged:
        if name not in known:
            raise ConfigError(format_unknown("setting" if kind == "encoder" else "setting of a matcher", name, known))
    tests = parse_section("eval", EvalConfig, merged.pop("eval", {}))
    align = parse_section("align", AlignConfig, merged.pop("align", {}))
    data = parse_section("data", DataConfig, merged.pop("data", {}))
    music = load("dataset", data.dataset)
    require(music.KIND == "music", "data.dataset must hold music", f"{data.dataset!r}, which holds {music.KIND}")
    return RunConfig(
        encoder=system if kind == "encoder" else "",
        matcher=system if kind == "matcher" else "",
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
    """Return the Config of each plug-in that `where` lists, by the name that settings call it.

    Settings under a name with its preset win over those under the plain name, which are for every preset of it.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{group} is a group of settings, one for each name in {where}; set one of those")
    known = [format_plugin_name(name) for name in names]
    require(len(set(known)) == len(known), f"{where} must not give two plug-ins the same name; rename a file", names)
    plain = [name.partition(":")[0] for name in known]
    for name in values:
        if name not in (*known, *plain):
            renamed = _format_renamed("preset", name, RENAMED_PRESETS)
            raise ConfigError(renamed or format_unknown(f"{group} in {where}", name, known))
    return {
        full: _build_plugin_config(group, name, values.get(full, values.get(short, {})))
        for name, full, short in zip(names, known, plain, strict=True)
    }


def _build_plugin_config(group: str, name: str, values: object) -> Any:
    plugin, config = load_plugin("dataset" if group == "pairs" else group, name)
    plain, _, preset = name.partition(":")
    if group == "pairs":
        require(plugin.KIND == "pairs", "align.sets must hold pairs of recordings", f"{plain!r}, with {plugin.KIND}")
    section = f"{group}.{plain}"
    _check_names(section, plugin.Config, values)
    assert isinstance(values, dict)
    return _validate(section, plugin.Config, (dataclasses.asdict(config) if preset else {}) | values)


def load_plugin(kind: str, name: str) -> tuple[ModuleType, Any]:
    """Return a plug-in and its Config: that of the preset after a colon (`gcc-phat:aru`), or the defaults without one.

    Raises: PluginError if there is no such plug-in, ConfigError if it has no such preset.
    """
    plugin = load(kind, name.partition(":")[0])
    return plugin, _pick_preset(kind, plugin, name)


def _pick_preset(kind: str, plugin: ModuleType, name: str) -> Any:
    """Return the Config of the preset after the colon in a plug-in's name, or the defaults. Raises: ConfigError."""
    plain, _, preset = name.partition(":")
    if not preset:
        return plugin.Config()
    known = plugin.presets() if hasattr(plugin, "presets") else {}
    if preset not in known:
        renamed = _format_renamed("preset", name, RENAMED_PRESETS)
        raise ConfigError(renamed or format_unknown(f"preset of the {kind} {plain!r}", preset, list(known)))
    return known[preset]


def format_plugin_name(name: str) -> str:
    """Return the name by which settings, tables and metrics call a plug-in: for a path, the name of its file."""
    plain, colon, preset = name.partition(":")
    short = Path(plain).stem.replace("_", "-") if plain.endswith(".py") else plain
    return f"{short}{colon}{preset}"


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


def _nest(path: str, value: Any) -> dict[str, Any]:
    """Return {"train": {"lr": value}} for the path `train.lr`."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def presets() -> list[str]:
    """Return the names of the presets that every encoder has."""
    return list(read_toml(PRESETS))


def _read_preset(name: str, plugin: ModuleType) -> dict[str, Any]:
    """Return the settings of a preset: those that all encoders share, and over them the encoder's own."""
    shared, own = read_toml(PRESETS), _read_own_presets(plugin)
    if name not in shared and name not in own:
        renamed = _format_renamed("preset", name, RENAMED_PRESETS)
        raise ConfigError(renamed or format_unknown("preset", name, sorted({*shared, *own})))
    return _merge(shared.get(name, {}), own.get(name, {}))


def _read_own_presets(plugin: ModuleType) -> dict[str, Any]:
    beside = Path(str(plugin.__file__)).with_suffix(".toml")
    return read_toml(beside) if beside.is_file() else {}


def read_toml(path: Path) -> dict[str, Any]:
    """Return what is in a TOML file. Raises: ConfigError naming the file if it cannot be read or is no TOML."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a file; give a TOML file")  # a pipe would be waited for
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a TOML file") from error
    except NO_TOML as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def format_setting(value: object) -> str:
    """Return a value as tables show it: a sampler draws numbers of seventeen digits, of which three matter."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def assignment(path: str, value: object) -> str:
    """Return a setting in the form of `--set`. JSON will do: its numbers, texts, truth values and lists are TOML's."""
    return f"{path}={json.dumps(value)}"


def _parse_override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set needs path=value such as train.lr=3e-4, got {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except NO_TOML:
        parsed = value  # a bare word is a string, as in --set train.schedule=cyclic
    return _nest(path, parsed)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`, groups inside groups merged alike."""
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def parse_section(section: str, kind: type, values: object) -> Any:
    """Return a section's dataclass from plain values. Raises: ConfigError naming the dotted path and the rule."""
    _check_names(section, kind, values)
    return _validate(section, kind, values)


def _check_names(section: str, kind: type, values: object) -> None:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        example = f"set one of them, such as {section}.{next(iter(fields))}" if fields else "it has none"
        raise ConfigError(f"{section} is a group of settings; {example}")
    for name in values:
        if name not in fields:
            known = [f"{section}.{each}" for each in fields]
            raise ConfigError(format_unknown_setting(f"{section}.{name}", known))
        inner = fields[name].default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            _check_names(f"{section}.{name}", inner, values[name])


def format_unknown_setting(path: str, known: list[str]) -> str:
    """Return the sentence for a setting that does not exist: its new name if it was renamed, else the nearest ones."""
    return _format_renamed("setting", path, RENAMED_SETTINGS) or format_unknown("setting", path, known)


def _format_renamed(what: str, name: str, renamed: Mapping[str, str]) -> str:
    """Return the sentence for an old name, an empty one for any other."""
    return f"the {what} {name} is now called {renamed[name]}; use the new name" if name in renamed else ""


def _validate(path: str, kind: Any, value: object) -> Any:
    """Return a value as `kind`: a dataclass, or the type of a field. Raises: ConfigError naming the path and rule."""
    try:
        # As JSON, strictly: a list may be a tuple, but no text is a number and no truth value is one.
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str, allow_nan=False), strict=True)
    except ValueError as error:
        if not isinstance(error, ValidationError):
            raise ConfigError(f"a number in {path} is not finite: {_format_infinite(value)}") from error
        first = error.errors()[0]
        dotted = ".".join([path, *(str(part) for part in first["loc"])])
        raise ConfigError(f"{dotted}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}") from error


def _format_infinite(value: object) -> str:
    bad = {n: v for n, v in value.items() if str(v) in ("inf", "-inf", "nan")} if isinstance(value, dict) else {}
    return ", ".join(f"{name} = {number}" for name, number in bad.items()) or str(value)
