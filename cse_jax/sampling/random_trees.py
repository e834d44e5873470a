"""Random formulas by ramped growth, all at once, as an array of prefix tokens (``cse_jax.language.population``).

Everything here is determined by its key and runs on any device.  A formula that breaks a limit is drawn again.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from cse_jax.errors import InputError
from cse_jax.language.expression import Expression
from cse_jax.language.operators import OPERATORS
from cse_jax.language.population import PAD, arities, encode, structure, vocabulary
from cse_jax.language.spaces import Space

BLOCK = 4096  # formulas drawn at once; more are drawn block by block, so that their number compiles nothing
VARIABLE_SHARE = 0.8  # of random leaves


@dataclasses.dataclass(frozen=True)
class Shape:
    """Limits on formulas.  Anything below height 9 or 39 nodes can't express the published losses.

    Attributes:
      min_height, max_height: heights that random formulas are ramped over.
      max_nodes: nodes that no formula may exceed.
      height_limit: height that no offspring may exceed.
      weights: how often operators are drawn, by name, where it is not 1 as for all others.
      nesting: an operator, another, and how many times the second may occur within the first.

    Raises:
      InputError: no formula keeps the limits.
    """

    min_height: int = 2
    max_height: int = 6
    max_nodes: int = 40
    height_limit: int = 12
    weights: tuple[tuple[str, float], ...] = ()
    nesting: tuple[tuple[str, str, int], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.min_height <= self.max_height or self.max_nodes <= self.min_height:
            raise InputError(f"{self}: no formula has so few nodes and such a height")

    def allows(self, expression: Expression) -> bool:
        """Whether a formula keeps the limits; weights are none."""
        if len(expression) > self.max_nodes or expression.height > self.height_limit:
            return False
        tokens = encode([expression], expression.space)
        return bool(nested(tokens, structure(tokens, expression.space).size, expression.space, self.nesting)[0])


def random_population(key: jax.Array, space: Space, shape: Shape, count: int) -> Int[Array, "n m"]:
    """Random formulas by ramped half-and-half growth, in which the prediction occurs.

    Args:
      key: of ``jax.random``.
      space: the space; its ``operators`` are used.
      shape: limits on the formulas.
      count: number of formulas ``n``.

    Returns:
      Prefix tokens by number, one formula a row.
    """
    return in_blocks(key, count, lambda key: random_block(key, space, shape, BLOCK))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def random_block(key: jax.Array, space: Space, shape: Shape, count: int) -> Int[Array, "n m"]:
    """``count`` random formulas, drawn at once."""
    return collect(key, lambda key, _: random_attempt(space, shape, count, key), count, shape.max_nodes)


def in_blocks(key: jax.Array, count: int, block: Callable[[jax.Array], jax.Array]) -> Int[Array, "n m"]:
    """The first ``count`` formulas of as many blocks as they need; ``block`` draws one from a key."""
    blocks = [block(jax.random.fold_in(key, k)) for k in range(max(1, -(-count // BLOCK)))]
    return jnp.concatenate(blocks)[:count]


def collect(key: jax.Array, attempt: Callable, count: int, width: int) -> Int[Array, "n m"]:
    """The first ``count`` allowed formulas, in rows of this width.

    ``attempt`` draws formulas, and says which are allowed, from a key and the number of attempts made before.
    """

    def again(carry: tuple) -> tuple:
        made, tokens, filled = carry
        fresh, allowed = attempt(jax.random.fold_in(key, made), made)
        place = jnp.where(allowed, filled + jnp.cumsum(allowed, dtype=jnp.int32) - 1, count)
        return made + 1, tokens.at[place].set(fresh, mode="drop"), filled + allowed.sum(dtype=jnp.int32)

    blank = jnp.full((count, width), PAD, jnp.int16)
    return lax.while_loop(lambda carry: carry[2] < count, again, (jnp.int32(0), blank, jnp.int32(0)))[1]


def random_attempt(
    space: Space, shape: Shape, count: int, key: jax.Array
) -> tuple[Int[Array, "n m"], Bool[Array, " n"]]:
    """Random formulas, and which of them are complete and depend on the prediction."""
    ramp, tree = jax.random.split(key)
    chance = jax.random.uniform(ramp, (2, count), jnp.float32)
    height, full = shape.min_height + below(chance[0], shape.max_height + 1 - shape.min_height), chance[1] < 0.5
    tokens, complete = trees(
        tree, space, height, full, highest=shape.max_height, width=shape.max_nodes, weights=shape.weights
    )
    moving = [vocabulary(space).index(name) for name in space.differentiable]
    allowed = complete & jnp.isin(tokens, jnp.asarray(moving)).any(1)
    if shape.nesting:
        allowed &= nested(tokens, structure(tokens, space).size, space, shape.nesting)
    return tokens, allowed


def nested(
    tokens: Int[Array | np.ndarray, "n m"],
    size: Int[Array, "n m"],
    space: Space,
    nesting: Sequence[tuple[str, str, int]],
) -> Bool[Array, " n"]:
    """Which formulas keep the limits on nesting; ``size`` is that of the sub-formula at each place."""
    names, fits = vocabulary(space), jnp.ones(len(tokens), bool)
    ends = jnp.minimum(jnp.arange(tokens.shape[1]) + size, tokens.shape[1])
    for outer, inner, most in nesting:
        before = jnp.cumsum(jnp.pad(tokens == names.index(inner), ((0, 0), (1, 0))), 1)  # of the inner, at each place
        within = jnp.take_along_axis(before, ends, 1) - before[:, 1:]
        fits &= ~((tokens == names.index(outer)) & (within > most)).any(1)
    return fits


def trees(
    key: jax.Array,
    space: Space,
    height: Int[Array, " n"],
    full: Bool[Array, " n"],
    *,
    highest: int,
    width: int,
    weights: Sequence[tuple[str, float]] = (),
) -> tuple[Int[Array, "n m"], Bool[Array, " n"]]:
    """Random formulas, written token by token, and which of them are complete within the width.

    Args:
      key: of ``jax.random``.
      space: the space.
      height: the height that each formula may reach.
      full: whether all leaves of a formula have this height; else branches end at random.
      highest: the largest of the heights.
      width: number of tokens that a formula may have.
      weights: of operators, as of ``Shape``.
    """
    count = len(height)
    arity = jnp.asarray(arities(space), jnp.int32)
    share_of_leaves = len(space.leaves) / (len(space.leaves) + len(space.operators))
    depth = jnp.arange(highest + 2)

    def step(at: jax.Array, carry: tuple) -> tuple:
        tokens, pending, above = carry  # heights left for operands to come, and how many of them
        chance = jax.random.uniform(jax.random.fold_in(key, at), (3, count), jnp.float32)
        left = jnp.take_along_axis(pending, jnp.maximum(above - 1, 0)[:, None], 1)[:, 0]
        ends = (left == 0) | (~full & (at > 0) & (chance[0] < share_of_leaves))
        token = jnp.where(ends, random_leaf(space, chance[1], chance[2]), random_operator(space, chance[1], weights))
        token = jnp.where(above > 0, token, PAD)
        places = (depth == above[:, None] - 1) | (depth == above[:, None])
        above = above + jnp.where(token == PAD, 0, arity[token] - 1).astype(jnp.int32)
        tokens = lax.dynamic_update_index_in_dim(tokens, token.astype(jnp.int16), at, 0)
        return tokens, jnp.where(places, left[:, None] - 1, pending), above

    blank = jnp.full((width, count), PAD, jnp.int16)
    pending = jnp.broadcast_to(height[:, None], (count, len(depth)))
    tokens, _, above = lax.fori_loop(0, width, step, (blank, pending, jnp.ones(count, jnp.int32)))
    return tokens.T, above == 0


def operators(space: Space, arity: int | None = None) -> list[int]:
    """Numbers of the operators of random formulas, of one arity or of both."""
    names = vocabulary(space)
    return [names.index(name) for name in space.operators if arity in (None, OPERATORS[name].arity)]


def random_operator(
    space: Space, chance: jax.Array, weights: Sequence[tuple[str, float]] = (), arity: int | None = None
) -> jax.Array:
    """An operator of random formulas, of one arity or of both, by a number in [0, 1)."""
    numbers, names = operators(space, arity), vocabulary(space)
    shares = np.cumsum([dict(weights).get(names[number], 1.0) for number in numbers])
    if not weights or not numbers or not shares[-1]:  # there is none of a weight; what comes of it isn't allowed
        return pick(numbers if not weights else [], chance)
    return jnp.asarray(numbers)[jnp.searchsorted(jnp.asarray(shares / shares[-1], jnp.float32), chance, side="right")]


def pick(tokens: Sequence[int], chance: jax.Array) -> jax.Array:
    """One of some tokens, by a number in [0, 1)."""
    if not tokens:
        return jnp.full(chance.shape, PAD)
    return jnp.asarray(tokens)[below(chance, len(tokens))]


def below(chance: jax.Array, number: int | jax.Array) -> jax.Array:
    """An integer from 0 to below ``number``, by a number in [0, 1); 0 if there is none."""
    return jnp.maximum(jnp.minimum((chance * number).astype(jnp.int32), number - 1), 0)


def constants(space: Space) -> list[int]:
    """Numbers of the constants."""
    return list(range(len(space.variables), len(space.leaves)))


def random_leaf(space: Space, which: jax.Array, chance: jax.Array) -> jax.Array:
    """A variable four times out of five, else a constant."""
    variables = list(range(len(space.variables)))
    return jnp.where(which < VARIABLE_SHARE, pick(variables, chance), pick(constants(space), chance))
