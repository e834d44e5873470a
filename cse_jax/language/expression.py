"""A formula: an immutable sequence of tokens in prefix order, how it is evaluated and how it is printed.

Prefix order keeps every sub-formula contiguous, so walking, replacing and hashing need neither recursion nor nodes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from cse_jax.errors import InputError
from cse_jax.language.operators import OPERATORS
from cse_jax.language.spaces import Space
from cse_jax.language.stable import Step, operator, stable_log

T = TypeVar("T")
_TIGHTEST = 9  # precedence of what never needs parentheses


@dataclasses.dataclass(frozen=True)
class Expression:
    """A formula of a search space.

    Attributes:
      tokens: operators, variables and constants in prefix order, by the authors' names: ``("Neg", "Log", "X")``.
      space: the search space.

    Raises:
      ValueError: the tokens are not exactly one formula of the space.
    """

    tokens: tuple[str, ...]
    space: Space

    def __post_init__(self) -> None:
        missing, arities = 1, self.space.arities
        for position, token in enumerate(self.tokens):
            if missing == 0:
                raise ValueError(f"tokens after the end of the formula: {' '.join(self.tokens[position:])}")
            if token not in arities:
                raise ValueError(f"'{token}' is not part of space {self.space.name}")
            missing += arities[token] - 1
        if missing:
            raise ValueError(f"the formula {' '.join(self.tokens)!r} lacks {missing} operand(s)")

    def __getstate__(self) -> dict[str, Any]:
        """The fields as they travel to other processes, without what was derived from them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.tokens)

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """Names of the variables that occur."""
        return frozenset(self.tokens) & {v.name for v in self.space.variables}

    @functools.cached_property
    def height(self) -> int:
        """Edges on the longest path from the root to a leaf."""
        return self.fold(lambda _: 0, lambda _, *below: 1 + max(below))

    def end(self, start: int) -> int:
        """Index just past the sub-formula that starts at token ``start``."""
        missing, position = 1, start
        while missing:
            missing += self.space.arities[self.tokens[position]] - 1
            position += 1
        return position

    def fold(self, leaf: Callable[[str], T], node: Callable[..., T]) -> T:
        """Computes bottom-up: ``leaf(token)`` at leaves, ``node(token, *operand_results)`` above them."""
        stack: list[T] = []
        arities = self.space.arities
        for token in reversed(self.tokens):
            n = arities[token]
            if n == 0:
                stack.append(leaf(token))
            else:
                operands = [stack.pop() for _ in range(n)]
                stack.append(node(token, *operands))
        return stack[0]

    def steps(self, *, stable: bool = True) -> list[Step]:
        """The formula in the order of its evaluation: each sub-formula once, after its operands; the whole is the last.

        Args:
          stable: with the operators of ``cse_jax.language.stable`` in place of logarithms of a sigmoid or softmax.
        """
        steps: list[Step] = []
        numbers: dict[Step, int] = {}

        def number(name: str, *operands: int) -> int:
            step = name, operands
            if step not in numbers:
                numbers[step] = len(steps)
                steps.append(step)
            return numbers[step]

        def node(name: str, *operands: int) -> int:
            found = stable_log(steps, operands[0]) if stable and name == "Log" else None
            return number(name, *operands) if found is None else number(*found)

        needed = {self.fold(number, node)}
        for k in reversed(range(len(steps))):
            if k in needed:
                needed.update(steps[k][1])
        order = {old: new for new, old in enumerate(sorted(needed))}
        return [(steps[k][0], tuple(order[operand] for operand in steps[k][1])) for k in order]

    def evaluate(self, inputs: Mapping[str, Real[ArrayLike, "..."]], *, stable: bool = True) -> Float[Array, "..."]:
        """Evaluates the formula; jittable and differentiable.

        Args:
          inputs: every variable that occurs, by its symbol (``x``) or the authors' name (``X``).  The arrays are
            broadcast to one shape, with the class axis last where the space has one.
          stable: as it trains, without rounding in logarithms; False is the arithmetic of the verification.

        Returns:
          The loss per element.  If it has no class axis, as that of a dot product, the axis is kept with size 1.

        Raises:
          InputError: an input is missing, unknown, or given twice.
        """
        by_name = self._by_name(inputs)
        shape = jnp.broadcast_shapes(*map(jnp.shape, by_name.values()))
        dtype = jnp.result_type(*by_name.values(), 0.0)
        narrow = shape[:-1] + (1,) if self.space.class_axis else shape

        def leaf(token: str) -> jax.Array:
            if token in self.variables:
                return jnp.broadcast_to(jnp.asarray(by_name[token], dtype), shape)
            return jnp.full(narrow, float(token), dtype)

        values: list[jax.Array] = []
        for name, below in self.steps(stable=stable):
            operands = jnp.broadcast_arrays(*(values[k] for k in below))
            values.append(operator(name).fn(*operands) if below else leaf(name))
        return values[-1]

    def _by_name(self, inputs: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
        """Inputs by the authors' names."""
        found: dict[str, ArrayLike] = {}
        for spelling, array in inputs.items():
            name = self.space.spellings.get(spelling)
            if name is None:
                known = ", ".join(v.symbol for v in self.space.variables)
                raise InputError(f"space {self.space} has no input {spelling!r}; it has {known}")
            if name in found:
                raise InputError(f"the input {spelling!r} is given twice, by its symbol and by its name")
            found[name] = array
        missing = [v.symbol for v in self.space.variables if v.name in self.variables - set(found)]
        if missing:
            raise InputError(f"the formula {self} needs the inputs {missing}; given were {sorted(inputs)}")
        return found

    def __str__(self) -> str:
        return to_infix(self)


def evaluate(formula: Expression, inputs: Mapping[str, Real[ArrayLike, "..."]]) -> Float[Array, "..."]:
    """The loss per element, as ``Expression.evaluate`` gives it."""
    return formula.evaluate(inputs)


def to_authors(expression: Expression) -> str:
    """The formula in the authors' notation."""
    return expression.fold(lambda token: token, lambda name, *operands: f"{name}({','.join(operands)})")


def to_infix(expression: Expression) -> str:
    """The formula in infix, with no more parentheses than reading it back exactly needs."""
    symbols = {v.name: v.symbol for v in expression.space.variables}
    return expression.fold(lambda token: (symbols.get(token, token), _TIGHTEST), _infix)[0]


def _infix(name: str, *operands: tuple[str, int]) -> tuple[str, int]:
    """The text of an operator over texts, and its precedence."""
    row = OPERATORS[name]
    if row.precedence is None:
        return f"{row.symbol}({', '.join(text for text, _ in operands)})", _TIGHTEST
    if row.arity == 1:
        return row.symbol + _wrap(operands[0], row.precedence), row.precedence
    left = _wrap(operands[0], row.precedence)
    right = _wrap(operands[1], row.precedence + 1)
    return f"{left} {row.symbol} {right}", row.precedence


def _wrap(operand: tuple[str, int], at_least: int) -> str:
    text, precedence = operand
    return text if precedence >= at_least else f"({text})"
