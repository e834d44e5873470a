"""Formulas that people or programs propose: a text file with one a line.

The text is only ever read by the parser of formulas, never evaluated.
"""

import pathlib
from typing import NamedTuple

from cse_jax import workdir
from cse_jax.errors import InputError
from cse_jax.language.expression import Expression
from cse_jax.language.parsing import FormulaError, parse
from cse_jax.search.task import PARTS, Part, Task


class Proposals(NamedTuple):
    """What a file proposes.

    Attributes:
      formulas: by the loss of the detector that they are for, each once.
      bad: why the other lines are none, a sentence each.
    """

    formulas: dict[Part, list[Expression]]
    bad: list[str]


def read(path: pathlib.Path, task: Task, *, max_nodes: int) -> Proposals:
    """Reads a file: one formula a line, in either notation; ``#`` begins a comment.

    Which loss of the detector a formula is for shows in its variables.

    Args:
      path: of the file.
      task: of the detector.
      max_nodes: largest formula.

    Raises:
      InputError: there is no such file, it is no text, or no line of it is a formula.
    """
    try:
        text = workdir.read_whole(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise InputError(f"the proposals {path} can't be read: {why}") from error
    found = Proposals({part: [] for part in PARTS}, [])
    for number, line in enumerate(text.splitlines(), start=1):
        written = line.partition("#")[0].strip()
        if not written:
            continue
        try:
            part, formula = _read(written, task)
            if len(formula) > max_nodes:
                raise InputError(f"it has {len(formula)} nodes; filters.max_nodes is {max_nodes}")
        except InputError as error:
            found.bad.append(f"{path}, line {number}: {_shown(written)} is left out: {str(error).splitlines()[0]}")
            continue
        if formula in found.formulas[part]:
            found.bad.append(f"{path}, line {number}: {_shown(written)} is left out: an earlier line is the same")
        else:
            found.formulas[part].append(formula)
    if not any(found.formulas.values()):
        raise InputError("\n".join([f"no line of {path} is a formula to propose", *found.bad[:10]]))
    return found


def _read(text: str, task: Task) -> tuple[Part, Expression]:
    """A formula and the loss that it is for; errors are those of the space in which more of it can be read."""
    errors = []
    for part in PARTS:
        try:
            formula = parse(text, task.space(part))
        except FormulaError as error:
            errors.append(error)
        else:
            if formula.variables:
                return part, formula
            raise InputError("it has no variable")
    raise max(errors, key=lambda error: error.position)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
