"""Simplifies formulas with SymPy, and takes a simpler form only where it is the same loss.

SymPy does not know that ``/`` and ``log`` add 1e-20 and ``exp`` stops at 88, nor what cancels in floating point.  So
a simpler form counts only if its value and gradient equal the original's on the whole verification grid.
"""

import contextlib
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import jax.numpy as jnp
import numpy as np

from cse_jax.export.notation import symbols, to_sympy
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.operators import OPERATORS
from cse_jax.language.program import compile_expression, instruction_set
from cse_jax.language.spaces import Space, trajectories

TOLERANCE = 1e-9  # relative, and of the largest magnitude on a path: float64 rounds at 1e-16, regrouping at a few 1e-13
_EXACT = 2**53  # the largest number to which floats hold all
_EVERY = 97  # calls, returns and the like between looks at the clock, which takes longer than most of them; a prime
SECONDS = 20.0  # of a processor, for SymPy to rewrite a formula; it takes for ever over some fractions in fractions


@dataclasses.dataclass(frozen=True)
class Simplified:
    """The outcome.

    Attributes:
      formula: the shortest form that is the same loss; it may hold constants that the space lacks.
      note: what was done, or why a shorter form was refused.
    """

    formula: Expression
    note: str


@functools.lru_cache(maxsize=256)
def simplify(expression: Expression) -> Simplified:
    """The shortest form of a formula that SymPy finds in ``SECONDS`` and the verification grid confirms."""
    refused = ""
    forms, ended = _forms_in_time(expression)
    for shorter in sorted(forms, key=lambda form: (*_complexity(form), str(form))):
        if _complexity(shorter) >= _complexity(expression):
            break
        difference = difference_on_grid(expression, shorter)
        if not difference:
            return Simplified(shorter, f"simplified from {expression}")
        refused = refused or f"not simplified to {shorter}: {difference}"
    known = "no simpler form is known" if ended else f"SymPy found no simpler form in {SECONDS:g} seconds"
    return Simplified(expression, refused or f"as it was found; {known}")


def _complexity(expression: Expression) -> tuple[int, int]:
    """Depth of fractions in fractions, then size."""

    def node(name: str, *below: int) -> int:
        return max(below) + (name == "Div")

    return expression.fold(lambda _: 0, node), len(expression)


def _forms_in_time(expression: Expression) -> tuple[list[Expression], bool]:
    """The rewritten forms that are there after ``SECONDS``, and whether they are all."""
    found: list[Expression] = []
    try:
        with _limit(SECONDS):
            for form in _forms(expression):
                found.append(form)
    except (_TimeIsUp, RecursionError):
        return found, False
    return found, True


class _TimeIsUp(BaseException):
    """Not an ``Exception``: SymPy passes over many of these."""


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raises in this thread, whichever it is, soon after so much time on a processor."""
    end, before, events = time.thread_time() + seconds, sys.getprofile(), itertools.count()
    sys.setprofile(
        lambda _, event, __: (
            _stop() if next(events) % _EVERY == 0 and event == "call" and time.thread_time() > end else None
        )
    )
    try:
        yield
    finally:
        sys.setprofile(before)


def _stop() -> NoReturn:
    raise _TimeIsUp


def _forms(expression: Expression) -> Iterator[Expression]:
    """Rewritten forms that our language can express."""
    import sympy

    seen = set()
    plain = to_sympy(expression).doit()
    rewrites = [sympy.simplify, sympy.factor, sympy.cancel, sympy.together]
    for symbol in sorted((s for s in symbols(expression).values() if plain.has(s)), key=str):
        rewrites.append(lambda e, s=symbol: sympy.collect(sympy.expand(e), 1 / s))
        rewrites.append(lambda e, s=symbol: sympy.collect(sympy.expand(e), s))
        rewrites.append(lambda e, s=symbol: sympy.apart(e, s))
    for rewrite in [lambda e: e, *rewrites]:
        try:
            tokens = _tokens(rewrite(plain), expression)
        except (_Inexpressible, NotImplementedError, sympy.PolynomialError):
            continue
        if tokens not in seen:
            seen.add(tokens)
            yield Expression(tokens, _with_constants(expression.space, tokens))


def _with_constants(space: Space, tokens: tuple[str, ...]) -> Space:
    """The space, with the constants that the tokens need."""
    constants = {token: float(token) for token in tokens if token[0].isdigit()}
    more = [int(value) for token, value in constants.items() if token not in space.leaves]
    return dataclasses.replace(space, constants=(*space.constants, *sorted(more))) if more else space


class _Inexpressible(Exception):
    """SymPy used something that the language lacks."""


def _tokens(formula, expression: Expression) -> tuple[str, ...]:
    """Prefix tokens of a SymPy expression."""
    import sympy

    variables = {symbol: name for name, symbol in symbols(expression).items()}
    functions = {}
    for name in expression.space.readable:
        row = OPERATORS[name]
        form = row.sympy(sympy, *sympy.symbols("a b", real=True)[: row.arity])
        if isinstance(form, sympy.Function):
            functions[type(form).__name__] = name

    def require(name: str) -> str:
        if name not in expression.space.readable:
            raise _Inexpressible(name)
        return name

    def number(value) -> tuple[str, ...]:
        if value == 0 or max(abs(value.p), value.q) > _EXACT:
            raise _Inexpressible(value)
        if value < 0:
            return (require("Neg"), *number(-value))
        if value.q == 1:
            return (str(value.p),)
        return (require("Div"), str(value.p), str(value.q))

    def product(factors: list[tuple[str, ...]]) -> tuple[str, ...]:
        result = factors[0]
        for factor in factors[1:]:
            result = (require("Mul"), *result, *factor)
        return result

    def power(base, exponent) -> list[tuple[str, ...]]:
        """Factors whose product is a positive power."""
        if exponent.is_Rational and exponent.q == 2:
            return [(require("Sqrt"), *convert(base))] * int(exponent.p)
        if not exponent.is_Integer or exponent > 8:
            raise _Inexpressible(exponent)
        return [convert(base)] * int(exponent)

    def multiply(node) -> tuple[str, ...]:
        coefficient, rest = node.as_coeff_Mul()
        if not coefficient.is_Rational:
            raise _Inexpressible(coefficient)
        negative = coefficient < 0
        above, below = [], []
        for constant, side in ((abs(coefficient.p), above), (coefficient.q, below)):
            if constant != 1:
                side.append(number(sympy.Integer(constant)))
        for factor in sympy.Mul.make_args(rest):
            base, exponent = factor.as_base_exp()
            if base is sympy.E or not exponent.is_Rational:
                above.append(convert(factor))
                continue
            if exponent.is_odd and _all_negative(base):
                negative, base = not negative, -base
            if exponent < 0:
                below += power(base, -exponent)
            elif base is not sympy.S.One:
                above += power(base, exponent)
        above = above or [("1",)]
        if negative:
            above[0] = (require("Neg"), *above[0])
        return (require("Div"), *product(above), *product(below)) if below else product(above)

    def add(node) -> tuple[str, ...]:
        terms = sorted((convert(term) for term in node.as_ordered_terms()), key=lambda term: _sign(term) < 0)
        result = terms[0]
        for term in terms[1:]:
            negative = _sign(term) < 0
            result = (require("Sub" if negative else "Add"), *result, *(_negated(term) if negative else term))
        return result

    def convert(node) -> tuple[str, ...]:
        if node in variables:
            return (variables[node],)
        if node.is_Rational:
            return number(node)
        if node is sympy.E:
            return (require("Exp"), "1")
        if node.is_Add:
            return add(node)
        if node.is_Mul or (node.is_Pow and node.base is not sympy.E):
            return multiply(node)
        name = "exp" if node.is_Pow else type(node).__name__
        if name not in functions:
            raise _Inexpressible(name)
        operands = (node.exp,) if node.is_Pow else node.args
        return (functions[name], *sum((convert(operand) for operand in operands), ()))

    return convert(formula)


def _all_negative(base) -> bool:
    return base.is_Add and all(term.as_coeff_Mul()[0].is_negative for term in base.args)


def _sign(tokens: tuple[str, ...]) -> int:
    """-1 for a term whose first factor is negated."""
    first = next(token for token in tokens if token not in ("Mul", "Div"))
    return -1 if first == "Neg" else 1


def _negated(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """A term of negative sign without it."""
    at = tokens.index("Neg")
    return tokens[:at] + tokens[at + 1 :]


def difference_on_grid(expression: Expression, other: Expression) -> str:
    """Empty if two formulas have the same value and gradient on the verification grid, else the first difference."""
    space = expression.space
    for units in space.units:
        inputs = _grid(space, units)
        with float64():
            both = [_value_and_gradients(e, inputs) for e in (expression, other)]
        for what, ours, theirs in zip(("value", *space.differentiable), *both, strict=True):
            scale = np.max(
                np.abs(ours), axis=tuple(range(1, ours.ndim)), keepdims=True, initial=0.0, where=np.isfinite(ours)
            )
            with np.errstate(invalid="ignore"):
                same = np.abs(theirs - ours) <= TOLERANCE * np.maximum(np.abs(ours), scale)
            same |= ~np.isfinite(ours) & ~np.isfinite(theirs)
            if not same.all():
                place = tuple(np.argwhere(~same)[0])
                at = ", ".join(f"{v.symbol}={inputs[v.name][place]:g}" for v in space.variables)
                kind = what if what == "value" else f"gradient in {what}"
                return f"the {kind} would be {theirs[place]:.6g} instead of {ours[place]:.6g} at {at} ({units})"
    return ""


def _grid(space: Space, units: str) -> dict[str, np.ndarray]:
    """The verification grid, and the same where each of the other inputs is 0: there is such an IoU, but on no path."""
    grid = dict(zip((v.name for v in space.variables), trajectories(space, units).inputs, strict=True))
    others = [v.name for v in space.variables if v.sign == "nonnegative" and v.name not in space.differentiable]
    grids = [grid, *(grid | {name: np.zeros_like(grid[name])} for name in others)]
    return {name: np.concatenate([each[name] for each in grids]) for name in grid}


def _value_and_gradients(expression: Expression, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Loss and its gradients in the differentiable inputs as candidates train, with 0 times infinity as 0."""
    space, program = expression.space, compile_expression(expression, len(expression))
    operators = instruction_set(space)
    variables = [jnp.asarray(inputs[v.name]) for v in space.variables]
    rows = [*variables, *(jnp.full_like(variables[0], constant) for constant in space.constants)]
    used = np.stack([program.opcode, program.left, program.right], 1)[: int(program.length)].tolist()
    for opcode, left, right in used:
        rows.append(operators[opcode].apply(rows[left], rows[right]))
    share = 1.0 if program.wide or not space.class_axis else 1.0 / variables[0].shape[-1]  # of a class
    cotangents = [jnp.zeros_like(variables[0])] * len(rows)
    cotangents[int(program.root)] += share
    for own, (opcode, left, right) in reversed(list(enumerate(used, len(space.leaves)))):
        to_left, to_right = operators[opcode].transpose(rows[left], rows[right], cotangents[own])
        cotangents[left] += to_left
        cotangents[right] += to_right
    moving = [cotangents[space.leaves.index(name)] for name in space.differentiable]
    return [np.asarray(a) for a in (rows[int(program.root)] * share, *moving)]
