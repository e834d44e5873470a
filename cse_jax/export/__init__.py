"""Writes a loss down: in other notations, and as code for other programs."""

import dataclasses
import textwrap
from collections.abc import Callable

from cse_jax.export import definitions, mmdet, notation, source_code, torch_module, typesetting
from cse_jax.export.simplification import simplify
from cse_jax.export.usage import client_units, usage
from cse_jax.language.expression import Expression, to_authors, to_infix

__all__ = ["FORMATS", "Loss", "prepare"]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss to write down.

    Attributes:
      original: the formula as it was found.
      formula: the formula as it is written, simplified where that is exact.
      note: what simplification did.
      title: one line that says what this is.
      weight: factor that it was trained with.
      provenance: where it comes from; may be empty.
      units: unit in which a client gives it boxes, ``"pixels"`` or ``"strides"``.
      usage: units, balance and normaliser, a line each.
    """

    original: Expression
    formula: Expression
    note: str
    title: str
    weight: float
    provenance: str
    units: str
    usage: tuple[str, ...]


def prepare(
    expression: Expression,
    *,
    title: str = "A loss for object detection.",
    weight: float = 1.0,
    provenance: str = "",
    units: str = "",
    normaliser: str = "",
    simplified: bool = True,
) -> Loss:
    """A loss, ready to be written in any of ``FORMATS``.

    Args:
      expression: the formula.
      title: one line that says what it is.
      weight: factor that it was trained with.
      provenance: where it comes from.
      units: unit of length of the boxes in the search, ``"pixels"`` or ``"strides"``; empty if that is not known.
      normaliser: what the search divides the sum of the loss by, in words.
      simplified: whether to look for a simpler form with the same value and gradient.
    """
    formula, note = expression, "as it was found"
    if simplified:
        result = simplify(expression)
        formula, note = result.formula, result.note
    lines = usage(expression, units)
    if normaliser:
        lines.append(f"Normaliser: {normaliser}.")
    return Loss(expression, formula, note, title, weight, provenance, client_units(expression, units), tuple(lines))


def _notes(loss: Loss) -> str:
    lines = [*loss.usage, f"Form: {loss.note}."]
    if loss.provenance:
        lines.append(f"Source: {loss.provenance}")
    return "\n".join(textwrap.fill(line, 118, subsequent_indent="  ") for line in lines)


def _source(framework: str) -> Callable[[Loss], str]:
    def write(loss: Loss) -> str:
        return source_code.source_file(
            loss.formula, framework, title=loss.title, weight=loss.weight, notes=_notes(loss)
        )

    return write


def _module(client: str) -> Callable[[Loss], str]:
    def write(loss: Loss) -> str:
        about = {"title": loss.title, "weight": loss.weight, "units": loss.units, "notes": _notes(loss)}
        return torch_module.module(loss.formula, client, **about)

    return write


FORMATS: dict[str, Callable[[Loss], str]] = {
    "text": lambda loss: to_infix(loss.formula) + definitions.in_text(loss.formula),
    "authors": lambda loss: to_authors(loss.original),
    "latex": lambda loss: typesetting.to_latex(loss.formula) + definitions.in_latex(loss.formula),
    "mathml": lambda loss: typesetting.to_mathml(loss.formula, after=definitions.in_mathml(loss.formula)),
    "sympy": lambda loss: notation.to_sympy_code(loss.formula),
    "jax": _source("jax"),
    "numpy": _source("numpy"),
    "pytorch": _source("pytorch"),
    "torch_module": _module(""),
    **{client: _module(client) for client in torch_module.CLIENTS},
    "mmdet": lambda loss: mmdet.module(loss.formula, title=loss.title, weight=loss.weight, notes=_notes(loss)),
}
