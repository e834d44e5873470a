"""Random formulas by the hundred thousand: ramped growth of a graph in which nearly every node is a candidate.

A node of height h is a random operator over random nodes of height h - 1 (full), or of any height below, leaves
included (grow): the law of ramped half-and-half growth, given that the prediction occurs in the formula.  Operands are
drawn from the nodes that are there already, so a formula costs a single node, and each of its parts is a candidate of
its own height.

The slots of a tile have fixed roles, so that operands are drawn by arithmetic: full or grown, and dependent on the
prediction or not.  Independent nodes serve as operands only.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from cse_jax.language.graph import Graph
from cse_jax.language.population import PAD, arities
from cse_jax.language.spaces import Space
from cse_jax.sampling.random_trees import VARIABLE_SHARE

HEIGHTS = 6
MIN_HEIGHT = 2
_INDEPENDENT = 8  # one slot in so many is independent of the prediction
_RARE = 1e-12  # nearly all of high nodes depend on the prediction


class Grown(NamedTuple):
    """A random graph of ``r`` rows.

    Attributes:
      graph: the graph.
      size: nodes of each row's formula.
      candidate: rows that are candidates: high enough, not too large, and dependent on the prediction.
      wide: rows with a class axis.
    """

    graph: Graph
    size: Int[Array, " r"]
    candidate: Bool[Array, " r"]
    wide: Bool[Array, " r"]


@dataclasses.dataclass(frozen=True)
class _Odds:
    """Probabilities of one height.

    Attributes:
      operand: that a random operand depends on the prediction.
      leaf_if_dependent, leaf_if_not: that such an operand is a leaf.
      node: that a random node of this height depends on the prediction.
    """

    operand: float
    leaf_if_dependent: float
    leaf_if_not: float
    node: float


def _odds(space: Space, *, full: bool) -> list[_Odds]:
    """The odds of each height, from those below it."""
    arities = [row.arity for row in space.table if row.name in space.operators]
    binary = arities.count(2) / len(arities)
    of_leaves = VARIABLE_SHARE * len(space.differentiable) / len(space.variables)
    share = len(space.leaves) / (len(space.leaves) + len(space.operators))
    odds, below = [], of_leaves
    for height in range(HEIGHTS):
        leaf = 1.0 if height == 0 else 0.0 if full else share
        operand = leaf * of_leaves + (1.0 - leaf) * below
        below = (1.0 - binary) * operand + binary * (1.0 - (1.0 - operand) ** 2)
        odds.append(
            _Odds(operand, leaf * of_leaves / operand, leaf * (1.0 - of_leaves) / max(1.0 - operand, _RARE), below)
        )
    return odds


@functools.partial(jax.jit, static_argnames=("space", "width", "per_operator", "max_nodes"))
def grow(key: jax.Array, space: Space, *, width: int = 256, per_operator: int = 4, max_nodes: int = 40) -> Grown:
    """A random graph, which is a function of the key.

    Args:
      key: of ``jax.random``.
      space: the space.
      width: rows of a tile, a multiple of 16; the first half of each is full, the second grown.
      per_operator: tiles of each operator at each height.
      max_nodes: nodes that no candidate may exceed.
    """
    operators = [space.readable.index(name) for name in space.operators]
    tiles, leaves = len(operators) * per_operator, len(space.leaves)
    rows = [space.table[k] for k in operators for _ in range(per_operator)]
    unary = np.array([row.arity == 1 for row in rows])[:, None]
    reduces = np.array([row.reduces for row in rows])[:, None]
    slot = np.arange(width)
    full, free = slot < width // 2, slot % (width // 2) < width // 2 // _INDEPENDENT
    size = jnp.ones(leaves, jnp.int32)
    wide = jnp.asarray((np.arange(leaves) < len(space.variables)) & space.class_axis)
    candidate = [np.zeros(leaves, bool)]
    parts = []
    odds = zip(_odds(space, full=True), _odds(space, full=False), strict=True)
    for level, of_height in enumerate(odds):
        chance, draw = _draw(jax.random.fold_in(key, level), (tiles, width))
        per_slot = {
            name: np.where(full, *(getattr(o, name) for o in of_height))
            for name in ("operand", "leaf_if_dependent", "leaf_if_not")
        }
        depends = _dependence(chance[0], per_slot["operand"], unary, free)
        is_leaf = chance[1:3] < jnp.where(depends, per_slot["leaf_if_dependent"], per_slot["leaf_if_not"])
        node = leaves + (level - 1) * tiles * width + _slot(draw, depends, full, tiles, width)
        operand = jnp.where(is_leaf, _leaf(space, chance[3:5], draw, depends), node)
        left, right = operand[0], jnp.where(unary, operand[0], operand[1])
        own_size = 1 + size[left] + jnp.where(unary, 0, size[right])
        own_wide = wide[left] | wide[right]
        parts.append((left, right, own_wide))
        candidate.append((~free & (own_size <= max_nodes) & (level + 1 >= MIN_HEIGHT)).reshape(-1))
        size = jnp.concatenate([size, own_size.reshape(-1)])
        wide = jnp.concatenate([wide, (own_wide & ~reduces).reshape(-1)])
    left, right, operands_wide = (jnp.concatenate(arrays) for arrays in zip(*parts, strict=True))
    opcode = jnp.asarray(np.tile(np.repeat(operators, per_operator), HEIGHTS), jnp.int32)
    graph = Graph(opcode, left, right, operands_wide, jnp.int32(HEIGHTS * tiles))
    return Grown(graph, size, jnp.concatenate(candidate), wide)


def _draw(key: jax.Array, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Five uniform numbers in [0, 1) and two random 32-bit integers for each slot."""
    bits = jax.random.bits(key, (5, *shape), jnp.uint32)
    halves = jnp.stack([bits[0] >> 16, bits[1] >> 16, bits[1] & 0xFFFF, bits[2] >> 16, bits[2] & 0xFFFF])
    return halves.astype(jnp.float32) * (1.0 / 2**16), bits[3:]


def _dependence(chance: jax.Array, operand: np.ndarray, unary: np.ndarray, free: np.ndarray) -> jax.Array:
    """Whether each operand [2, tiles, width] depends on the prediction, given whether the node does."""
    both, one = operand**2, operand * (1.0 - operand)
    chance = chance * (both + 2.0 * one)
    left = unary | (chance < both + one)
    right = unary | (chance < both) | (chance >= both + one)
    return jnp.stack([left, right]) & ~free


def _slot(draw: jax.Array, depends: jax.Array, full: np.ndarray, tiles: int, width: int) -> jax.Array:
    """A random node of the height below that has the wanted role, as its place among the rows of that height."""
    half = width // 2
    independent = half // _INDEPENDENT
    count = jnp.where(depends, half - independent, independent)
    chosen = (draw % (tiles * count).astype(jnp.uint32)).astype(jnp.int32)
    place = chosen % count + jnp.where(depends, independent, 0) + np.where(full, 0, half)
    return chosen // count * width + place


def _leaf(space: Space, chance: jax.Array, draw: jax.Array, depends: jax.Array) -> jax.Array:
    """A random leaf: a variable four times out of five, else a constant, given whether it is to depend."""
    moving = np.array([space.leaves.index(name) for name in space.differentiable])
    fixed = np.array([k for k, v in enumerate(space.variables) if v.name not in space.differentiable] or [0])
    constants = len(space.variables) + np.arange(len(space.constants))
    others = VARIABLE_SHARE * (len(space.variables) - len(moving)) / len(space.variables)
    other = others / (others + 1.0 - VARIABLE_SHARE)

    def pick(rows: np.ndarray) -> jax.Array:
        return jnp.asarray(rows)[draw % np.uint32(len(rows))]

    return jnp.where(depends, pick(moving), jnp.where(chance < other, pick(fixed), pick(constants)))


def tokens_of(grown: Grown, rows: Int[np.ndarray, " n"], space: Space) -> Int[np.ndarray, "n m"]:
    """The formulas of some rows of a graph, as prefix tokens by number."""
    graph, size = jax.device_get((grown.graph, grown.size))
    leaves, width = len(space.leaves), graph.left.shape[1]
    arity = arities(space)
    tokens = np.full((len(rows), int(size[rows].max(initial=1))), PAD, np.int16)
    which, at, row = np.arange(len(rows)), np.zeros(len(rows), np.int64), np.asarray(rows, np.int64)
    left, right = graph.left.reshape(-1), graph.right.reshape(-1)
    while len(row):  # for all formulas, one height after another
        slot = row - leaves
        token = np.where(slot < 0, row, leaves + graph.opcode[np.maximum(slot, 0) // width])
        tokens[which, at] = token
        inner = slot >= 0
        which, at, slot, binary = which[inner], at[inner], slot[inner], arity[token[inner]] == 2
        first, second = left[slot], right[slot][binary]
        at_second = (at + 1 + size[first])[binary]
        which, at = np.concatenate([which, which[binary]]), np.concatenate([at + 1, at_second])
        row = np.concatenate([first, second]).astype(np.int64)
    return tokens
