"""A candidate as data: a formula compiled to a few integer arrays that a jitted function takes as an input.

A compiled candidate is a list of instructions over numbered rows.  The first rows are the space's variables and
constants, and instruction ``t`` writes row ``leaves + t``; the reverse pass walks the instructions backwards with the
derivative of each operator.  A function of a ``Program`` compiles once and runs every candidate of that space.

All rows have the shape of the inputs: a value without class axis is repeated along it, and a class-axis operator on
such values has an opcode of its own (``Operator.narrow``).

Both passes go over the inputs tile by tile, so that the rows of a tile stay in the cache.  The reverse pass computes
them again from the inputs, which are all that is kept between the passes.

Under ``jax.vmap`` over programs on a CPU the batch is walked with ``lax.map``, because a vectorised ``lax.switch`` runs
every operator for every instruction; on accelerators it stays vectorised.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from cse_jax.errors import InputError
from cse_jax.language.expression import Expression
from cse_jax.language.operators import Operator, chain
from cse_jax.language.spaces import Inputs, Space

CAPACITY = 64  # instructions: B_reg, the longest published formula, needs 22
CPU_TILE = 8192  # elements: some 30 rows of a tile fit a core's second-level cache
DEVICE_TILE = 1 << 22  # elements: as few and as large kernels as memory allows


class Program(NamedTuple):
    """A compiled candidate (or, with leading axes, a batch of them)."""

    opcode: Int[Array | np.ndarray, "*b t"]  # position in ``instruction_set``
    left: Int[Array | np.ndarray, "*b t"]  # row of the first operand
    right: Int[Array | np.ndarray, "*b t"]  # row of the second operand; equal to ``left`` for unary operators
    length: Int[Array | np.ndarray, "*b"]  # instructions in use
    root: Int[Array | np.ndarray, "*b"]  # row of the result
    wide: Bool[Array | np.ndarray, "*b"]  # whether the result has a class axis


def instruction_set(space: Space) -> tuple[Operator, ...]:
    """The operators by opcode: those of the space, then those of its class-axis operators on narrow operands."""
    return (*space.table, *(row.narrow for row in space.table if row.class_axis))


def compile_expression(expression: Expression, capacity: int = CAPACITY) -> Program:
    """Compiles a formula; a repeated sub-formula is computed once.

    Raises:
      InputError: the formula needs more instructions than ``capacity``.
    """
    space = expression.space
    operators = {row.name: row for row in space.table}
    opcodes = {(row.name, row.class_axis): opcode for opcode, row in enumerate(instruction_set(space))}
    variables = len(space.variables)
    rows: dict[tuple, tuple[int, bool]] = {}  # of sub-formulas, and whether they are wide
    code: list[tuple[int, int, int]] = []

    def leaf(token: str) -> tuple[int, bool]:
        row = space.leaves.index(token)
        return row, space.class_axis and row < variables

    def node(name: str, *operands: tuple[int, bool]) -> tuple[int, bool]:
        wide = any(w for _, w in operands)
        operator = operators[name] if wide else operators[name].narrow
        instruction = opcodes[name, operator.class_axis], operands[0][0], operands[-1][0]
        if instruction not in rows:
            rows[instruction] = len(space.leaves) + len(code), wide and not operator.reduces
            code.append(instruction)
        return rows[instruction]

    root, wide = expression.fold(leaf, node)
    if len(code) > capacity:
        raise InputError(f"the formula {expression} needs {len(code)} instructions; the capacity is {capacity}")
    opcode, left, right = np.zeros((3, capacity), np.int32)
    for t, instruction in enumerate(code):
        opcode[t], left[t], right[t] = instruction
    return Program(opcode, left, right, np.array(len(code), np.int32), np.array(root, np.int32), np.array(wide))


def stack(programs: Sequence[Program]) -> Program:
    """Joins programs along a new leading axis."""
    return jax.tree.map(lambda *fields: np.stack(fields), *programs)


def evaluate(space: Space, program: Program, inputs: Inputs) -> Float[Array, "..."]:
    """Evaluates a compiled candidate; differentiable in the inputs, traceable in the program.

    Args:
      space: the space of the candidate (static).
      program: the candidate.
      inputs: all variables of the space by the authors' names, of one shape; the class axis last where there is one.
        Gradients flow into the differentiable ones only.

    Returns:
      The loss per element, in the shape of the inputs.  A result without class axis is spread evenly over that axis,
      so that a sum over it gives the loss per row in every case.

    Raises:
      KeyError: a variable of the space is missing from ``inputs``.
    """
    values = _differentiable(space, program, _variables(space, inputs))
    return values * _share(space, program, values)


def value_and_gradients(
    space: Space, program: Program, inputs: Inputs
) -> tuple[Float[Array, "..."], dict[str, Float[Array, "..."]]]:
    """The loss per element as ``evaluate`` gives it, and the gradients of its sum in the differentiable inputs.

    Under ``jax.vmap`` over programs this runs both passes of a candidate before the next candidate, so that its rows
    stay in the cache; prefer it to ``jax.vmap(jax.grad(...))`` for large batches.
    """
    variables = _variables(space, inputs)
    values, gradients = _both(space, program, variables, jnp.ones_like(variables[0]))
    share = _share(space, program, values)
    return values * share, {n: g * share for n, g in zip(space.differentiable, gradients, strict=True)}


def _variables(space: Space, inputs: Inputs) -> tuple[jax.Array, ...]:
    missing = [v.name for v in space.variables if v.name not in inputs]
    if missing:
        raise KeyError(f"space {space.name} needs the inputs {missing}; given were {sorted(inputs)}")
    return tuple(jnp.broadcast_arrays(*(inputs[v.name] for v in space.variables)))


def _share(space: Space, program: Program, values: jax.Array) -> jax.Array:
    """What each class gets of a row's loss."""
    if not space.class_axis:
        return jnp.ones((), values.dtype)
    return jnp.where(program.wide, 1.0, 1.0 / values.shape[-1]).astype(values.dtype)


def _by_candidate(fn):
    """Gives ``fn(space, program, *arrays)`` the batching rule of the module's docstring."""

    @functools.cache
    def batchable(space: Space):
        plain = functools.partial(fn, space)
        wrapped = custom_vmap(plain)

        @wrapped.def_vmap
        def rule(axis_size, in_batched, program, *arrays):
            flags = jax.tree.leaves(tuple(in_batched))
            if not any(in_batched[0]) or jax.default_backend() != "cpu":
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
def _forward(space: Space, program: Program, variables: tuple[jax.Array, ...]) -> jax.Array:
    """The result for each element."""

    def one(rows, tile):
        rows = _fill(space, program, rows, tile)
        return rows, rows[program.root]

    tiles = _split(space, variables)
    _, values = lax.scan(one, _blank(space, program, tiles), tiles)
    return _join(values, variables[0].shape)


@_by_candidate
def _both(space: Space, program: Program, variables: tuple[jax.Array, ...], cotangent: jax.Array):
    """The result for each element, and the cotangents of ``space.differentiable``."""
    names = [v.name for v in space.variables]
    moving = [names.index(name) for name in space.differentiable]

    def one(carry, tile):
        rows, cotangents = carry
        *tile, incoming = tile
        rows = _fill(space, program, rows, tile)
        cotangents = _pull_back(space, program, rows, cotangents, incoming)
        return (rows, cotangents), (rows[program.root], tuple(cotangents[k] for k in moving))

    tiles = _split(space, (*variables, cotangent))
    blank = _blank(space, program, tiles)
    _, results = lax.scan(one, (blank, blank), tiles)
    return jax.tree.map(lambda a: _join(a, cotangent.shape), results)


def _differentiable_forward(space: Space, program: Program, variables: tuple[jax.Array, ...]):
    return _forward(space, program, variables), (program, variables)


def _differentiable_backward(space: Space, residuals: tuple[Program, tuple[jax.Array, ...]], cotangent: jax.Array):
    program, variables = residuals
    _, gradients = _both(space, program, variables, cotangent)
    moving = dict(zip(space.differentiable, gradients, strict=True))
    to_variables = tuple(moving.get(v.name, jnp.zeros_like(a)) for v, a in zip(space.variables, variables, strict=True))
    return jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), program), to_variables


_differentiable = jax.custom_vjp(_forward, nondiff_argnums=(0,))
_differentiable.defvjp(_differentiable_forward, _differentiable_backward)


def _split(space: Space, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Arrays ``[..., c]`` (or ``[...]``) as ``[tiles, n, c]`` (or ``[tiles, n]``), padded with ones at the end."""
    tail = arrays[0].shape[-1:] if space.class_axis else ()
    total = math.prod(arrays[0].shape) // math.prod(tail)
    most = max(1, (CPU_TILE if jax.default_backend() == "cpu" else DEVICE_TILE) // math.prod(tail))
    tiles = max(1, -(-total // most))
    each = -(-total // tiles)

    def split(array: jax.Array) -> jax.Array:
        flat = array.reshape(total, *tail)
        padded = jnp.pad(flat, [(0, tiles * each - total)] + [(0, 0)] * len(tail), constant_values=1.0)
        return padded.reshape(tiles, each, *tail)

    return tuple(split(array) for array in arrays)


def _join(tiles: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return tiles.reshape(-1)[: math.prod(shape)].reshape(shape)


def _blank(space: Space, program: Program, tiles: tuple[jax.Array, ...]) -> jax.Array:
    """The rows of one tile, to be written over for each."""
    return jnp.zeros((len(space.leaves) + program.opcode.shape[0], *tiles[0].shape[1:]), tiles[0].dtype)


def _fill(space: Space, program: Program, rows: jax.Array, tile: Sequence[jax.Array]) -> jax.Array:
    """Writes variables, constants, and one row per instruction."""
    constants = [jnp.full_like(tile[0], constant) for constant in space.constants]
    branches = [functools.partial(_apply, row) for row in instruction_set(space)]

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
        to_left, to_right = _transpose(row, left, right, incoming)
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


def _apply(row: Operator, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.broadcast_to(row.fn(a) if row.arity == 1 else row.fn(a, b), a.shape)


def _transpose(row: Operator, a: jax.Array, b: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cotangents of the operands; those of an element-wise operator by ``chain``."""
    _, pullback = jax.vjp(functools.partial(_apply, row), a, b)
    if row.class_axis:
        return pullback(cotangent)
    to_a, to_b = pullback(jnp.ones_like(cotangent))
    return chain(to_a, cotangent), chain(to_b, cotangent)
