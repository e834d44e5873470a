"""Many formulas at once, as one graph of shared sub-formulas.

A graph is a list of tiles; a tile is one operator applied to many pairs of rows.  Rows are numbered: the leaves of the
space first, then tile by tile.  One compiled function evaluates every graph of a size.  Each operator runs on whole
tiles, and a sub-formula that several formulas share is computed once.

A row without class axis is repeated along it.  A tile may hold both kinds of operands, so a class-axis operator runs on
all of its rows along the axis and as ``Operator.narrow``, and ``Graph.wide`` says which result counts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from cse_jax.language.operators import Operator, chain
from cse_jax.language.population import PAD, arities
from cse_jax.language.spaces import Space


class Graph(NamedTuple):
    """A graph of ``t`` tiles of ``b`` rows each; operands are rows of earlier tiles, or leaves."""

    opcode: Int[Array | np.ndarray, " t"]  # position in ``space.table``
    left: Int[Array | np.ndarray, "t b"]  # rows of the first operands
    right: Int[Array | np.ndarray, "t b"]  # rows of the second operands; equal to ``left`` for unary operators
    wide: Bool[Array | np.ndarray, "t b"]  # whether any operand has a class axis
    count: Int[Array | np.ndarray, ""]  # tiles in use


@functools.partial(jax.jit, static_argnums=0, static_argnames="passes")
def evaluate(
    space: Space,
    graph: Graph,
    roots: Int[Array, " n"],
    leaves: Float[Array, "l p *c"],
    *directions: Float[Array, "l p *c"],
    passes: int = 1,
) -> tuple[Float[Array, "n p *c"], ...]:
    """Values of some rows, and their derivatives along directions.

    Args:
      space: the space.
      graph: the graph.
      roots: the rows that are wanted.
      leaves: values of ``space.leaves`` at ``p`` points.
      directions: derivatives of ``space.leaves`` along each direction.
      passes: number of equal parts into which the points are split; only one part of all rows is in memory at a time.

    Returns:
      The values, and the derivatives along each direction.  Rows without a class axis are repeated along it.
    """
    tiles, width = graph.left.shape
    parts = jax.tree.map(  # with the points last, over which all operators but a few run
        lambda a: jnp.moveaxis(jnp.moveaxis(a, 1, -1).reshape(*a.shape[:1], *a.shape[2:], passes, -1), -2, 0),
        (leaves, *directions),
    )
    branches = [functools.partial(_value_and_derivatives if directions else _value, row) for row in space.table]

    def one_pass(rows, part):
        rows = tuple(lax.dynamic_update_slice_in_dim(array, new, 0, 0) for array, new in zip(rows, part, strict=True))
        rows = lax.fori_loop(0, graph.count, tile, rows)
        return rows, tuple(_gather(array, roots) for array in rows)

    def tile(t, rows):
        left, right = (tuple(_gather(array, operands[t]) for array in rows) for operands in (graph.left, graph.right))
        results = lax.switch(graph.opcode[t], branches, left, right, graph.wide[t])
        start = len(space.leaves) + t * width
        return tuple(
            lax.dynamic_update_slice_in_dim(array, result, start, 0)
            for array, result in zip(rows, results, strict=True)
        )

    blank = tuple(jnp.zeros((len(space.leaves) + tiles * width, *a.shape[2:]), a.dtype) for a in parts)
    _, found = lax.scan(one_pass, blank, parts)
    return tuple(jnp.moveaxis(jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], -1), -1, 1) for a in found)


def _gather(rows: jax.Array, chosen: jax.Array | np.ndarray) -> jax.Array:
    return rows.at[chosen].get(mode="promise_in_bounds")


def _value(row: Operator, left: tuple[jax.Array], right: tuple[jax.Array], wide: jax.Array) -> tuple[jax.Array]:
    operands = (left[0], right[0])[: row.arity]
    if not row.class_axis:
        return (row.fn(*operands),)
    return (jnp.where(wide[:, None, None], _along_classes(row, *operands), row.narrow.fn(*operands)),)


def _value_and_derivatives(
    row: Operator, left: tuple[jax.Array, ...], right: tuple[jax.Array, ...], wide: jax.Array
) -> tuple[jax.Array, ...]:
    operands, *tangents = zip(left, right, strict=True) if row.arity == 2 else zip(left, strict=True)
    if not row.class_axis:
        return _elementwise(row, operands, tangents)
    value, derivative = jax.linearize(functools.partial(_along_classes, row), *operands)
    of_wide = value, *(derivative(*tangent) for tangent in tangents)
    of_narrow = _elementwise(row.narrow, operands, tangents)
    return tuple(jnp.where(wide[:, None, None], a, b) for a, b in zip(of_wide, of_narrow, strict=True))


def _along_classes(row: Operator, *operands: jax.Array) -> jax.Array:
    """A class-axis operator on values [n, c, p]."""
    result = jnp.moveaxis(row.fn(*(jnp.moveaxis(a, 1, -1) for a in operands)), -1, 1)
    return jnp.broadcast_to(result, operands[0].shape)


def _elementwise(
    row: Operator, operands: tuple[jax.Array, ...], tangents: list[tuple[jax.Array, ...]]
) -> tuple[jax.Array, ...]:
    """Value of an element-wise operator, and its derivative along each tangent by ``chain``."""
    partials = []
    for k in range(row.arity):
        unit = tuple((jnp.ones_like if k == j else jnp.zeros_like)(a) for j, a in enumerate(operands))
        partial = jax.jvp(row.fn, operands, unit)[1]
        partials.append(lax.optimization_barrier(partial))  # or XLA computes it again for each tangent
    results = [row.fn(*operands)]
    for tangent in tangents:
        results.append(functools.reduce(jnp.add, map(chain, partials, tangent)))
    return tuple(results)


def leaf_values(space: Space, variables: Float[np.ndarray, "v *p"]) -> Float[np.ndarray, "l *p"]:
    """Values of ``space.leaves`` from those of its variables."""
    constants = np.broadcast_to(
        np.reshape(space.constants, (-1, *(1,) * (variables.ndim - 1))), (len(space.constants), *variables.shape[1:])
    )
    return np.concatenate([variables, constants]).astype(variables.dtype)


def _sizes(tokens: np.ndarray, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of the sub-formula at each place, and operands of the token there; one more place than tokens."""
    count, length = tokens.shape
    padded = np.concatenate([tokens, np.full((count, 1), PAD, tokens.dtype)], 1)
    arity = arities(space)[padded]
    size = np.zeros((count, length + 1), np.int16)
    each = np.arange(count)
    for at in range(length - 1, -1, -1):
        second = np.minimum(at + 1 + size[:, at + 1], length)
        size[:, at] = (padded[:, at] != PAD) + (arity[:, at] >= 1) * size[:, at + 1]
        size[:, at] += (arity[:, at] == 2) * size[each, second]
    return size, arity


def from_tokens(
    tokens: Int[np.ndarray, "n m"], space: Space, *, width: int = 256
) -> tuple[Graph, Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The graph of formulas given as prefix tokens; equal sub-formulas are one row (hash consing).

    Args:
      tokens: one formula a row.
      space: their space.
      width: rows of a tile.

    Returns:
      The graph, padded to a power of two of tiles; the row of each formula; whether it has a class axis.
    """
    count, length = tokens.shape
    size, arity = _sizes(tokens, space)
    padded = np.concatenate([tokens, np.full((count, 1), PAD, tokens.dtype)], 1)
    height = np.zeros((count, length + 1), np.int16)
    each = np.arange(count)
    for at in range(length - 1, -1, -1):
        second = np.minimum(at + 1 + size[:, at + 1], length)
        below = np.maximum(height[:, at + 1], np.where(arity[:, at] == 2, height[each, second], 0))
        height[:, at] = np.where(arity[:, at] >= 1, 1 + below, 0)
    leaves = len(space.leaves)
    row = padded.astype(np.int32)
    wide = np.zeros((count, length + 1), bool)
    if space.class_axis:
        wide[:] = (padded >= 0) & (padded < len(space.variables))
    reduces = np.array([row.reduces for row in space.table])
    blocks: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
    tile_count = 0
    for level in range(1, int(height.max(initial=0)) + 1):
        n, at = np.nonzero(height == level)
        opcode = padded[n, at].astype(np.int64) - leaves
        left = row[n, at + 1]
        other = np.where(arity[n, at] == 2, at + 1 + size[n, at + 1], at + 1)
        right = row[n, other]
        any_wide = wide[n, at + 1] | wide[n, other]
        key = (opcode << 56) | (left.astype(np.int64) << 28) | right
        unique, inverse = np.unique(key, return_inverse=True)
        op, first, second = unique >> 56, (unique >> 28) & (2**28 - 1), unique & (2**28 - 1)
        unique_wide = np.zeros(len(unique), bool)
        unique_wide[inverse] = any_wide
        slots = np.empty(len(unique), np.int64)
        for code, start, stop in _runs(op):
            slots[start:stop] = leaves + tile_count * width + np.arange(stop - start)
            for begin in range(start, stop, width):
                part = slice(begin, min(begin + width, stop))
                blocks.append((code, first[part], second[part], unique_wide[part]))
            tile_count += -(-(stop - start) // width)
        row[n, at] = slots[inverse]
        wide[n, at] = any_wide & ~reduces[opcode]
    capacity = max(64, 1 << (tile_count - 1).bit_length()) if tile_count else 64
    opcodes, operands_wide = np.zeros(capacity, np.int32), np.zeros((capacity, width), bool)
    lefts, rights = np.zeros((2, capacity, width), np.int32)
    for t, (code, first, second, any_wide) in enumerate(blocks):
        used = slice(len(first))
        opcodes[t], lefts[t, used], rights[t, used], operands_wide[t, used] = code, first, second, any_wide
    graph = Graph(opcodes, lefts, rights, operands_wide, np.array(tile_count, np.int32))
    return graph, row[:, 0], wide[:, 0]


def _runs(values: np.ndarray) -> list[tuple[int, int, int]]:
    """``(value, start, stop)`` of each run of equal values."""
    if not len(values):
        return []
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    return list(zip(values[starts].tolist(), starts.tolist(), [*starts[1:].tolist(), len(values)], strict=True))
