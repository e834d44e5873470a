"""Probes: the few points at which values of formulas are compared, and digests of the values there.

Probes are ends of verification paths, where formulas are singular or saturate, and generic points between paths.
Values are rounded before they are compared: to 34 bits (10 digits) at generic points, to 13 bits (4 digits) at the
ends, where areas that differ by 1e-7 cancel.  Two ways to compute one value that straddle a boundary of rounding stay
two behaviours, about one pair in 4,000 for unit roundoff; no other behaviour depends on it, and the gate's fingerprint
joins them if they converge.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt64

from cse_jax.language import graph as graphs
from cse_jax.language.spaces import Space, trajectories
from cse_jax.screening.coarse import coarse_grid, may_pass
from cse_jax.screening.sizes import ROUGH

POINTS = {True: 20, False: 48}  # probes, by whether there is a class axis
KNOWN, WIDE, DEPENDS, MAY_PASS = (np.uint8(1 << k) for k in range(4))  # flags of a formula
_GENERIC_BITS, _END_BITS = 34, 13  # of the 52 of a mantissa
_SAME = 1e-9  # relative change of a value that is rounding


class Probes(NamedTuple):
    """Values of ``space.leaves`` at ends of paths, outside of them, at generic points, and at their partners.

    Partners differ in what moves along a path, and in nothing else.
    """

    leaves: Float[np.ndarray, "l p *c"]
    steps: Int[np.ndarray, " s"]  # points of each path among the ends, as in ``coarse_grid``
    ends: int
    pairs: int


@functools.cache
def probes_of(space: Space, units: str) -> Probes:
    """The probes of a space."""
    grid = trajectories(space, units)
    ends = coarse_grid(space, units, *ROUGH)
    count, steps = grid.inputs.shape[1:3]
    rng = np.random.default_rng(0)
    moving = np.isin([v.name for v in space.variables], space.differentiable)
    border = ends.leaves[: len(space.variables), [0, len(ends.steps) - 1]]
    away = rng.uniform(0.02, 0.1, border.shape) * rng.choice((-1.0, 1.0), border.shape)
    away[~moving] = 0.0
    away *= np.abs(border[moving]).max(0)
    outside = np.concatenate([border + away, border - away], 1)
    fixed = [np.isin(array, (0.0, 1.0)).all() for array in grid.inputs]  # labels: nothing lies between 0 and 1
    kinds = [grid.inputs[fixed, path].tobytes() for path in range(count)]
    pairs = (POINTS[space.class_axis] - ends.leaves.shape[1] - outside.shape[1]) // 2
    points = np.zeros((2, pairs, *border.shape[:1], *border.shape[2:]))
    for k, path in enumerate(np.linspace(0, count - 1, pairs).round().astype(int)):
        other = next(o % count for o in range(path + 1, path + count + 1) if kinds[o % count] == kinds[path])
        weight = 10.0 ** rng.uniform(-3.0, -0.5)  # mostly small, which keeps the scale of a path
        for side in range(2):
            step, share = side * (steps // 2) + rng.integers(steps // 2), rng.uniform(size=2)
            one, two = (
                (1.0 - part) * grid.inputs[:, p, step] + part * grid.inputs[:, p, min(step + 1, steps - 1)]
                for p, part in zip((path, other), share, strict=True)
            )
            points[side, k] = (1.0 - weight) * one + weight * two
    points = np.moveaxis(points.reshape(-1, *points.shape[2:]), 0, 1)
    generic = graphs.leaf_values(space, np.concatenate([outside, points], 1))
    return Probes(np.concatenate([ends.leaves, generic], 1), ends.steps, ends.leaves.shape[1], pairs)


def variants(space: Space, arity: int) -> tuple[tuple[int, bool], ...]:
    """Operators by number, and whether the operands are exchanged; ``(-1, False)`` is the operand itself."""
    if arity == 0:
        return ((-1, False),)
    rows = [(k, row) for k, row in enumerate(space.table) if row.arity == arity and row.name in space.operators]
    orders = [(False,) if arity == 1 or row.commutative else (False, True) for _, row in rows]
    return tuple((k, swapped) for (k, _), each in zip(rows, orders, strict=True) for swapped in each)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(
    space: Space, opcode: int, operands: tuple[Float[Array, "n p *c"], ...], wide: Bool[Array, " n"]
) -> Float[Array, "n p *c"]:
    """An operator on values, of which narrow ones are repeated along the class axis."""
    row = space.table[opcode]
    if not row.class_axis:
        return row.fn(*operands)
    along_classes = jnp.broadcast_to(row.fn(*operands), operands[0].shape)
    return jnp.where(wide[:, None, None], along_classes, row.narrow.fn(*operands))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def digests(
    space: Space, units: str, arity: int, left: jax.Array, right: jax.Array | None, wide: jax.Array
) -> tuple[UInt64[Array, "m n"], UInt64[Array, "m n"], UInt8[Array, "m n"]]:
    """Hashes and flags of what each variant makes of the operands."""
    found = []
    for opcode, swapped in variants(space, arity):
        operands = (left,) if right is None else (right, left) if swapped else (left, right)
        values = left if opcode < 0 else apply(space, opcode, operands, wide)
        reduces = opcode >= 0 and space.table[opcode].reduces
        found.append(_digest(space, units, values, jnp.zeros_like(wide) if reduces else wide))
    return jax.tree.map(lambda *each: jnp.stack(each), *found)


def _digest(
    space: Space, units: str, values: jax.Array, wide: jax.Array
) -> tuple[UInt64[Array, " n"], UInt64[Array, " n"], UInt8[Array, " n"]]:
    """A hash of 128 bits of the rounded values, and what is known of the formula."""
    probes = probes_of(space, units)
    bits = jnp.concatenate(
        [_rounded(values[:, : probes.ends], _END_BITS), _rounded(values[:, probes.ends :], _GENERIC_BITS)], 1
    ).reshape(len(values), -1)
    keys = np.random.default_rng(0).integers(2**63, size=(3, bits.shape[1]), dtype=np.uint64) | np.uint64(1)
    mixed = bits + keys[0]
    mixed = (mixed ^ (mixed >> 31)) * keys[1]
    mixed = mixed ^ (mixed >> 29)
    again = (mixed ^ (mixed >> 32)) * keys[2]
    again = again ^ (again >> 30)
    first = mixed.sum(1) ^ wide.astype(jnp.uint64)
    one, two = values[:, -2 * probes.pairs : -probes.pairs], values[:, -probes.pairs :]
    moves = (one != two) & (jnp.abs(one - two) > _SAME * jnp.maximum(jnp.abs(one), jnp.abs(two)))
    moves |= jnp.isinf(one) ^ jnp.isinf(two)
    axes = tuple(range(1, values.ndim))
    known = ~jnp.isnan(values[:, : probes.ends]).any(axes)
    depends = moves.any(axes)
    may = depends & may_pass(space, probes.steps, values[:, : probes.ends], wide)
    flags = [(known, KNOWN), (wide, WIDE), (depends, DEPENDS), (may, MAY_PASS)]
    set_flags = [jnp.where(flag, bit, np.uint8(0)) for flag, bit in flags]
    return first, again.sum(1), functools.reduce(jnp.bitwise_or, set_flags)


def _rounded(values: jax.Array, kept: int) -> UInt64[Array, "..."]:
    """Values as bits, rounded to so many of the mantissa; 0 and NaN have one form each."""
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0.0, 0.0, values), jnp.uint64)
    bits = (bits + np.uint64(1 << (51 - kept))) >> np.uint64(52 - kept)
    return jnp.where(jnp.isnan(values), ~np.uint64(0), bits)
