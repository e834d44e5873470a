"""A candidate as data: a formula compiled to a few integer arrays that a jitted function takes as an input.

A compiled candidate is a list of instructions over numbered rows.  The first rows are the space's variables and
constants, and instruction ``t`` writes row ``leaves + t``.  The forward pass keeps all rows; the reverse pass walks the
instructions backwards with the derivative of each operator.  Whatever takes a ``Program`` compiles once and runs every
candidate of that space.

Under ``jax.vmap`` over programs on a CPU the batch is walked with ``lax.map``, because a vectorised ``lax.switch`` runs
every operator for every instruction; on accelerators it stays vectorised.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from cse_jax.expression import Expression
from cse_jax.operators import Operator
from cse_jax.spaces import Space

CAPACITY = 48  # instructions: B_reg, the longest published formula, needs 22


class Program(NamedTuple):
    """A compiled candidate (or, with leading axes, a batch of them)."""

    opcode: Int[Array, "*b t"]  # position in ``space.table``
    left: Int[Array, "*b t"]  # row of the first operand
    right: Int[Array, "*b t"]  # row of the second operand; equal to ``left`` for unary operators
    length: Int[Array, "*b"]  # instructions in use
    root: Int[Array, "*b"]  # row of the result
    wide: Bool[Array, "*b"]  # whether the result has a class axis


def compile_expression(expression: Expression, capacity: int = CAPACITY) -> Program:
    """Compiles a formula; repeated sub-formulas are computed once.

    Raises:
      ValueError: the formula needs more instructions than ``capacity``.
    """
    space = expression.space
    opcodes = {row.name: position for position, row in enumerate(space.table)}
    variables = len(space.variables)
    rows: dict[tuple, tuple[int, bool]] = {}
    code: list[tuple[int, int, int]] = []
    one = space.leaves.index("1")

    def leaf(token: str) -> tuple[int, bool]:
        row = space.leaves.index(token)
        return row, space.class_axis and row < variables

    def node(name: str, *operands: tuple[int, bool]) -> tuple[int, bool]:
        wide = any(w for _, w in operands)
        if not wide and name == "Softmax":  # over a class axis of size 1
            return one, False
        if not wide and name == "Dot":
            name = "Mul"
        left, right = operands[0][0], operands[-1][0]
        key = (name, left, right)
        if key not in rows:
            rows[key] = len(space.leaves) + len(code), wide and name != "Dot"
            code.append((opcodes[name], left, right))
        return rows[key]

    root, wide = expression.fold(leaf, node)
    if len(code) > capacity:
        raise ValueError(f"the formula {expression} needs {len(code)} instructions; the capacity is {capacity}")
    table = np.zeros((3, capacity), np.int32)
    table[:, : len(code)] = np.asarray(code, np.int32).reshape(-1, 3).T
    return Program(*table, np.int32(len(code)), np.int32(root), np.bool_(wide))


def stack(programs: Sequence[Program]) -> Program:
    """Joins programs along a new leading axis."""
    return Program(*(np.stack(field) for field in zip(*programs, strict=True)))


def evaluate(space: Space, program: Program, inputs: Mapping[str, Float[Array, "..."]]) -> Float[Array, "..."]:
    """Evaluates a compiled candidate; differentiable in the inputs, traceable in the program.

    Args:
      space: the space of the candidate (static).
      program: the candidate.
      inputs: all variables of the space by the authors' names, of one shape; the class axis last where there is one.

    Returns:
      The loss per element, in the shape of the inputs.  A result without class axis is spread evenly over that axis,
      so that a sum over it gives the loss per row in every case.
    """
    missing = [v.name for v in space.variables if v.name not in inputs]
    if missing:
        raise KeyError(f"space {space.name} needs the inputs {missing}; given were {sorted(inputs)}")
    variables = jnp.stack(jnp.broadcast_arrays(*(inputs[v.name] for v in space.variables)))
    values = _run(space, program, variables)
    if not space.class_axis:
        return values
    return values * jnp.where(program.wide, 1.0, 1.0 / variables.shape[-1]).astype(values.dtype)


def value_and_gradients(
    space: Space, program: Program, inputs: Mapping[str, Float[Array, "..."]]
) -> tuple[Float[Array, "..."], dict[str, Float[Array, "..."]]]:
    """The loss per element as ``evaluate`` gives it, and the gradients of its sum in the differentiable inputs.

    Under ``jax.vmap`` over programs this runs both passes of a candidate before the next candidate, so that its rows
    stay in the cache; prefer it to ``jax.vmap(jax.grad(...))`` for large batches.
    """
    variables = jnp.stack(jnp.broadcast_arrays(*(inputs[v.name] for v in space.variables)))
    values, gradients = _both(space, program, variables)
    scale = jnp.ones((), values.dtype)
    if space.class_axis:
        scale = jnp.where(program.wide, scale, scale / variables.shape[-1])
    names = [v.name for v in space.variables]
    return values * scale, {name: gradients[names.index(name)] * scale for name in space.differentiable}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(space: Space, program: Program, variables: jax.Array) -> jax.Array:
    return _forward(space, program, variables)[program.root]


def _run_forward(space, program, variables):
    rows = _forward(space, program, variables)
    return rows[program.root], (program, rows)


def _run_backward(space, residuals, cotangent):
    program, rows = residuals
    nothing = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), program)
    return nothing, _backward(space, program, rows, cotangent)


_run.defvjp(_run_forward, _run_backward)


def _by_candidate(fn):
    """Gives ``fn(space, program, *arrays)`` the batching rule of the module's docstring."""

    @functools.cache
    def batchable(space: Space):
        plain = functools.partial(fn, space)
        wrapped = custom_vmap(plain)

        @wrapped.def_vmap
        def rule(axis_size, in_batched, program, *arrays):
            batched_program, *batched_arrays = in_batched
            if not any(batched_program) or jax.default_backend() != "cpu":
                axes = jax.tree.map(lambda b: 0 if b else None, tuple(in_batched))
                out = jax.vmap(plain, in_axes=axes, axis_size=axis_size)(program, *arrays)
                return out, jax.tree.map(lambda _: True, out)
            leaves, structure = jax.tree.flatten((program, *arrays))
            flags = jax.tree.leaves((batched_program, *batched_arrays))
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

    dispatch.plain = fn
    return dispatch


@_by_candidate
def _forward(space: Space, program: Program, variables: jax.Array) -> jax.Array:
    """All rows: variables, constants, then one per instruction."""
    shape, dtype = variables.shape[1:], variables.dtype
    constants = jnp.broadcast_to(
        jnp.asarray(space.constants, dtype).reshape(-1, *(1,) * len(shape)), (len(space.constants), *shape)
    )
    capacity = program.opcode.shape[0]
    rows = jnp.concatenate([variables, constants, jnp.zeros((capacity, *shape), dtype)])
    branches = [functools.partial(_apply, row) for row in space.table]

    def instruction(t, rows):
        result = lax.switch(program.opcode[t], branches, rows[program.left[t]], rows[program.right[t]])
        return rows.at[len(space.leaves) + t].set(result)

    return lax.fori_loop(0, program.length, instruction, rows)


@_by_candidate
def _backward(space: Space, program: Program, rows: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Cotangents of the variables."""
    branches = [functools.partial(_transpose, row) for row in space.table]

    def instruction(i, cotangents):
        t = program.length - 1 - i
        left, right = program.left[t], program.right[t]
        to_left, to_right = lax.switch(
            program.opcode[t], branches, rows[left], rows[right], cotangents[len(space.leaves) + t]
        )
        return cotangents.at[left].add(to_left).at[right].add(to_right)

    cotangents = jnp.zeros_like(rows).at[program.root].set(cotangent)
    return lax.fori_loop(0, program.length, instruction, cotangents)[: len(space.variables)]


@_by_candidate
def _both(space: Space, program: Program, variables: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The result, and the gradients of its sum in the variables."""
    rows = _forward.plain(space, program, variables)
    result = rows[program.root]
    return result, _backward.plain(space, program, rows, jnp.ones_like(result))


def _apply(row: Operator, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.broadcast_to(row.fn(a) if row.arity == 1 else row.fn(a, b), a.shape)


def _transpose(row: Operator, a: jax.Array, b: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cotangents of the operands.  Where none comes in none goes out, even if the derivative is infinite."""
    _, pullback = jax.vjp(functools.partial(_apply, row), a, b)
    to_operands = pullback(cotangent)
    if row.class_axis:
        return to_operands
    return tuple(jnp.where(cotangent == 0.0, 0.0, to_operand) for to_operand in to_operands)
