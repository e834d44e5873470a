"""A formula: an immutable sequence of tokens in prefix order, and what can be asked of it.

Prefix order keeps every sub-formula contiguous, so walking, replacing and hashing need neither recursion nor nodes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cse_jax.language.operators import OPERATORS
from cse_jax.language.spaces import Space

T = TypeVar("T")


def arity(token: str) -> int:
    """Number of operands of a token; 0 for variables and constants."""
    row = OPERATORS.get(token)
    return row.arity if row else 0


@dataclasses.dataclass(frozen=True)
class Expression:
    """A formula of a search space, as prefix tokens in the authors' names: ``("Neg", "Log", "X")``."""

    tokens: tuple[str, ...]
    space: Space

    def __post_init__(self) -> None:
        """Checks that the tokens form exactly one formula of the space."""
        missing = 1
        for position, token in enumerate(self.tokens):
            if missing == 0:
                raise ValueError(f"tokens after the end of the formula: {' '.join(self.tokens[position:])}")
            if token not in self.space.leaves and token not in self.space.readable:
                raise ValueError(f"'{token}' is not part of space {self.space.name}")
            missing += arity(token) - 1
        if missing:
            raise ValueError(f"the formula {' '.join(self.tokens)!r} lacks {missing} operand(s)")

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
            missing += arity(self.tokens[position]) - 1
            position += 1
        return position

    def fold(self, leaf: Callable[[str], T], node: Callable[..., T]) -> T:
        """Computes bottom-up: ``leaf(token)`` at leaves, ``node(token, *operand_results)`` above them."""
        stack: list[T] = []
        for token in reversed(self.tokens):
            n = arity(token)
            if n == 0:
                stack.append(leaf(token))
            else:
                operands = [stack.pop() for _ in range(n)]
                stack.append(node(token, *operands))
        return stack[0]

    def evaluate(self, inputs: Mapping[str, Float[Array, "..."]]) -> Float[Array, "..."]:
        """Evaluates the formula; jittable and differentiable.

        Args:
          inputs: every variable of the space that occurs, by the authors' name; arrays of one shape, with the class
            axis last where the space has one.

        Returns:
          The loss per element.  The class axis of a dot product is kept with size 1.

        Raises:
          KeyError: a variable of the formula is missing from ``inputs``.
        """
        missing = self.variables - set(inputs)
        if missing:
            raise KeyError(f"the formula {self} needs the inputs {sorted(missing)}; given were {sorted(inputs)}")
        shape = jnp.broadcast_shapes(*(jnp.shape(a) for a in inputs.values()))
        dtype = jnp.result_type(*inputs.values()) if inputs else jnp.result_type(float)
        if self.space.class_axis:
            shape = shape[:-1] + (1,)

        def leaf(token: str) -> jax.Array:
            return jnp.asarray(inputs[token]) if token in self.variables else jnp.full(shape, float(token), dtype)

        return self.fold(leaf, lambda token, *operands: OPERATORS[token].fn(*operands))

    def __str__(self) -> str:
        return to_infix(self)


def to_authors(expression: Expression) -> str:
    """The formula in the authors' notation."""
    return expression.fold(lambda token: token, lambda name, *operands: f"{name}({','.join(operands)})")


def to_infix(expression: Expression) -> str:
    """The formula in infix, with no more parentheses than reading it back exactly needs."""
    symbols = {v.name: v.symbol for v in expression.space.variables}
    tightest = 9

    def leaf(token: str) -> tuple[str, int]:
        return symbols.get(token, token), tightest

    def node(name: str, *operands: tuple[str, int]) -> tuple[str, int]:
        row = OPERATORS[name]
        if row.precedence is None:
            return f"{row.symbol}({', '.join(text for text, _ in operands)})", tightest
        if row.arity == 1:
            return row.symbol + _wrap(operands[0], row.precedence), row.precedence
        left = _wrap(operands[0], row.precedence)
        right = _wrap(operands[1], row.precedence + 1)
        return f"{left} {row.symbol} {right}", row.precedence

    return expression.fold(leaf, node)[0]


def _wrap(operand: tuple[str, int], at_least: int) -> str:
    text, precedence = operand
    return text if precedence >= at_least else f"({text})"
