"""The direction of imports: everything imports the engine, the engine and the siblings import no sibling."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIBLINGS = ("models", "datasets", "sweeps", "reports")
HEAVY = (
    "torch",
    "torchaudio",
    "mlflow",
    "pandas",
    "scipy",
    "pyroomacoustics",
    "soundfile",
    "optuna",
    "falconn",
    "faiss",
)


# The packages and modules directly inside bench/, from the lowest layer to the highest; docs/architecture.md says why.
LAYERS = (
    {"errors", "values", "parabola", "machine", "timing", "kernels"},
    {"registry", "store", "console"},
    {"settings", "device"},
    {"config", "audio"},
    {"degrade", "fingerprint"},
    {"data", "search", "match", "plugin_check"},
    {"train", "score"},
    {"align", "evaluate", "costs"},
    {"results"},
    {"logbook", "runs"},
    {"run"},
    {"align_pair", "catalogue", "speed", "reliability", "reproduce", "doctor", "testing"},
    {"cli"},
    {"__main__"},
)


def imported(path: Path) -> set[str]:
    """Return every module that a file's import statements name, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its direction; write it in full"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def siblings_named(path: Path) -> set[str]:
    """Return the sibling folders that a file imports, by either of their names."""
    parts = {tuple(module.split(".")) for module in imported(path)}
    mapped = {p[1] for p in parts if p[0] == "bench" and len(p) > 1 and p[1] in SIBLINGS}
    return mapped | {p[0] for p in parts if p[0] in SIBLINGS}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("bench"), ids=lambda path: str(path.relative_to(ROOT)))
def test_engine_imports_no_sibling(path: Path) -> None:
    assert siblings_named(path) == set()


def packages() -> dict[str, set[str]]:
    """Return for each package or module directly inside bench/ the others that it imports."""
    imports: dict[str, set[str]] = {}
    for path in files("bench"):
        name = path.relative_to(ROOT / "bench").with_suffix("").parts[0]
        parts = {tuple(module.split(".")) for module in imported(path)}
        others = {p[1] for p in parts if p[0] == "bench" and len(p) > 1} - {name}
        imports.setdefault(name, set()).update(others)
    names = set(imports) - {"__init__"}
    return {name: imports[name] & names for name in names}


def test_every_package_has_a_layer() -> None:
    assert set(packages()) == set().union(*LAYERS) and len(packages()) == sum(map(len, LAYERS))


def test_no_package_imports_one_of_a_higher_layer() -> None:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    upwards = [(name, other) for name, others in packages().items() for other in others if layer[other] > layer[name]]
    assert upwards == []


def test_no_packages_import_each_other_in_a_loop() -> None:
    left = packages()
    while leaves := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in leaves}
    assert left == {}, "each of these imports another one, and none comes first"


def test_the_architecture_names_every_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [name for name in sorted(packages()) if f"`{name}" not in text and f"`bench/{name}" not in text] == []


@pytest.mark.parametrize("sibling", SIBLINGS)
def test_siblings_do_not_import_each_other(sibling: str) -> None:
    assert {str(p): siblings_named(p) - {sibling} for p in files(sibling) if siblings_named(p) - {sibling}} == {}


def test_only_the_logbook_imports_mlflow() -> None:
    inside = {p.relative_to(ROOT).parts[:2] for name in ("bench", *SIBLINGS) for p in files(name) if _uses(p, "mlflow")}
    assert inside <= {("bench", "logbook")}


@pytest.mark.parametrize(
    "statement",
    [f"import bench.{name}" for name in ("registry", "settings", "config", "store", "doctor", "cli")],
)
def test_light_modules_import_nothing_heavy(statement: str) -> None:
    assert _heavy_after(statement) == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['bench', '--help']\nfrom bench.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    assert _heavy_after(code) == []


def test_listing_names_imports_nothing_heavy() -> None:
    assert _heavy_after("from bench import registry; [registry.names(kind) for kind in registry.KINDS]") == []


def _uses(path: Path, package: str) -> bool:
    return any(module.split(".")[0] == package for module in imported(path))


def _heavy_after(code: str) -> list[str]:
    """Return which heavy libraries a new interpreter has imported after the code."""
    report = f"import sys; print('heavy:', *[m for m in {HEAVY!r} if m in sys.modules])"
    command = [sys.executable, "-P", "-c", f"{code}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1].removeprefix("heavy:").split()
