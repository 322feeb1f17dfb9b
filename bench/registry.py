"""Finds plug-ins by name. A plug-in is a module; listing the names imports none of them.

A plug-in is found, in this order, as a path (`./mine.py`), as a file in the suite's folder for its kind, or as an
installed entry point of the kind's group. Its name is the file name with dashes for underscores. `name_plugin` turns
errors of a plug-in's own code into one sentence.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bench.errors import BenchError, PluginError


@dataclass(frozen=True)
class Kind:
    """One kind of plug-in."""

    package: str
    """The package of the built-in plug-ins."""

    group: str
    """The group of entry points of installed plug-ins."""

    required: tuple[str, ...]
    """What each module must define."""


KINDS = {
    "encoder": Kind("bench.models", "bench.encoders", ("Config", "build")),
    "dataset": Kind("bench.datasets", "bench.datasets", ("Config", "build", "KIND")),
    "index": Kind("bench.search.indexes", "bench.indexes", ("Config", "build")),
    "matcher": Kind("bench.match.matchers", "bench.matchers", ("Config", "build", "load")),
    "aligner": Kind("bench.align.aligners", "bench.aligners", ("Config", "build", "NEEDS_ENCODER")),
    "report": Kind("bench.reports", "bench.reports", ("render",)),
}

RENAMED_CONSTANTS = {"HEARS": "NEEDS_ENCODER"}  # in plug-ins: the names of earlier versions, and those of now
CODE_KINDS = ("encoder", "dataset", "index", "matcher", "aligner")
NOT_ENGINE = ("models", "datasets", "reports", "sweeps")  # below `bench/` in an installed copy, beside it in a checkout


def names(kind: str) -> list[str]:
    """Return the sorted names of all plug-ins of a kind, importing none of them."""
    return sorted({*_list_files(kind), *_list_entry_points(kind)})


def load(kind: str, name: str) -> ModuleType:
    """Import and return the plug-in module called `name`.

    Raises: PluginError if there is no such plug-in (with the nearest names), if its import fails, or if it lacks a part
    that its kind must define.
    """
    if name.endswith(".py"):
        module = _import_file(Path(name))
    elif name in _list_files(kind):
        module = _import_module(f"{KINDS[kind].package}.{name.replace('-', '_')}", name)
    elif name in (installed := _list_entry_points(kind)):
        module = _import_module(installed[name], name)
    else:
        raise PluginError(format_unknown(kind, name, names(kind)))
    _check_parts(kind, name, module)
    return module


def _check_parts(kind: str, name: str, module: ModuleType) -> None:
    missing = [part for part in KINDS[kind].required if not hasattr(module, part)]
    for old, new in RENAMED_CONSTANTS.items():
        if new in missing and hasattr(module, old):
            raise PluginError(f"{kind} plug-in {name!r} ({module.__file__}) defines {old}, now called {new}; rename it")
    if missing:
        raise PluginError(f"{kind} plug-in {name!r} ({module.__file__}) does not define {', '.join(missing)}")
    if "Config" in KINDS[kind].required and not dataclasses.is_dataclass(module.Config):
        rule = "Config must be a dataclass: write @dataclass(frozen=True) above it"
        raise PluginError(f"{kind} plug-in {name!r} ({module.__file__}): {rule}")


def load_module(name: str) -> ModuleType:
    """Import and return a module of a sibling folder, such as `sweeps.launch`.

    The engine has no import statement for these folders.
    """
    return importlib.import_module(f"bench.{name}")


def source_digest(module: ModuleType) -> str:
    """Return a digest of the plug-in's source file, so that results of an edited plug-in are computed anew."""
    return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]


def code_digest() -> str:
    """Return a digest of every source file that can change a number: the engine's and the built-in plug-ins'."""
    engine = Path(__file__).parent
    files = {path for path in engine.rglob("*.py") if path.relative_to(engine).parts[0] not in NOT_ENGINE}
    for kind in CODE_KINDS:
        spec = importlib.util.find_spec(KINDS[kind].package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            files |= set(Path(folder).rglob("*.py"))
    # The names of file and folder alone, as an installed copy and a checkout differ in the rest of their paths.
    contents = sorted((path.parent.name, path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
    return hashlib.sha256(repr(contents).encode()).hexdigest()[:16]


def format_unknown(what: str, name: str, known: list[str]) -> str:
    """Return the sentence for a name that does not exist: with the nearest names, or with all if none is near."""
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    every = f"known: {', '.join(known)}" if known else "there is none"
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else every
    return f"no {what} called {name!r}; {hint}"


def _list_files(kind: str) -> list[str]:
    spec = importlib.util.find_spec(KINDS[kind].package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return [m.name.replace("_", "-") for m in pkgutil.iter_modules(folders) if not m.name.startswith("_")]


def _list_entry_points(kind: str) -> dict[str, str]:
    return {e.name: e.value for e in importlib.metadata.entry_points(group=KINDS[kind].group)}


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise PluginError(f"no plug-in file at {path}; give the path of a Python file that exists")
    name = f"bench_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module while the file is executed
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PluginError(f"plug-in {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _import_module(target: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(target)
    except BenchError:
        raise
    except Exception as error:
        raise PluginError(f"plug-in {name!r} ({target}) cannot be imported: {type(error).__name__}: {error}") from error


class BrokenRuleError(Exception):
    """A plug-in breaks a rule of its contract; the message says which, what was found, and the remedy."""


@contextmanager
def name_plugin(kind: str, name: str, plugin: ModuleType, failed: str, settings: str = "") -> Iterator[None]:
    """Turn any error of a plug-in's own code into a PluginError of one sentence, which names its file and line.

    `failed` says what did not work, `settings` with which settings. Errors that are meant for the user pass unchanged,
    and so does what the operating system says to a plug-in of the suite.
    """
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and plugin.__name__.startswith("bench."):
            raise
        where = f"{kind} {name!r} ({_format_place(plugin, error)}){settings}"
        if isinstance(error, BrokenRuleError):
            raise PluginError(f"{where} breaks its contract: {error}") from error
        reason = " ".join(str(error).split()) or "no message"
        raise PluginError(f"{where} {failed}: {type(error).__name__}: {reason}; correct the file") from error


def _format_place(plugin: ModuleType, error: Exception) -> str:
    """Return the plug-in's file, with the line that its own code had reached when the error was raised."""
    file = str(plugin.__file__)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{Path(file).name}, line {lines[-1]}" if lines else Path(file).name


def require_rule(holds: object, rule: str, found: object) -> None:
    """Raise BrokenRuleError unless the rule holds. `found` is what there is instead."""
    if not holds:
        raise BrokenRuleError(f"{rule}, got {found}")
