"""Prints formulas: the authors' notation ``Neg(Log(Sig(X)))`` and our infix ``-log(sigmoid(x))``, both exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cse_jax.operators import OPERATORS

if TYPE_CHECKING:
    from cse_jax.expression import Expression


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
