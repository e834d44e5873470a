"""Programs one after the other, each instruction a branch to its operator: on a CPU, or alone on an accelerator.

Both passes go over the inputs tile by tile, so that the rows of a tile stay in the cache of a CPU's core, or in a
budget.  The reverse pass computes them again from the inputs, which are all that is kept between the passes.

Under ``jax.vmap`` over programs the batch is walked with ``lax.map``, because a vectorised ``lax.switch`` runs every
operator for every instruction.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from cse_jax.language.program import Program, instruction_set
from cse_jax.language.spaces import Space
from cse_jax.language.tiling import fitting, join, split

TILE = 8192  # elements, on a CPU: some 30 rows of a tile fit a core's second-level cache


def _by_candidate(fn):
    """Gives ``fn(space, program, *arrays)`` the batching rule of the module's docstring."""

    @functools.cache
    def batchable(space: Space):
        plain = functools.partial(fn, space)
        wrapped = custom_vmap(plain)

        @wrapped.def_vmap
        def rule(axis_size, in_batched, program, *arrays):
            flags = jax.tree.leaves(tuple(in_batched))
            if not any(in_batched[0]):
                program = jax.tree.map(jnp.asarray, program)
                axes = jax.tree.map(lambda b: 0 if b else None, tuple(in_batched))
                out = jax.vmap(plain, in_axes=axes, axis_size=axis_size)(program, *arrays)
                return out, jax.tree.map(lambda _: True, out)
            leaves, structure = jax.tree.flatten((program, *arrays))
            moving = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]

            def one(slices):
                slices = iter(slices)
                merged = [next(slices) if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)]
                return wrapped(*jax.tree.unflatten(structure, merged))

            out = lax.map(one, moving)
            return out, jax.tree.map(lambda _: True, out)

        return wrapped

    def dispatch(space, program, *arrays):
        return batchable(space)(program, *arrays)

    return dispatch


@_by_candidate
def forward(space: Space, program: Program, variables: tuple[jax.Array, ...]) -> jax.Array:
    """The result for each element."""

    def one(rows, tile):
        rows = _fill(space, program, rows, tile)
        return rows, rows[program.root]

    tiles = split(space, variables, _tile(space, program, variables[0].dtype))
    _, values = lax.scan(one, _blank(space, program, tiles), tiles)
    return join(values, variables[0].shape)


@_by_candidate
def both(space: Space, program: Program, variables: tuple[jax.Array, ...], cotangent: jax.Array):
    """The result for each element, and the cotangents of ``space.differentiable``."""
    moving = [space.leaves.index(name) for name in space.differentiable]

    def one(carry, tile):
        rows, cotangents = carry
        *tile, incoming = tile
        rows = _fill(space, program, rows, tile)
        cotangents = _pull_back(space, program, rows, cotangents, incoming)
        return (rows, cotangents), (rows[program.root], tuple(cotangents[k] for k in moving))

    tiles = split(space, (*variables, cotangent), _tile(space, program, cotangent.dtype))
    blank = _blank(space, program, tiles)
    _, results = lax.scan(one, (blank, blank), tiles)
    return jax.tree.map(lambda a: join(a, cotangent.shape), results)


def _tile(space: Space, program: Program, dtype: np.dtype) -> int:
    return TILE if jax.default_backend() == "cpu" else fitting(2 * _rows(space, program), dtype)  # with cotangents


def _rows(space: Space, program: Program) -> int:
    return len(space.leaves) + program.opcode.shape[0]


def _blank(space: Space, program: Program, tiles: tuple[jax.Array, ...]) -> jax.Array:
    """The rows of one tile, to be written over for each."""
    return jnp.zeros((_rows(space, program), *tiles[0].shape[1:]), tiles[0].dtype)


def _fill(space: Space, program: Program, rows: jax.Array, tile: Sequence[jax.Array]) -> jax.Array:
    """Writes variables, constants, and one row per instruction."""
    constants = [jnp.full_like(tile[0], constant) for constant in space.constants]
    branches = [row.apply for row in instruction_set(space)]

    def instruction(t, rows):
        result = lax.switch(program.opcode[t], branches, _read(rows, program.left[t]), _read(rows, program.right[t]))
        return _write(rows, len(space.leaves) + t, result)

    rows = lax.dynamic_update_slice_in_dim(rows, jnp.stack([*tile, *constants]), 0, 0)
    return lax.fori_loop(0, program.length, instruction, rows)


def _pull_back(
    space: Space, program: Program, rows: jax.Array, cotangents: jax.Array, incoming: jax.Array
) -> jax.Array:
    """Cotangents of the leaves, in their rows; the others are used up and left at 0 for the next tile.

    A branch adds to the rows it is given, so that all are read before any is written: otherwise XLA copies the whole
    array at each instruction.
    """

    def branch(row, left, right, incoming, at_left, at_right, same):
        to_left, to_right = row.transpose(left, right, incoming)
        at_left = at_left + to_left
        return at_left, jnp.where(same, at_left, at_right) + to_right, jnp.zeros_like(incoming)

    branches = [functools.partial(branch, row) for row in instruction_set(space)]

    def instruction(i, cotangents):
        t = program.length - 1 - i
        left, right, own = program.left[t], program.right[t], len(space.leaves) + t
        operands = _read(rows, left), _read(rows, right)
        old = (_read(cotangents, row) for row in (own, left, right))
        new = lax.switch(program.opcode[t], branches, *operands, *old, left == right)
        for row, value in zip((left, right, own), new, strict=True):
            cotangents = _write(cotangents, row, value)
        return cotangents

    leaves = jnp.zeros((len(space.leaves), *incoming.shape), incoming.dtype)
    cotangents = _write(lax.dynamic_update_slice_in_dim(cotangents, leaves, 0, 0), program.root, incoming)
    return lax.fori_loop(0, program.length, instruction, cotangents)


def _read(rows: jax.Array, row: jax.Array | np.ndarray) -> jax.Array:
    return lax.dynamic_index_in_dim(rows, row, keepdims=False)


def _write(rows: jax.Array, row: jax.Array | np.ndarray, value: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(rows, value, row, 0)
