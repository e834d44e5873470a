"""The plain port to JAX: a stack machine with ``lax.switch`` under ``vmap``, jitted once."""

import functools
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from benchmarks.screening_peers.peer import PeerResult, absent, even, passes
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.operators import OPERATORS
from cse_jax.language.program import instruction_set
from cse_jax.language.spaces import Space, Trajectories, trajectories


class _Code(NamedTuple):
    """Formulas in postfix order, padded to ``m`` steps."""

    opcode: Int[np.ndarray, "n m"]  # 0 pushes a leaf; then ``program.instruction_set``
    leaf: Int[np.ndarray, "n m"]
    top: Int[np.ndarray, "n m"]  # slot that is written: that of the first operand
    moves: Bool[np.ndarray, "n m"]  # whether the result depends on the prediction
    wide: Bool[np.ndarray, " n"]
    length: Int[np.ndarray, " n"]


def vmapped_switch(
    expressions: Sequence[Expression], space: Space, units: str = "pixels", *, batch: int = 64
) -> PeerResult:
    """``jax.vmap`` of a stack machine over formulas, sorted by length; every operator runs at every step."""
    paths = trajectories(space, units)
    if not expressions:
        return absent("no formulas")
    batch = even(len(expressions), batch)
    code = _encode(expressions, space)
    depth = int(code.top.max(initial=0)) + 2
    shortest_first = np.argsort(code.length, kind="stable")
    passed = np.zeros(len(expressions), bool)
    with float64():
        arrays = _grid(space, paths)

        def judge(chosen: np.ndarray) -> np.ndarray:
            part = _Code(*(a[np.resize(chosen, batch)] for a in code))
            results = _run_stack(space, depth, part, part.length[: len(chosen)].max(), *arrays)
            shape = (batch, *paths.gated.shape, -1)
            return passes(*(a.reshape(shape) for a in jax.device_get(results)), paths)[: len(chosen)]

        start = time.perf_counter()
        judge(shortest_first[:1])
        seconds_compile = time.perf_counter() - start
        start = time.perf_counter()
        for k in range(0, len(passed), batch):
            chosen = shortest_first[k : k + batch]
            passed[chosen] = judge(chosen)
        seconds = time.perf_counter() - start
    note = f"JAX {jax.__version__} on {jax.default_backend()}, batches of {batch} sorted by length; compiled once"
    return PeerResult(passed, np.ones(len(passed), bool), seconds, seconds_compile, False, note)


def _grid(space: Space, paths: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """The leaves ``[l, q, *c]`` at all points, and two directions ``[2, l, q, *c]``: the path's and a general one."""
    shape = (len(space.leaves), math.prod(paths.inputs.shape[1:3]), *paths.inputs.shape[3:])
    leaves, directions = np.zeros(shape), np.zeros((2, *shape))
    leaves[: len(space.variables)] = paths.inputs.reshape(-1, *shape[1:])
    leaves[len(space.variables) :] = np.reshape(space.constants, (-1, *(1,) * (len(shape) - 1)))
    directions[0, : len(space.variables)] = paths.tangents.reshape(-1, *shape[1:])
    rng = np.random.default_rng(0)
    for name in space.differentiable:
        directions[1, space.leaves.index(name)] = rng.uniform(1.0, 2.0, shape[1:])
    return leaves, directions


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_stack(
    space: Space,
    depth: int,
    code: _Code,
    steps: Int[Array, ""],
    leaves: Float[Array, "l q *c"],
    directions: Float[Array, "2 l q *c"],
) -> tuple[Float[Array, "n q"], Float[Array, "n q"], Float[Array, "n q"]]:
    """Values, gradients along the path, and gradients in a general direction."""

    def one(code: _Code):
        def loss(leaves):
            def push(a, b, leaf):
                return leaf

            def operator(row, a, b, leaf):
                return jnp.broadcast_to(row.fn(a) if row.arity == 1 else row.fn(a, b), a.shape)

            branches = [push, *(functools.partial(operator, row) for row in instruction_set(space))]

            def step(t, stack):
                top = code.top[t]
                result = lax.switch(code.opcode[t], branches, stack[top], stack[top + 1], leaves[code.leaf[t]])
                result = jnp.where(code.moves[t], result, lax.stop_gradient(result))  # else sqrt(y) has 0 * inf
                return stack.at[top].set(jnp.where(t < code.length, result, stack[top]))

            stack = lax.fori_loop(0, steps, step, jnp.ones((depth, *leaves.shape[1:]), leaves.dtype))
            if not space.class_axis:
                return stack[0]
            return jnp.where(code.wide, stack[0].sum(-1), stack[0][..., 0])

        values, gradients = jax.vmap(lambda d: jax.jvp(loss, (leaves,), (d,)), out_axes=(None, 0))(directions)
        return values, gradients[0], gradients[1]

    return jax.vmap(one)(code)


def _encode(expressions: Sequence[Expression], space: Space) -> _Code:
    steps = max(map(len, expressions), default=1)
    opcode, leaf, top = (np.zeros((len(expressions), steps), np.int32) for _ in range(3))
    moves = np.zeros((len(expressions), steps), bool)
    wide = np.zeros(len(expressions), bool)
    variables = {variable.name for variable in space.variables}
    opcodes = {(row.name, row.class_axis): 1 + k for k, row in enumerate(instruction_set(space))}
    for n, expression in enumerate(expressions):

        def at_leaf(token):
            return [(0, space.leaves.index(token), token in space.differentiable, 0)], token in variables

        def at_node(token, *operands):
            codes, widths = zip(*operands, strict=True)
            any_wide = any(widths)
            row = OPERATORS[token] if any_wide else OPERATORS[token].narrow
            number = opcodes[token, row.class_axis]
            below = [(*step[:3], k + step[3]) for k, steps in enumerate(codes) for step in steps]
            moving = any(steps[-1][2] for steps in codes)
            return [*below, (number, 0, moving, 0)], any_wide and not row.reduces

        code, wide[n] = expression.fold(at_leaf, at_node)
        here = n, slice(len(code))
        opcode[here], leaf[here], moves[here], top[here] = zip(*code, strict=True)
    return _Code(opcode, leaf, top, moves, wide, np.array([len(e) for e in expressions], np.int32))
