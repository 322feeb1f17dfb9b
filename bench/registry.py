"""Plug-ins by name. The module is the plug-in; names are listed without importing anything.

A plug-in is found, in this order, as a path (``./mine.py``), as a file in the suite's own folder for
its kind, or as an installed entry point of the kind's group. The file name with dashes is its name.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bench.errors import BenchError, PluginError


@dataclass(frozen=True)
class Kind:
    """One kind of plug-in: where its built-in files live and what each module must define."""

    package: str
    group: str
    required: tuple[str, ...]


KINDS = {
    "encoder": Kind("bench.models", "bench.encoders", ("Config", "build")),
    "dataset": Kind("bench.datasets", "bench.datasets", ("Config", "build", "KIND")),
    "index": Kind("bench.search.indexes", "bench.indexes", ("Config", "build")),
    "aligner": Kind("bench.align.aligners", "bench.aligners", ("Config", "build", "NEEDS_ENCODER")),
    "report": Kind("bench.reports", "bench.reports", ("render",)),
}

RENAMED_CONSTANTS = {"HEARS": "NEEDS_ENCODER"}  # of plug-ins: what earlier versions called them, and their names now
CODE_KINDS = ("encoder", "dataset", "index", "aligner")
NOT_ENGINE = ("models", "datasets", "reports", "sweeps")  # below `bench/` in an installed copy, beside it in a checkout


def names(kind: str) -> list[str]:
    """Return the sorted names of every plug-in of a kind, importing none of them."""
    return sorted({*_files(kind), *_entry_points(kind)})


def load(kind: str, name: str) -> ModuleType:
    """Return the plug-in module called `name`, imported now.

    Raises: PluginError if there is none of that name (the nearest names are given), if its import
    fails, or if it lacks a part that its kind must define.
    """
    if name.endswith(".py"):
        module = _from_path(Path(name))
    elif name in _files(kind):
        module = _import_module(f"{KINDS[kind].package}.{name.replace('-', '_')}", name)
    elif name in _entry_points(kind):
        module = _import_module(_entry_points(kind)[name], name)
    else:
        raise PluginError(format_unknown(kind, name, names(kind)))
    missing = [part for part in KINDS[kind].required if not hasattr(module, part)]
    for old, new in RENAMED_CONSTANTS.items():
        if new in missing and hasattr(module, old):
            raise PluginError(f"{kind} plug-in {name!r} ({module.__file__}) defines {old}, now called {new}; rename it")
    if missing:
        raise PluginError(f"{kind} plug-in {name!r} ({module.__file__}) does not define {', '.join(missing)}")
    return module


def load_module(name: str) -> ModuleType:
    """Return a module of a sibling folder, such as `sweeps.launch`: the engine imports none of them by a statement."""
    return importlib.import_module(f"bench.{name}")


def source_digest(module: ModuleType) -> str:
    """Return a digest of the plug-in's source file, so that an edited plug-in never meets old results."""
    return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]


def code_digest() -> str:
    """Return a digest of all source files that a number can depend on: the engine's and the built-in plug-ins'."""
    engine = Path(__file__).parent
    files = {path for path in engine.rglob("*.py") if path.relative_to(engine).parts[0] not in NOT_ENGINE}
    for kind in CODE_KINDS:
        spec = importlib.util.find_spec(KINDS[kind].package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            files |= set(Path(folder).rglob("*.py"))
    # By the names of file and folder alone, so that an installed copy and a checkout agree.
    contents = sorted((path.parent.name, path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
    return hashlib.sha256(repr(contents).encode()).hexdigest()[:16]


def format_unknown(what: str, name: str, known: list[str]) -> str:
    """Return the sentence for a name that does not exist, with the nearest right ones."""
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known)}"
    return f"no {what} called {name!r}; {hint}"


def _files(kind: str) -> list[str]:
    spec = importlib.util.find_spec(KINDS[kind].package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return [m.name.replace("_", "-") for m in pkgutil.iter_modules(folders) if not m.name.startswith("_")]


def _entry_points(kind: str) -> dict[str, str]:
    return {e.name: e.value for e in importlib.metadata.entry_points(group=KINDS[kind].group)}


def _from_path(path: Path) -> ModuleType:
    if not path.is_file():
        raise PluginError(f"no plug-in file at {path}; give the path of a Python file that exists")
    name = f"bench_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while the file is executed
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
