"""Formulas in other notations."""

from cse_jax.expression import Expression
from cse_jax.operators import OPERATORS
from cse_jax.printing import to_authors, to_infix


def to_sympy(expression: Expression):
    """The formula as an unevaluated SymPy expression; S-curves, softmax, relu and dot stay named functions."""
    import sympy

    symbols = {v.name: sympy.Symbol(v.symbol) for v in expression.space.variables}
    with sympy.evaluate(False):
        return expression.fold(
            lambda token: symbols.get(token) or sympy.Integer(token),
            lambda name, *operands: OPERATORS[name].sympy(sympy, *operands),
        )


def to_latex(expression: Expression) -> str:
    """The formula in LaTeX, term by term as it is written; nothing is simplified."""
    import sympy

    names = {sympy.Symbol(v.symbol): v.latex for v in expression.space.variables}
    return sympy.latex(to_sympy(expression), symbol_names=names, order="none")


FORMATS = {"text": to_infix, "authors": to_authors, "latex": to_latex}
