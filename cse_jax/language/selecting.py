"""Programs on an accelerator: all of a batch together, one instruction of each at a time.

For an instruction every operator is computed on the operands of every program, and each program keeps the result of its
own.  That is one kernel that reads two rows and writes one, whatever the operators, where a branch would have to wait
for the host.  Rows that a shorter program does not use hold what nobody reads.  A single program branches, since its
operators take longer than such waiting.

Inputs are taken in tiles so large that all that is computed for one fits ``tiling.BUDGET``, whatever is vmapped.
Inputs and results lie where the caller has them, and an input that is the same for all programs is not repeated.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from cse_jax.language import branching
from cse_jax.language.program import Program, instruction_set
from cse_jax.language.spaces import Space
from cse_jax.language.tiling import fitting, tail_of

BRANCHING = 1  # so many programs branch
_OF_OPERATOR = 3  # values of an operator where XLA does not fuse them: its result, and changes of both cotangents


def forward(space: Space, program: Program, variables: tuple[jax.Array, ...]) -> jax.Array:
    """The result for each element."""
    return _batch_of_one(_forward, space, program, *variables)


def both(space: Space, program: Program, variables: tuple[jax.Array, ...], cotangent: jax.Array):
    """The result for each element, and the cotangents of ``space.differentiable``."""
    return _batch_of_one(_both, space, program, *variables, cotangent)


def _batch_of_one(function: Callable[..., Any], space: Space, program: Program, *arrays: jax.Array) -> Any:
    """``jax.vmap`` makes it larger."""
    batch = jax.tree.map(lambda a: jnp.asarray(a)[None], (program, *arrays))
    return jax.tree.map(lambda a: a[0], _batchable(function, space)(*batch))


@functools.cache
def _batchable(function: Callable[..., Any], space: Space) -> Callable[..., Any]:
    """``function(space, programs, *arrays)``, whose ``jax.vmap`` is a larger batch.

    The programs have one leading axis; that of an array has the same size, or 1 where the array is the same for all.
    """

    @custom_vmap
    def batched(programs, *arrays):
        if len(programs.root) > BRANCHING:
            return _in_chunks(function, space, programs, arrays)
        program, own = jax.tree.map(lambda a: a[0], (programs, arrays))
        return jax.tree.map(lambda a: a[None], _branching(function, space, program, own))

    @batched.def_vmap
    def rule(axis_size, in_batched, programs, *arrays):
        of_programs, *of_arrays = in_batched
        count = len(programs.root) if not of_programs.root else programs.root.shape[1]
        if not any(of_programs):  # the same programs for more elements

            def inwards(array, is_batched):
                return jnp.moveaxis(array if is_batched else _repeated(array, axis_size), 0, 1)

            out = batched(programs, *map(inwards, arrays, of_arrays))
            return jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), out), jax.tree.map(lambda _: True, out)

        def merged(array, is_batched):
            array = array if is_batched else _repeated(array, axis_size)
            return jnp.broadcast_to(array, (axis_size, count, *array.shape[2:])).reshape(-1, *array.shape[2:])

        programs = Program(*map(merged, programs, of_programs))
        arrays = (
            array if not is_batched and len(array) == 1 else merged(array, is_batched)
            for array, is_batched in zip(arrays, of_arrays, strict=True)
        )
        out = batched(programs, *arrays)
        out = jax.tree.map(lambda a: a.reshape(axis_size, count, *a.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return batched


def _branching(function: Callable[..., Any], space: Space, program: Program, arrays: tuple[jax.Array, ...]) -> Any:
    if function is _forward:
        return branching.forward(space, program, arrays)
    return branching.both(space, program, arrays[:-1], arrays[-1])


def _repeated(array: jax.Array, count: int) -> jax.Array:
    return jnp.broadcast_to(array, (count, *array.shape))


def _in_chunks(function: Callable[..., Any], space: Space, programs: Program, arrays: tuple[jax.Array, ...]) -> Any:
    """Applies ``function`` to as many programs at once as fit the budget with one row of elements each."""
    count, row = len(programs.root), math.prod(tail_of(space, arrays[0]))
    most = max(1, _fitting(space, programs, arrays) // row)
    if count <= most:
        return function(space, programs, *arrays)
    chunks = -(-count // most)
    index = jnp.minimum(jnp.arange(chunks * -(-count // chunks)), count - 1).reshape(chunks, -1)

    def one(at):
        return function(space, *jax.tree.map(lambda a: a if len(a) == 1 else a[at], (programs, *arrays)))

    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], lax.map(one, index))


def _fitting(space: Space, programs: Program, arrays: tuple[jax.Array, ...]) -> int:
    """Elements, of all programs together, that fit the budget with rows, cotangents, and what operators compute."""
    return fitting(2 * _rows(space, programs) + _OF_OPERATOR * len(instruction_set(space)), arrays[0].dtype)


def _rows(space: Space, programs: Program) -> int:
    return len(space.leaves) + programs.opcode.shape[1]


def _forward(space: Space, programs: Program, *variables: jax.Array) -> jax.Array:
    def one(rows, tile):
        rows = _fill(space, programs, rows, tile)
        return rows, (_read(rows, programs.root),)

    (values,) = _over_tiles(one, space, programs, variables, stacks=1)
    return values


def _both(space: Space, programs: Program, *arrays: jax.Array) -> Any:
    moving = [space.leaves.index(name) for name in space.differentiable]

    def one(rows, cotangents, tile):
        *tile, incoming = tile
        rows = _fill(space, programs, rows, tile)
        cotangents = _pull_back(space, programs, rows, cotangents, incoming)
        return rows, cotangents, (_read(rows, programs.root), *(cotangents[k] for k in moving))

    values, *gradients = _over_tiles(one, space, programs, arrays, stacks=2)
    return values, tuple(gradients)


def _over_tiles(
    function: Callable[..., tuple], space: Space, programs: Program, arrays: tuple[jax.Array, ...], *, stacks: int
) -> list[jax.Array]:
    """Results for all elements, of each program: ``(*stacks, results) = function(*stacks, tile)`` for each tile.

    Tiles are read and results written where they lie, so that nothing as large as these is copied.  The last tile
    reaches back over the one before it.

    Args:
      function: of one tile.
      space, programs, arrays: as of ``_both``.
      stacks: how many times the rows of one tile are kept, to be written over for each.
    """
    count, tail = len(programs.root), tail_of(space, arrays[0])
    total = math.prod(arrays[0].shape[1:]) // math.prod(tail)
    tiles = -(-total // max(1, _fitting(space, programs, arrays) // count // math.prod(tail)))
    each = -(-total // max(1, tiles))
    flat = [array.reshape(len(array), total, *tail) for array in arrays]

    def at(k: int | jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        start = jnp.minimum(k * each, total - each)
        return start, [lax.dynamic_slice_in_dim(array, start, each, 1) for array in flat]

    def one(k: jax.Array, carried: tuple) -> tuple:
        *rows, results = carried
        start, tile = at(k)
        *rows, found = function(*rows, tile)
        return *rows, [
            lax.dynamic_update_slice_in_dim(result, each, start, 1) for result, each in zip(results, found, strict=True)
        ]

    rows = jnp.zeros((_rows(space, programs), count, each, *tail), arrays[0].dtype)
    found = jax.eval_shape(lambda: function(*[rows] * stacks, at(0)[1]))[-1]
    results = [jnp.zeros((count, total, *tail), result.dtype) for result in found]
    *_, results = lax.fori_loop(0, tiles, one, (*[rows] * stacks, results))
    return [result.reshape(count, *arrays[0].shape[1:]) for result in results]


def _fill(space: Space, programs: Program, rows: jax.Array, tile: Sequence[jax.Array]) -> jax.Array:
    """Writes variables, constants, and one row per instruction."""
    operators = instruction_set(space)

    def instruction(t, rows):
        operands = _read(rows, programs.left[:, t]), _read(rows, programs.right[:, t])
        result = select(programs.opcode[:, t], [row.apply(*operands) for row in operators])
        return _write(rows, len(space.leaves) + t, result)

    for k, leaf in enumerate([*tile, *space.constants]):
        rows = _write(rows, k, jnp.broadcast_to(leaf, rows.shape[1:]).astype(rows.dtype))
    return lax.fori_loop(0, programs.length.max(), instruction, rows)


def _pull_back(
    space: Space, programs: Program, rows: jax.Array, cotangents: jax.Array, incoming: jax.Array
) -> jax.Array:
    """Cotangents of the leaves, in their rows; the others are used up and left at 0 for the next tile."""
    operators, leaves = instruction_set(space), len(space.leaves)
    length = programs.length.max()

    def instruction(i, cotangents):
        t = length - 1 - i
        left, right, opcode = programs.left[:, t], programs.right[:, t], programs.opcode[:, t]
        a, b, own = _read(rows, left), _read(rows, right), cotangents[leaves + t]
        cotangents = _write(cotangents, leaves + t, jnp.zeros_like(own))
        used = _beside(t < programs.length, own)
        for operand, changes in zip(
            (left, right), zip(*(row.transpose(a, b, own) for row in operators), strict=True), strict=True
        ):
            cotangents = _add(cotangents, operand, jnp.where(used, select(opcode, changes), 0.0))
        return cotangents

    cotangents = cotangents.at[:leaves].set(0.0)
    incoming = jnp.broadcast_to(incoming, cotangents.shape[1:])
    return lax.fori_loop(0, length, instruction, _add(cotangents, programs.root, incoming))


def select(opcode: jax.Array | np.ndarray, results: Sequence[jax.Array]) -> jax.Array:
    """Of each program the result of its operator."""
    opcode = _beside(opcode, results[0])
    return functools.reduce(
        lambda chosen, k: jnp.where(opcode == k, results[k], chosen), range(1, len(results)), results[0]
    )


def _beside(value: jax.Array | np.ndarray, array: jax.Array) -> jax.Array | np.ndarray:
    """A value per program, with axes for the elements of ``array``."""
    return value.reshape(-1, *[1] * (array.ndim - 1))


def _read(rows: jax.Array, row: jax.Array | np.ndarray) -> jax.Array:
    """A row of each program."""
    return rows[row, jnp.arange(len(row))]


def _write(rows: jax.Array, row: int | jax.Array, value: jax.Array) -> jax.Array:
    """The same row of all programs, replaced."""
    return lax.dynamic_update_index_in_dim(rows, value, row, 0)


def _add(rows: jax.Array, row: jax.Array | np.ndarray, value: jax.Array) -> jax.Array:
    """A row of each program, increased."""
    return rows.at[row, jnp.arange(len(row))].add(value, unique_indices=True, mode="promise_in_bounds")
