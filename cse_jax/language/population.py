"""Populations: many formulas of one space as an array of prefix tokens by number, one formula a row.

Numbers follow ``vocabulary``: the leaves of the space, then its operators.  Rows are filled up with ``PAD``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt64

from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.operators import OPERATORS
from cse_jax.language.spaces import Space

PAD = -1  # after the end of a formula


def vocabulary(space: Space) -> tuple[str, ...]:
    """Tokens by number: the leaves, then the operators."""
    return (*space.leaves, *space.readable)


def arities(space: Space) -> Int[np.ndarray, " k"]:
    """Number of operands of each token; one more entry, so that ``PAD`` has none."""
    return np.array([0] * len(space.leaves) + [OPERATORS[name].arity for name in space.readable] + [0], np.int8)


def encode(expressions: Sequence[Expression], space: Space, *, width: int = 1) -> Int[np.ndarray, "n m"]:
    """The array of some formulas, as wide as the longest of them, and at least ``width``."""
    number = {token: k for k, token in enumerate(vocabulary(space))}
    tokens = np.full((len(expressions), max([width, *map(len, expressions)])), PAD, np.int16)
    for row, expression in zip(tokens, expressions, strict=True):
        row[: len(expression)] = [number[token] for token in expression.tokens]
    return tokens


def decode(tokens: Int[Array | np.ndarray, "n m"], space: Space) -> list[Expression]:
    """The formulas of an array.

    Raises:
      ValueError: a row is no formula.
    """
    names = vocabulary(space)
    return [Expression(tuple(names[k] for k in row if k != PAD), space) for row in np.asarray(tokens).tolist()]


class Structure(NamedTuple):
    """Nodes and height of the sub-formula at each place, and whether the prediction occurs in it; 0 after the end."""

    size: Int[Array, "n m"]
    height: Int[Array, "n m"]
    depends: Bool[Array, "n m"]


@functools.partial(jax.jit, static_argnums=1)
def structure(tokens: Int[Array, "n m"], space: Space) -> Structure:
    """Size and height of each sub-formula, and whether the prediction occurs in it."""
    moving = np.isin(vocabulary(space) + ("",), space.differentiable)
    arity = jnp.asarray(arities(space))

    def node(token: jax.Array, first: Structure, second: Structure) -> Structure:
        n = arity[token]
        return Structure(
            (token != PAD) + jnp.where(n > 0, first.size, 0) + jnp.where(n > 1, second.size, 0),
            jnp.where(n > 0, 1 + jnp.maximum(first.height, jnp.where(n > 1, second.height, 0)), 0),
            jnp.asarray(moving)[token] | ((n > 0) & first.depends) | ((n > 1) & second.depends),
        )

    return fold(tokens, space, node, Structure(jnp.int32(0), jnp.int32(0), jnp.asarray(False)))


def fold(tokens: Int[Array, "n m"], space: Space, node: Callable[[jax.Array, Any, Any], Any], blank: Any) -> Any:
    """Computes bottom-up for all formulas at once.

    Args:
      tokens: the formulas.
      space: their space.
      node: the result at tokens [n], from those at their first and second operands; what stands there for an operand
        that a token does not have is arbitrary.
      blank: the result after the end.

    Returns:
      The result at each place, with the shape of ``tokens``.
    """
    count, length = tokens.shape
    arity = jnp.asarray(arities(space), jnp.int32)
    columns = tokens.T

    def step(k: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        results, size = carry
        at = length - 1 - k
        token = columns[at]
        beside = jnp.minimum(at + 1 + size[at + 1], length) * count + jnp.arange(count)  # the second operand

        def take(a: jax.Array) -> jax.Array:
            return a.reshape(-1).at[beside].get(mode="promise_in_bounds")

        first = jax.tree.map(lambda a: a[at + 1], results)
        second = jax.tree.map(take, results)
        n = arity[token]
        own = (token != PAD) + jnp.where(n > 0, size[at + 1], 0) + jnp.where(n > 1, take(size), 0)
        results = jax.tree.map(
            lambda a, new: lax.dynamic_update_index_in_dim(a, new, at, 0), results, node(token, first, second)
        )
        return results, lax.dynamic_update_index_in_dim(size, own, at, 0)

    blanks = jax.tree.map(lambda a: jnp.full((length + 1, count), a), blank)
    results, _ = lax.fori_loop(0, length, step, (blanks, jnp.zeros((length + 1, count), jnp.int32)))
    return jax.tree.map(lambda a: a[:-1].T, results)


class _Hash(NamedTuple):
    """A sub-formula as a sum and as a product: hashes that don't depend on the order or grouping of the parts.

    ``plus`` and ``minus`` add up the hashes of the terms of either sign; ``factors`` those of the factors, without
    their signs.
    """

    plus: UInt64[Array, " n"]
    minus: UInt64[Array, " n"]
    factors: UInt64[Array, " n"]


def hashes(tokens: Int[np.ndarray, "n m"], space: Space) -> UInt64[np.ndarray, " n"]:
    """A number for each formula, the same for its trivial rewrites: see ``cse_jax.language.canonical``.

    Operands of commutative operators may change places, sums and products be grouped otherwise, ``a + -b`` is
    ``a - b``, and signs may be pulled out of products, quotients and dot products.
    """
    found = np.zeros(len(tokens), np.uint64)
    length = (tokens != PAD).sum(1)
    widest = -(-tokens.shape[1] // 8) * 8
    for shortest, width in ((0, 16), (16, widest)):
        rows = np.flatnonzero((length > shortest) & (length <= width))
        padded = np.full((max(1024, 1 << (len(rows) - 1).bit_length()), width), PAD, np.int16)  # few shapes to compile
        padded[: len(rows), : tokens.shape[1]] = tokens[rows, :width]
        if len(rows):
            with float64():
                found[rows] = np.asarray(_hashes(padded, space))[: len(rows)]
    return found


@functools.partial(jax.jit, static_argnums=1)
def _hashes(tokens: Int[Array, "n m"], space: Space) -> UInt64[Array, " n"]:
    names = vocabulary(space)
    salts = jnp.asarray(np.random.default_rng(0).integers(1, 2**63, len(names) + 1, dtype=np.uint64))
    commutative = jnp.asarray([name in OPERATORS and OPERATORS[name].commutative for name in (*names, "")])
    arity = jnp.asarray(arities(space))
    zero = jnp.uint64(0)

    def is_any(token: jax.Array, *which: str) -> jax.Array:
        return functools.reduce(
            jnp.logical_or, (token == names.index(n) for n in which if n in names), token == PAD - 1
        )

    def node(token: jax.Array, first: _Hash, second: _Hash) -> _Hash:
        n = arity[token]
        negative = first.plus < first.minus, second.plus < second.minus
        bare = tuple(_pair(jnp.maximum(h.plus, h.minus), jnp.minimum(h.plus, h.minus)) for h in (first, second))
        signed = tuple(jnp.where(below, ~value, value) for below, value in zip(negative, bare, strict=True))
        without_sign = is_any(token, "Abs", "Mul", "Dot", "Div"), is_any(token, "Mul", "Dot")
        one, two = (jnp.where(which, b, s) for which, b, s in zip(without_sign, bare, signed, strict=True))
        below = jnp.where(commutative[token], one + two, one * np.uint64(3) + jnp.where(n > 1, two, zero))
        factors = [jnp.where(h.factors > 0, h.factors, b) for h, b in zip((first, second), bare, strict=True)]
        product = is_any(token, "Mul")
        below = jnp.where(product, factors[0] + factors[1], below)
        own = _mix(salts[token] + jnp.where(n > 0, below, zero))
        pulled = is_any(token, "Mul", "Dot", "Div") & negative[0] ^ is_any(token, "Mul", "Dot") & negative[1]
        plus, minus = jnp.where(pulled, zero, own), jnp.where(pulled, own, zero)
        swapped, added, negated = is_any(token, "Sub"), is_any(token, "Add", "Sub"), is_any(token, "Neg")
        plus, minus = (
            jnp.where(added, mine + jnp.where(swapped, other, same), jnp.where(negated, flipped, plain))
            for mine, same, other, flipped, plain in (
                (first.plus, second.plus, second.minus, first.minus, plus),
                (first.minus, second.minus, second.plus, first.plus, minus),
            )
        )
        factors = jnp.where(product, factors[0] + factors[1], jnp.where(negated, first.factors, zero))
        return _Hash(plus, minus, factors)

    whole = jax.tree.map(lambda a: a[:, 0], fold(tokens, space, node, _Hash(zero, zero, zero)))
    return _pair(whole.plus, whole.minus)


def _pair(one: jax.Array, two: jax.Array) -> jax.Array:
    return _mix(one + two * np.uint64(0x9E3779B97F4A7C15))


def _mix(value: jax.Array) -> jax.Array:
    """Scrambles 64 bits (the finaliser of splitmix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
