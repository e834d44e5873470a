"""A discovered loss as a folder to hand on: the formula in every format, what speaks for it, a plot and a test."""

import contextlib
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cse_jax import export, workdir
from cse_jax.errors import InputError
from cse_jax.language import interpreter
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.program import compile_expression
from cse_jax.language.spaces import BOX, trajectories
from cse_jax.reporting import loss_plot
from cse_jax.reporting.page.sweeps import sweeps

_NAMES = {"text": "loss.txt", "latex": "loss.tex", "mathml": "loss.mathml", "authors": "loss_authors.txt"}
_NAMES |= {"mmdet": "searched_loss.py"}
FILES = {name: _NAMES.get(name, f"loss_{name}.py") for name in export.FORMATS}
_POINTS = 64  # of the verification grid, in the test
_TEST = '''"""The files of this loss compute what the search trained with: python -m pytest test_loss.py"""

import importlib
import json
import pathlib

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
POINTS = json.loads((HERE / "points.json").read_text())
TOLERANCE = 1e-7  # relative, and of the largest value


def check(monkeypatch, module, array):
    monkeypatch.syspath_prepend(HERE)
    loss = importlib.import_module(module).loss
    found = np.asarray(loss(**{name: array(values) for name, values in POINTS["inputs"].items()}))
    expected = np.asarray(POINTS["values"])
    found = np.broadcast_to(found, expected.shape)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max())


def test_numpy(monkeypatch):
    check(monkeypatch, "loss_numpy", np.asarray)


def test_jax(monkeypatch):
    pytest.importorskip("jax").config.update("jax_enable_x64", True)
    check(monkeypatch, "loss_jax", importlib.import_module("jax.numpy").asarray)


def test_pytorch(monkeypatch):
    torch = pytest.importorskip("torch")
    check(monkeypatch, "loss_pytorch", lambda values: torch.tensor(values, dtype=torch.float64))
'''


def write(
    folder: pathlib.Path, loss: export.Loss, row: Mapping[str, Any], result: Mapping[str, Any] | None, *, units: str
) -> list[pathlib.Path]:
    """Writes the package; its files.

    Args:
      folder: to make; it must be empty if it exists.
      loss: to write down.
      row: of the loss, in the ledger.
      result: of the search, as in ``result.json``; None if it is not finished.
      units: unit of length of boxes, one of ``space.units``.

    Raises:
      InputError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is no empty folder; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, str] = {}
    for name, make in export.FORMATS.items():
        with contextlib.suppress(InputError):  # a client that has no loss of this space
            texts[FILES[name]] = make(loss)
    formats = [f"- `{FILES[name]}`: {name}" for name in export.FORMATS if FILES[name] in texts]
    texts["test_loss.py"] = _TEST
    texts["points.json"] = json.dumps(_points(loss.original, units))
    plotted = importlib.util.find_spec("matplotlib") is not None and bool(sweeps(loss.original.space, units))
    if plotted:
        loss_plot.save(folder / "loss.png", loss.original, row["weight"], units=units)
    texts["README.md"] = _readme(loss, evidence(row, result), formats, plotted=plotted)
    for name, text in texts.items():
        workdir.write_whole(folder / name, text.rstrip("\n"))
    return sorted(folder.iterdir())


def _points(formula: Expression, units: str) -> dict[str, Any]:
    """Points of the verification grid and the loss there in float64: by row or by element, as the files give it."""
    space = formula.space
    grid = trajectories(space, units).inputs
    points = grid.reshape(len(grid), -1, *grid.shape[3:])
    with float64():
        inputs = dict(zip((v.name for v in space.variables), map(jnp.asarray, points), strict=True))
        values = np.asarray(interpreter.evaluate(space, compile_expression(formula), inputs))
    chosen = np.linspace(0, len(values) - 1, _POINTS).astype(int)
    return {
        "inputs": {v.symbol: inputs[v.name][chosen].tolist() for v in space.variables},
        "values": (values.sum(-1) if space.per_row else values)[chosen].tolist(),
    }


def _readme(loss: export.Loss, found: Sequence[str], formats: Sequence[str], *, plotted: bool) -> str:
    """What the package is."""
    return "\n".join(
        [
            f"# {loss.title}",
            "",
            f"    {loss.weight:g} * ({loss.formula})",
            "",
            *(["![The loss and its gradient beside the default's](loss.png)", ""] if plotted else []),
            f"Source: {loss.provenance}",
            "",
            *loss.usage,
            "",
            f"Form: {loss.note}.",
            "",
            "## What speaks for it",
            "",
            *found,
            "",
            "## Files",
            "",
            *formats,
            "- `test_loss.py`, `points.json`: a test that these files compute what was trained with",
        ]
    )


def evidence(row: Mapping[str, Any], result: Mapping[str, Any] | None) -> list[str]:
    """What a search says of a loss, as lines for a README; the arguments are those of ``write``."""
    seeds = " ".join(f"{ap:.4f}" for ap in json.loads(row["aps"]))
    lines = [
        f"- AP on the select split at the end of the proxy task: {row['proxy']:.4f} (by seed: {seeds}). The loss was "
        "selected by this, so it is partly luck."
    ]
    if result is None:
        return [*lines, "- The search has not come to its end: there is no comparison on a test split."]
    default = result["hall_of_fame"].get(row["branch"], {}).get("default_ap", result["default_proxy_ap"])
    lines.append(f"- The default losses there: {default:.4f}.")
    pair, (part, other) = result["discovered"], ("box", "cls") if row["branch"] == BOX.name else ("cls", "box")
    if pair is None or pair[part]["authors"] != row["authors"]:
        return [*lines, "- It is not in the pair that the search compares on the test split."]
    beside = f"{pair[other]['weight']:g} * ({pair[other]['text']})"
    return [*lines, f"- On the test split, together with `{beside}`: {result['conclusion']} {result['scope']}"]
