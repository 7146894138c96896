"""The house: which package may import which, no circles, old import paths."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from pydoc import locate

import pytest

from scripts.moved import REMOVED, lookup

SCRIPTS = Path(__file__).parents[2] / "hie_bundle" / "scripts"

# what a package may import besides itself; a package's modules may import each other, without circles
FILES = {"runtime", "geometry", "io", "moved"}
CASES = {*FILES, "data"}
ALLOWED: dict[str, set[str]] = {
    "moved": set(),
    "runtime": set(),
    "geometry": {"runtime"},
    "io": {"runtime", "geometry", "moved"},
    "data": FILES,
    "transforms": CASES,
    "networks": {"runtime", "geometry"},
    "losses": {"runtime", "geometry", "moved"},
    "inference": {*CASES, "transforms", "networks"},
    "training": {*CASES, "transforms", "networks", "losses", "inference"},
    "evaluation": {*CASES, "transforms", "networks", "inference", "moved"},
    "report": {*CASES, "transforms", "networks", "inference", "evaluation"},
    "study": {*CASES, "evaluation", "report"},
    "scanner": CASES,
    "phantom": {*CASES, "scanner", "moved"},
    "cli": {*CASES, "transforms", "inference", "evaluation", "report", "study", "scanner"},
}


def _modules() -> dict[str, Path]:
    names = {}
    for path in SCRIPTS.rglob("*.py"):
        parts = path.relative_to(SCRIPTS).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path
    return names


def _imports(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the bundle that one imports, inside functions too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                found.add(inner if inner in modules else ".".join(base))
    return found - {name, ""}


def test_packages_import_downwards_only() -> None:
    modules = _modules()
    wrong = [
        f"{name} imports {other}"
        for name, path in modules.items()
        for other in _imports(name, path, modules)
        if name and other.split(".")[0] not in {name.split(".")[0], *ALLOWED[name.split(".")[0]]}
    ]
    assert wrong == []


def test_no_circles() -> None:
    modules = _modules()
    graph = {name: {o for o in _imports(name, path, modules) if o in modules} for name, path in modules.items()}
    # a package's __init__ collects its modules: only what they import from each other counts
    graph = {name: others for name, others in graph.items() if modules[name].name != "__init__.py"}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join([*above[above.index(name) :], name])
        if name not in done and name in graph:
            for other in graph[name]:
                visit(other, (*above, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_no_two_modules_have_one_name() -> None:
    names = [path.stem for path in SCRIPTS.rglob("*.py") if path.stem != "__init__"]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize(
    "config", sorted(path.name for path in (Path(__file__).parent / "configs_0_9_1").glob("*.yaml"))
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_configs_of_0_9_1_find_what_they_name(config: str) -> None:
    text = (Path(__file__).parent / "configs_0_9_1" / config).read_text()
    for target in set(re.findall(r"scripts\.[\w.]+", text)):
        module, _, name = target.rpartition(".")
        if name in REMOVED:
            with pytest.raises(AttributeError, match=r"gone|integrations"):
                lookup(module.removeprefix("scripts."), name)
        else:
            assert locate(target) is not None, target
