"""Writes docs/reference.md, the flags of all scripts and the fields of all configs, from the code.

python docs/reference.py
"""

import ast
import dataclasses
import inspect
import pathlib
import re
import runpy
import sys
import types
import typing

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "launch")]

import script  # noqa: E402, I001
from absl import flags  # noqa: E402

from cse_jax.ranges import describe, field_types  # noqa: E402
from detectors.data import layouts  # noqa: E402, F401  (imports all data sets that a config can have)
from detectors.training.run_config import TrainRun  # noqa: E402
from search_run import ComparisonRun, LossTableRun, SearchRun  # noqa: E402

FILE = ROOT / "docs" / "reference.md"
_HEAD = """# Reference

Written by `python docs/reference.py` from the code.

## Scripts

Each script is in `launch/` and says all this with `--help`. `--config=FILE` takes a file of `configs/`, and
`--config.FIELD=VALUE` sets a field of it; the fields are listed below.
"""


def scripts() -> dict[str, list[flags.Flag]]:
    """The flags that each script defines, by its name, but for those of its config."""
    found = {}
    for path in sorted((ROOT / "launch").glob("*.py")):
        if "script.run(main)" in path.read_text():
            before = set(flags.FLAGS)
            names = runpy.run_path(str(path))
            new = sorted(set(flags.FLAGS) - before)
            own = [name for name in new if flags.FLAGS.find_module_defining_flag(name) == "<run_path>"]
            mine = {name: flags.FLAGS[name] for name in own}
            beside = [m for m in script.SHARED_FLAGS if m in names or (m == "processes" and "workers" in names)]
            shared = [flag for module in beside for flag in flags.FLAGS.flags_by_module_dict()[module]]
            found[path.stem] = [*mine.values(), *shared]
            for name in [*mine, *(name for name in new if name.startswith("config"))]:
                delattr(flags.FLAGS, name)
    return found


def configs(*roots: type) -> list[type]:
    """The classes of configs and of the configs in their fields, each once."""
    found: dict[type, None] = {}

    def visit(kind: typing.Any) -> None:
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) in (typing.Union, typing.Annotated, tuple):
            for part in typing.get_args(kind):
                visit(part)
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in found:
            found[kind] = None
            for below in sorted(kind.__subclasses__(), key=lambda below: below.__name__):
                if below.__module__.split(".")[0] in ("cse_jax", "detectors"):
                    visit(below)
            for of_field in field_types(kind).values():
                visit(of_field)

    for root in roots:
        visit(root)
    return list(found)


def meanings(kind: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of the fields, by name."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, listed = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        for names, text in re.findall(r"^ {2}([\w, ]+): ((?:.*\n?(?: {4}.*\n?)*))", listed, re.M):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "" if field.default_factory is dataclasses.MISSING else "its own" if _nested(field) else "`()`"


def _nested(field: dataclasses.Field) -> bool:
    return dataclasses.is_dataclass(field.default_factory())  # pyright: ignore[reportCallIssue]


def _takes(kind: typing.Any) -> str:
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    names = [part.__name__ for part in parts if dataclasses.is_dataclass(part)]
    return " or ".join(names) if names else describe(kind)


def text() -> str:
    """The whole page."""
    lines = [_HEAD]
    for name, of_script in scripts().items():
        about = (_docstring(name) or "").split("\n\n")[0]
        lines += [
            f"### {name}.py",
            "",
            " ".join(about.split()),
            "",
            "| flag | default | meaning |",
            "| --- | --- | --- |",
        ]
        lines += [f"| `--{f.name}` | {_cell(f'`{f.default!r}`')} | {_cell(f.help)} |" for f in of_script]
        lines.append("")
    lines += [
        "## Configs",
        "",
        "A field that has fields of its own is set by one of them, as `--config.search.final.seeds=5`.",
        "",
    ]
    for kind in configs(SearchRun, ComparisonRun, TrainRun, LossTableRun):
        about, said = (kind.__doc__ or "").split("\n")[0], meanings(kind)
        lines += [
            f"### {kind.__name__}",
            "",
            about,
            "",
            "| field | takes | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        hints = field_types(kind)
        lines += [
            f"| `{f.name}` | {_cell(_takes(hints[f.name]))} | {_cell(_default(f))} | {_cell(said.get(f.name, ''))} |"
            for f in dataclasses.fields(kind)
        ]
        lines.append("")
    return "\n".join(lines)


def _docstring(name: str) -> str | None:
    """Of a script."""
    return ast.get_docstring(ast.parse((ROOT / "launch" / f"{name}.py").read_text()))


if __name__ == "__main__":
    FILE.write_text(text())
    print(FILE)
