"""Imports point downwards: a package uses those below it, and no module needs itself."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# From the bottom up; what stands in one line does not know of each other.
FLOORS = {
    "cse_jax": [
        ("errors",),
        ("workdir", "ranges"),
        ("language",),
        ("losses", "export", "sampling"),
        ("screening",),
        ("atlas",),
        ("search",),
        ("loss_table",),
        ("reporting",),
        ("",),
    ],
    "detectors": [
        ("structures", "parallel", "compiling"),
        ("ops", "checkpoint"),
        ("named_losses",),
        ("losses",),
        ("models", "data"),
        ("weights",),
        ("evaluation",),
        ("training",),
    ],
}
# What the detectors take from the search: losses, the trainer protocol, and what errors, configs and run folders share.
SHARED = ("errors", "ranges", "workdir", "language", "losses", "search.task", "search.trainer")


def modules(package):
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }


MODULES = modules("cse_jax") | modules("detectors")


def imports(path):
    """The project's modules that a file imports, those for type checkers only and those within functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found & MODULES.keys()


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def floor(module):
    package, _, rest = module.partition(".")
    (level,) = (k for k, names in enumerate(FLOORS[package]) if rest.split(".")[0] in names)
    return level


def test_no_module_needs_itself():
    try:
        list(graphlib.TopologicalSorter(IMPORTS).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "detectors"])
def test_imports_point_downwards(module):
    package, _, rest = module.partition(".")
    for other in IMPORTS[module]:
        if other.partition(".")[0] == package:
            same = rest.split(".")[0] == other.split(".")[1]
            assert same or floor(other) < floor(module), f"{module} imports {other}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("detectors")])
def test_detectors_take_only_losses_and_the_trainer_protocol(module):
    taken = {name.removeprefix("cse_jax.") for name in IMPORTS[module] if name.startswith("cse_jax")}
    beyond = {name for name in taken if not any(name == s or name.startswith(f"{s}.") for s in SHARED)}
    assert not beyond, f"{module} imports {beyond}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("cse_jax")])
def test_the_search_knows_no_detector_and_no_flag(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not any(name.split(".")[0] in ("detectors", "absl", "ml_collections") for name in names)


def test_the_tree_of_the_docs_has_every_module():
    """Of some folders only the whole: what is in them are so many cases of one thing."""
    tree = (ROOT / "docs" / "design.md").read_text().split("```")[1]
    paths = [*MODULES.values(), *(ROOT / "launch").glob("*.py")]
    files = {path for path in paths if path.stem != "__init__" and path.parent.name not in ("page", "strategies")}
    assert len(files) > 150
    missing = {str(path.relative_to(ROOT)) for path in files if not re.search(rf"\b{path.stem}\b", tree)}
    assert not missing
