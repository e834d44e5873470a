"""The search spaces: which inputs, constants and operators a formula may use.  A space is data."""

import dataclasses
import functools

from cse_jax.operators import OPERATORS, Operator


@dataclasses.dataclass(frozen=True)
class Variable:
    """An input of a formula: the authors' name, the name in infix print-out, its LaTeX, and what it holds."""

    name: str
    symbol: str
    latex: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
      name: how configs, ledgers and messages call it.
      variables: the inputs, in the order in which a compiled candidate expects them.
      differentiable: names of the inputs that carry the gradient to the network.
      operators: names of operators random formulas are made of.
      readable: names of all operators a formula of this space may contain.
      class_axis: whether inputs have a trailing class axis.
      constants: the constants.
    """

    name: str
    variables: tuple[Variable, ...]
    differentiable: tuple[str, ...]
    operators: tuple[str, ...]
    readable: tuple[str, ...]
    class_axis: bool
    constants: tuple[int, ...] = (1, 2, 3)

    @functools.cached_property
    def leaves(self) -> tuple[str, ...]:
        """Tokens without operands: variables, then constants."""
        return tuple(v.name for v in self.variables) + tuple(str(c) for c in self.constants)

    @functools.cached_property
    def table(self) -> tuple[Operator, ...]:
        """Rows of the operators a compiled candidate of this space may name, in opcode order."""
        return tuple(OPERATORS[name] for name in self.readable)

    def __str__(self) -> str:
        return self.name


_ALL = tuple(OPERATORS)
_ELEMENTWISE = tuple(name for name, row in OPERATORS.items() if not row.class_axis)

MULTI_CLASS = Space(
    name="multi_class",
    variables=(
        Variable("X", "x", "x", "logits [..., C+1]"),
        Variable("Y", "y", "y", "one-hot labels including the background [..., C+1]"),
        Variable("Z", "w", "w", "detached IoU of the decoded box with its target, 1 for background rows [..., C+1]"),
    ),
    differentiable=("X",),
    operators=tuple(name for name in _ALL if name != "Serfc"),
    readable=_ALL,
    class_axis=True,
)

BINARY_CLASS = Space(
    name="binary_class",
    variables=(
        Variable("X", "x", "x", "logits [..., C]"),
        Variable("Q", "q", "q", "detached IoU at the ground-truth class, 0 elsewhere [..., C]"),
        Variable("PY", "y", "y", "label, 0 or 1 [..., C]"),
        Variable("NY", "ny", r"\bar{y}", "1 - label [..., C]"),
    ),
    differentiable=("X",),
    operators=tuple(name for name in _ALL if name not in ("Serfc", "Dot")),
    readable=_ALL,
    class_axis=True,
)

BOX = Space(
    name="box",
    variables=(
        Variable("I", "i", "i", "intersection area [...]"),
        Variable("U", "u", "u", "union area + 1e-7 [...]"),
        Variable("E", "e", "e", "area of the smallest enclosing box + 1e-7 [...]"),
    ),
    differentiable=("I", "U", "E"),
    operators=(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Exp",
        "Log",
        "Abs",
        "Sqrt",
        "Softplus",
        "Sig",
        "Tanh",
        "Relu",
        "Sin",
        "Cos",
    ),
    readable=_ELEMENTWISE,
    class_axis=False,
)

SPACES: dict[str, Space] = {space.name: space for space in (MULTI_CLASS, BINARY_CLASS, BOX)}
