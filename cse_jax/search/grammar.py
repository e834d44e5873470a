"""Which formulas a branch writes: weights of operators, limits on nesting, and a fixed part around the searched one."""

import re

from cse_jax.errors import InputError
from cse_jax.language.operators import OPERATORS
from cse_jax.language.spaces import Space
from cse_jax.sampling.random_trees import Shape
from cse_jax.sampling.template import Template
from cse_jax.search.config import BranchConfig

_WEIGHT = re.compile(r"(\S+)\s+(\S+)")
_NESTING = re.compile(r"(\S+)\s+in\s+(\S+)\s+(\d+)")


def grammar(sizes: BranchConfig, space: Space, *, max_nodes: int) -> tuple[Shape, Template | None]:
    """The limits on the searched part of a branch's formulas, and the fixed part around it.

    Raises:
      InputError: a setting of the branch is not of this space, or leaves no formula.
    """
    template = Template.read(sizes.template, space) if sizes.template else None
    weights = tuple((_operator(name, space), _number(number)) for name, number in _items(sizes.operators, _WEIGHT))
    if not any(dict(weights).get(name, 1.0) for name in space.operators):
        raise InputError(f"operators={sizes.operators!r} leaves no operator of space {space.name}")
    nesting = tuple(
        (_operator(outer, space), _operator(inner, space), int(most))
        for inner, outer, most in _items(sizes.nesting, _NESTING)
    )
    if template is not None:
        max_nodes -= len(template)
    return Shape(max_nodes=max_nodes, weights=weights, nesting=nesting), template


def _items(text: str, pattern: re.Pattern[str]) -> list[tuple[str, ...]]:
    """What stands between commas."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    found = [pattern.fullmatch(item) for item in items]
    for item, match in zip(items, found, strict=True):
        if match is None:
            form = "'exp 0.5', an operator and its weight" if pattern is _WEIGHT else "'log in exp 1'"
            raise InputError(f"{item!r} can't be read; write {form}, with commas between")
    return [match.groups() for match in found if match]


def _operator(name: str, space: Space) -> str:
    for row in OPERATORS.values():
        if name in (row.name, row.symbol) and row.name in space.operators:
            return row.name
    known = ", ".join(OPERATORS[name].symbol for name in space.operators)
    raise InputError(f"random formulas of space {space.name} have no operator {name!r}; they have {known}")


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1e6:
        raise InputError(f"{text} is no weight of an operator; it must be a number from 0 to 1,000,000")
    return number
