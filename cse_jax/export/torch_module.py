"""Formulas as modules for PyTorch, alone or with a function that puts them into the detectors of a package."""

from cse_jax.errors import InputError
from cse_jax.export import torchvision_code, transformers_code, ultralytics_code
from cse_jax.export.source_code import description, function
from cse_jax.export.torch_code import AREAS, IOU, SEARCHED_LOSS
from cse_jax.language.expression import Expression

_ALONE = """
For any PyTorch code.  SearchedLoss()(...) is the loss of each row or element: sum it and divide by the normaliser.
iou(pred, target) is the quality that classification losses of decoded boxes take.
"""
CLIENTS = {
    "torchvision": torchvision_code,
    "ultralytics": ultralytics_code,
    "transformers": transformers_code,
}  # by package


def module(expression: Expression, client: str, *, title: str, weight: float, units: str, notes: str) -> str:
    """A file with the class ``SearchedLoss`` and, for a client, the function ``install``.

    Args:
      expression: the formula.
      client: the package, one of ``CLIENTS``; none if empty.
      title: one line that says what it is.
      weight: factor that it was trained with.
      units: unit of the boxes that the loss is made for, ``"pixels"`` or ``"strides"``.
      notes: more lines of the docstring.

    Raises:
      InputError: the client has no loss with the inputs of this space.
    """
    space = expression.space
    recipes = CLIENTS[client].CODE if client else SEARCHED_LOSS
    if space.name not in recipes:
        raise InputError(f"{client or 'torch_module'} has no loss of space {space.name}; export it as pytorch")
    preamble = [f"WEIGHT = {weight!r}  # what the loss was trained with"]
    if space.name == "box" and client:
        preamble.append(f'UNITS = "{units}"  # of the boxes that it is computed with')
    code = function(
        expression,
        "pytorch",
        name="formula",
        docstring=f"The loss {'per row' if space.per_row else 'per element'}.",
        preamble=tuple(preamble),
    )
    usage = CLIENTS[client].USAGE if client else _ALONE
    docstring = description(expression, title=title, notes=f"{notes}\n{usage}".rstrip())
    parts = [code, AREAS, "" if space.name == "box" and client else IOU, SEARCHED_LOSS[space.name]]
    return "".join([f"{docstring}\n\n", *parts, recipes[space.name] if client else ""])
