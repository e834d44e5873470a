"""Canonical form: one formula for all of its trivial algebraic rewrites.

Only rewrites that leave value and gradient alone (up to rounding) are made: operand order of commutative operators,
grouping of sums and products, ``a + -b`` as ``a - b``, and signs pulled out of products, quotients and dot products.
Deeper equalities are left to the gate's fingerprint.
"""

from cse_jax.language.expression import Expression
from cse_jax.language.operators import OPERATORS

_Tokens = tuple[str, ...]
_PULLS_SIGN = {"Mul": (0, 1), "Dot": (0, 1), "Div": (0,)}  # operands whose sign may move out; 1e-20 pins a divisor's


def canonical(expression: Expression) -> Expression:
    """The canonical form; idempotent.  In a space without sums and signs it is the formula itself."""
    if not {"Add", "Sub", "Neg"} <= set(expression.space.readable):
        return expression
    normal = Expression(expression.fold(lambda token: (token,), _node), expression.space)
    return Expression(normal.fold(lambda token: (token,), _with_differences), expression.space)


def _with_differences(name: str, *operands: _Tokens) -> _Tokens:
    """Sums of sorted terms with signs, as a person would write them."""
    if name == "Add":
        left, right = operands
        if right[0] == "Neg":
            return ("Sub", *left, *right[1:])
        if left[0] == "Neg":
            return ("Sub", *right, *left[1:])
    return (name, *sum(operands, ()))


def _node(name: str, *operands: _Tokens) -> _Tokens:
    if name == "Neg":
        return _negate(operands[0])
    if name == "Sub":
        return _chain("Add", operands[0], _negate(operands[1]))
    if name == "Add":
        return _chain("Add", *operands)
    if name == "Abs":
        return ("Abs", *_strip(operands[0])[0])
    negative = False
    parts = list(operands)
    for k in _PULLS_SIGN.get(name, ()):
        parts[k], flipped = _strip(parts[k])
        negative ^= flipped
    if name == "Mul":
        result = _chain("Mul", *parts)
    elif OPERATORS[name].commutative:
        result = (name, *sum(sorted(parts), ()))
    else:
        result = (name, *sum(parts, ()))
    return ("Neg", *result) if negative else result


def _negate(tokens: _Tokens) -> _Tokens:
    """The negation, moved into the terms of a sum so that equal sums look equal."""
    if tokens[0] == "Neg":
        return tokens[1:]
    if tokens[0] == "Add":
        return _chain("Add", *(_negate(term) for term in _terms("Add", tokens)))
    return ("Neg", *tokens)


def _strip(tokens: _Tokens) -> tuple[_Tokens, bool]:
    """Tokens without a leading sign, and whether there was one; a sum has one if all of its terms do."""
    if tokens[0] == "Neg":
        return tokens[1:], True
    if tokens[0] == "Add" and all(term[0] == "Neg" for term in _terms("Add", tokens)):
        return _negate(tokens), True
    return tokens, False


def _chain(name: str, *operands: _Tokens) -> _Tokens:
    """A sum or product of the flattened, sorted terms, grouped to the left."""
    terms = sorted(term for operand in operands for term in _terms(name, operand))
    result = terms[0]
    for term in terms[1:]:
        result = (name, *result, *term)
    return result


def _terms(name: str, tokens: _Tokens) -> list[_Tokens]:
    """Terms of a left-grouped chain."""
    later = []
    while tokens[0] == name:
        first = _end(tokens, 1)
        later.append(tokens[first:])
        tokens = tokens[1:first]
    return [tokens, *reversed(later)]


def _end(tokens: _Tokens, start: int) -> int:
    missing = 1
    while missing:
        missing += (OPERATORS[tokens[start]].arity if tokens[start] in OPERATORS else 0) - 1
        start += 1
    return start
