"""Crossover and mutation of whole populations, as arrays of prefix tokens (``cse_jax.language.population``).

Everything here is determined by its key and runs on any device.  A formula that breaks a limit is drawn again.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from cse_jax.language.population import PAD, Structure, arities, structure
from cse_jax.language.spaces import Space
from cse_jax.sampling.random_trees import (
    BLOCK,
    Shape,
    below,
    collect,
    constants,
    in_blocks,
    nested,
    pick,
    random_attempt,
    random_block,
    random_leaf,
    random_operator,
    trees,
)

_ATTEMPTS = 20
_SMALL_HEIGHT, _SMALL_NODES = 3, 16  # of sub-formulas that a mutation plants
VARIATIONS = ("crossover", "mutation", "random")  # how offspring come about
MUTATIONS = ("subtree", "point", "hoist", "wrap", "constant")


def offspring(
    key: jax.Array,
    parents: Int[Array | np.ndarray, "p m"],
    space: Space,
    shape: Shape,
    count: int,
    *,
    crossover_rate: float,
    mutation_rate: float,
) -> tuple[Int[Array, "n k"], Int[Array, "n 3"]]:
    """Offspring of random parents, and new random formulas.

    Args:
      key: of ``jax.random``.
      parents: formulas as prefix tokens by number.
      space: their space.
      shape: limits on the offspring.
      count: number of offspring ``n``.
      crossover_rate: share of the offspring that are crossovers of two parents.
      mutation_rate: share that are mutations of one; the rest are new random formulas.  Both shares are of attempts:
        where a child is not allowed, everything about it is drawn again.

    Returns:
      The offspring, and of each its kind of ``VARIATIONS``, mother and father, ``PAD`` for none.
    """
    room = max(8, 1 << (len(parents) - 1).bit_length())  # few sizes to compile
    padded = jnp.pad(_widened(parents, shape.max_nodes), ((0, room - len(parents)), (0, 0)), constant_values=PAD)
    found = in_blocks(
        key,
        count,
        lambda key: _offspring(key, padded, len(parents), space, shape, BLOCK, crossover_rate, mutation_rate),
    )
    return found[:, :-3], found[:, -3:]


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _offspring(
    key: jax.Array,
    parents: Int[Array, "p m"],
    number: jax.Array,
    space: Space,
    shape: Shape,
    count: int,
    crossover_rate: jax.Array,
    mutation_rate: jax.Array,
) -> Int[Array, "n k3"]:
    """Tokens and, behind them, origins."""
    about = structure(parents, space)

    def attempt(key: jax.Array, made: jax.Array) -> tuple[jax.Array, jax.Array]:
        draws, crossing, changing, growing = jax.random.split(key, 4)
        chance = jax.random.uniform(draws, (3, count), jnp.float32)
        mother = below(chance[0], number)
        father = (mother + 1 + below(chance[1], number - 1)) % number
        hers, his = (jax.tree.map(lambda a: a[which], about) for which in (mother, father))
        crossed, crossed_length = _crossed(crossing, parents[mother], hers, parents[father], his)
        mutated, mutated_length = _changed(changing, parents[mother], hers, space, shape, jnp.arange(len(MUTATIONS)))
        fresh, complete = random_attempt(space, shape, count, growing)
        crosses = (chance[2] < crossover_rate) & (number > 1)
        new = ~crosses & (chance[2] >= crossover_rate + mutation_rate) | (made >= _ATTEMPTS)
        children = jnp.where(crosses[:, None], crossed, mutated)
        length = jnp.where(crosses, crossed_length, mutated_length)
        allowed = jnp.where(new, complete, _allowed(children, length, parents[mother], space, shape))
        tokens = jnp.where(new[:, None], _widened(fresh, parents.shape[1]), children)
        kind = jnp.where(new, 2, jnp.where(crosses, 0, 1))
        origin = jnp.stack([kind, jnp.where(new, PAD, mother), jnp.where(crosses & ~new, father, PAD)], 1)
        return jnp.concatenate([tokens, origin.astype(tokens.dtype)], 1), allowed

    return collect(key, attempt, count, parents.shape[1] + 3)


@functools.partial(jax.jit, static_argnums=(3, 4))
def crossover(
    key: jax.Array, mothers: Int[Array, "n m"], fathers: Int[Array, "n k"], space: Space, shape: Shape
) -> Int[Array, "n w"]:
    """Each mother with one of her sub-formulas replaced by one of the father's.

    Where no attempt gives an allowed formula, the mother is mutated.
    """
    mothers, fathers = (_widened(parents, shape.max_nodes) for parents in (mothers, fathers))
    hers, his = structure(mothers, space), structure(fathers, space)

    def attempt(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        children, length = _crossed(key, mothers, hers, fathers, his)
        return children, _allowed(children, length, mothers, space, shape)

    draw, other = jax.random.split(key)
    children, good = _each_until_allowed(draw, attempt)
    return jnp.where(good[:, None], children, mutate(other, mothers, space, shape))


def mutate(
    key: jax.Array,
    parents: Int[Array | np.ndarray, "n m"],
    space: Space,
    shape: Shape,
    kinds: tuple[str, ...] = MUTATIONS,
) -> Int[Array, "n k"]:
    """Each parent with a random change of one of the ``kinds``.

    A change replaces a sub-formula by a random one (subtree) or by a part of itself (hoist), exchanges a token for one
    with as many operands (point) or a constant for another one (constant), or applies an operator to a sub-formula
    (wrap).  Where no attempt gives an allowed formula, the child is a new random one.
    """
    return _mutate(key, parents, jnp.array([MUTATIONS.index(kind) for kind in kinds]), space, shape)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _mutate(
    key: jax.Array, parents: Int[Array, "n m"], kinds: Int[Array, " k"], space: Space, shape: Shape
) -> Int[Array, "n k2"]:
    parents = _widened(parents, shape.max_nodes)
    about = structure(parents, space)

    def attempt(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        children, length = _changed(key, parents, about, space, shape, kinds)
        return children, _allowed(children, length, parents, space, shape)

    draw, other = jax.random.split(key)
    children, good = _each_until_allowed(draw, attempt)
    fresh = random_block(other, space, shape, len(parents))
    return jnp.where(good[:, None], children, _widened(fresh, children.shape[1]))


def _each_until_allowed(key: jax.Array, attempt: Callable) -> tuple[Int[Array, "n m"], Bool[Array, " n"]]:
    """The first allowed formula of each row, and whether there is one."""

    def again(carry: tuple) -> tuple:
        made, tokens, good = carry
        fresh, allowed = attempt(jax.random.fold_in(key, made))
        return made + 1, jnp.where(good[:, None], tokens, fresh), good | allowed

    first = (jnp.int32(1), *attempt(jax.random.fold_in(key, 0)))
    _, tokens, good = lax.while_loop(lambda c: ~c[2].all() & (c[0] < _ATTEMPTS), again, first)
    return tokens, good


def _crossed(
    key: jax.Array, mothers: Int[Array, "n m"], hers: Structure, fathers: Int[Array, "n m"], his: Structure
) -> tuple[Int[Array, "n m"], Int[Array, " n"]]:
    """Each mother with a random sub-formula replaced by one of the father's, and the length of the result."""
    chance = jax.random.uniform(key, (2, len(mothers)), jnp.float32)
    (start, stop), (begin, end) = _part(chance[0], hers), _part(chance[1], his)
    children = _splice(mothers, start, stop, fathers, begin, end)
    return children, hers.size[:, 0] + (end - begin) - (stop - start)


def _changed(
    key: jax.Array, parents: Int[Array, "n m"], about: Structure, space: Space, shape: Shape, kinds: Int[Array, " k"]
) -> tuple[Int[Array, "n m"], Int[Array, " n"]]:
    """A random change of each formula, and the length of the result."""
    count, width = parents.shape
    draws, planted = jax.random.split(key)
    chance = jax.random.uniform(draws, (10, count), jnp.float32)
    kind = kinds[below(chance[0], len(kinds))]
    is_kind = {name: kind == k for k, name in enumerate(MUTATIONS)}
    start, stop = _part(chance[1], about)
    each = jnp.arange(count)

    constant = (parents >= len(space.variables)) & (parents < len(space.leaves))
    number = below(chance[2], constant.sum(1))[:, None]
    some_constant = jnp.argmax(constant & (jnp.cumsum(constant, 1) == number + 1), 1)
    start = jnp.where(is_kind["constant"], some_constant, start)
    single = is_kind["constant"] | is_kind["point"]
    stop = jnp.where(single, start + 1, jnp.where(is_kind["wrap"], start, stop))

    old, leaf = parents[each, start], random_leaf(space, chance[3], chance[4])
    operator = random_operator(space, chance[5], shape.weights)
    binary = jnp.asarray(arities(space))[operator] == 2
    leaf_first = binary & (chance[6] < 0.5)
    arity = jnp.asarray(arities(space))[old]
    same_arity = [leaf, *(random_operator(space, chance[5], shape.weights, n) for n in (1, 2))]
    point = jnp.select([arity == n for n in range(3)], same_arity, PAD)
    token = jnp.where(is_kind["constant"], pick(constants(space), chance[7]), point)

    small_height = below(chance[8], _SMALL_HEIGHT + 1)
    never = jnp.zeros(count, bool)
    nodes = min(_SMALL_NODES, width)
    small, complete = trees(
        planted, space, small_height, never, highest=_SMALL_HEIGHT, width=nodes, weights=shape.weights
    )
    small = jnp.pad(small, ((0, 0), (0, width - nodes)), constant_values=PAD)
    inner = start + below(chance[9], about.size[each, start])
    front = jnp.stack([jnp.where(single, token, operator), leaf], 1).astype(small.dtype)
    front = jnp.pad(front, ((0, 0), (0, width - 2)), constant_values=PAD)

    donor = jnp.select([is_kind["subtree"][:, None], is_kind["hoist"][:, None]], [small, parents], front)
    begin = jnp.where(is_kind["hoist"], inner, 0)
    taken = jnp.select(
        [is_kind["subtree"], is_kind["hoist"], single],
        [jnp.where(complete, (small != PAD).sum(1), width), about.size[each, inner], 1],
        1 + leaf_first,
    )
    children = _splice(parents, start, stop, donor, begin, begin + taken)
    behind = start + taken + about.size[each, start]  # what an operator is applied to
    further = jnp.where(is_kind["wrap"] & binary & ~leaf_first, 1, 0)
    children = _splice(children, behind, behind, front, jnp.ones_like(behind), 1 + further)
    length = about.size[:, 0] + taken - (stop - start) + further
    return children, jnp.where(is_kind["constant"] & ~constant.any(1), width + 1, length)


def _part(chance: Float[Array, " n"], about: Structure) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Start and end of a random sub-formula of each formula."""
    start = below(chance, about.size[:, 0])
    return start, start + about.size[jnp.arange(len(start)), start]


def _splice(
    tokens: Int[Array, "n m"],
    start: Int[Array, " n"],
    stop: Int[Array, " n"],
    donor: Int[Array, "n m"],
    begin: Int[Array, " n"],
    end: Int[Array, " n"],
) -> Int[Array, "n m"]:
    """The tokens with ``start:stop`` replaced by ``begin:end`` of the donor; what goes beyond the width is lost."""
    width = tokens.shape[1]
    place = jnp.arange(width) - start[:, None]
    taken = (end - begin)[:, None]
    own = jnp.where(place < 0, jnp.arange(width), jnp.arange(width) - taken + (stop - start)[:, None])
    padded = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=PAD)
    kept = jnp.take_along_axis(padded, jnp.clip(own, 0, width), 1)
    given = jnp.take_along_axis(donor, jnp.clip(begin[:, None] + place, 0, width - 1), 1)
    return jnp.where((place >= 0) & (place < taken), given, kept)


def _allowed(
    children: Int[Array, "n m"], length: Int[Array, " n"], parents: Int[Array, "n m"], space: Space, shape: Shape
) -> Bool[Array, " n"]:
    """Which children keep the limits, depend on the prediction, and are not their parents."""
    about = structure(children, space)
    small = (length <= shape.max_nodes) & (about.height[:, 0] <= shape.height_limit)
    small &= about.size[:, 0] == length  # not so where there is no operator of a weight to draw
    fits = nested(children, about.size, space, shape.nesting)
    return small & fits & about.depends[:, 0] & (children != parents).any(1)


def _widened(tokens: Int[Array | np.ndarray, "n m"], width: int) -> Int[Array, "n k"]:
    """The formulas in rows of at least this width."""
    missing = max(width - tokens.shape[1], 0)
    return jnp.pad(jnp.asarray(tokens, jnp.int16), ((0, 0), (0, missing)), constant_values=PAD)
