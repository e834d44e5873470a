"""What functions of a formula are, where their names are known by another meaning or not at all.

``erf``, ``gd`` and ``alf`` are scaled to the range (0, 1) with derivative 1/4 at 0; read as the functions that usually
have these names, they would make another loss.
"""

from cse_jax.export import escaping
from cse_jax.language.expression import Expression
from cse_jax.language.operators import OPERATORS

_STANDARD = "_standard"  # after the usual function of a name that has another meaning here


def definitions(expression: Expression) -> dict:
    """The functions that occur, by their symbols: SymPy expressions in ``t``."""
    import sympy

    t = sympy.Symbol("t", real=True)
    rows = [OPERATORS[token] for token in dict.fromkeys(expression.tokens) if token in OPERATORS]
    return {row.symbol: row.definition(sympy, t) for row in rows if row.definition is not None}


def in_text(expression: Expression) -> str:
    """Lines after a formula in infix; empty if there is nothing to define."""
    return "".join(f"\nwhere {name}(t) = {form}" for name, form in _usual(expression))


def in_latex(expression: Expression) -> str:
    """What follows a formula in LaTeX."""
    import sympy

    return "".join(
        rf",\quad \operatorname{{{escaping.latex(name)}}}\left(t\right) = {sympy.latex(form)}"
        for name, form in _usual(expression)
    )


def in_mathml(expression: Expression) -> str:
    """What follows a formula in MathML."""
    import sympy

    found = ""
    for name, form in _usual(expression):
        shown = sympy.mathml(form, printer="presentation")
        shown = shown.replace("&InvisibleTimes;", "&#8290;").replace("&ApplyFunction;", "&#8289;")
        shown = shown.replace("&pi;", "&#960;")
        head = f"<mi>{escaping.xml(name)}</mi><mo>&#8289;</mo><mrow><mo>(</mo><mi>t</mi><mo>)</mo></mrow>"
        found += f'<mo>,</mo><mspace width="1em"/><mrow>{head}<mo>=</mo>{shown}</mrow>'
    return found


def _usual(expression: Expression) -> list:
    """Names and forms, in which a usual function of a defined name is marked."""
    import sympy

    found = definitions(expression)
    usual = {getattr(sympy, name): sympy.Function(f"{name}{_STANDARD}") for name in ("erf",)}
    return [(name, form.replace(*pair)) for name, form in found.items() for pair in usual.items()]
