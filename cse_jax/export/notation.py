"""Formulas in SymPy."""

from cse_jax.language.expression import Expression, to_infix
from cse_jax.language.operators import OPERATORS, Operator


def symbols(expression: Expression) -> dict:
    """SymPy symbols of the space's variables, by the authors' names, with what is known of their signs."""
    import sympy

    def symbol(variable):
        return sympy.Symbol(variable.symbol, **{variable.sign: True})

    return {v.name: symbol(v) for v in expression.space.variables}


def to_sympy(expression: Expression):
    """The formula as an unevaluated SymPy expression; S-curves, softmax, relu and dot stay named functions."""
    import sympy

    names = symbols(expression)

    def node(name, *operands):
        result = OPERATORS[name].sympy(sympy, *operands)
        if isinstance(result, (sympy.Add, sympy.Mul)):  # sums of sums have no brackets
            parts = (arg.args if type(arg) is type(result) else (arg,) for arg in result.args)
            result = type(result)(*(part for group in parts for part in group))
        return result

    with sympy.evaluate(False):
        return expression.fold(lambda token: names.get(token) or sympy.Rational(token), node)


def to_sympy_code(expression: Expression) -> str:
    """Lines of Python that build the formula in SymPy as ``loss``."""
    lines, known = ["import sympy", ""], []
    for variable in expression.space.variables:
        if variable.name in expression.variables:
            lines.append(f'{variable.symbol} = sympy.Symbol("{variable.symbol}", {variable.sign}=True)')
            known.append(variable.symbol)
    rows = [OPERATORS[name] for name in dict.fromkeys(expression.tokens) if name in OPERATORS]
    for row in rows:
        if row.precedence is None:
            lines.append(f"{row.symbol} = {_function(row)}")
            known.append(row.symbol)
    names = ", ".join(f'"{name}": {name}' for name in known)
    return "\n".join([*lines, f'loss = sympy.sympify("{to_infix(expression)}", locals={{{names}}})'])


def _function(row: Operator) -> str:
    """An operator's SymPy function, as Python."""
    import sympy

    operands = sympy.symbols("a b", real=True)[: row.arity]
    form = row.definition(sympy, *operands) if row.definition else row.sympy(sympy, *operands)
    if isinstance(form, sympy.core.function.AppliedUndef):
        return f'sympy.Function("{type(form).__name__}")'
    if isinstance(form, sympy.Function) and form.args == operands:
        return f"sympy.{type(form).__name__}"
    return f'sympy.Lambda({operands!s}, sympy.sympify("{form}"))'.replace("(a,)", "sympy.symbols('a,')").replace(
        "(a, b)", "sympy.symbols('a b')"
    )
