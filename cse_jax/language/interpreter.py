"""Runs candidates that are data: values, and gradients by walking the instructions backwards.

There are two ways to run the same instructions.  A CPU takes one program at a time and branches to its operator; an
accelerator takes all programs of a batch together, computes every operator for each instruction and selects.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cse_jax.language import branching, selecting
from cse_jax.language.program import Program
from cse_jax.language.spaces import Inputs, Space


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

    Both passes of a candidate run one after the other, so prefer it to ``jax.vmap(jax.grad(...))`` for large batches.
    """
    variables = _variables(space, inputs)
    values, gradients = _way().both(space, program, variables, jnp.ones_like(variables[0]))
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


def _way():
    """The module that runs programs on the default device."""
    return branching if jax.default_backend() == "cpu" else selecting


def _forward(space: Space, program: Program, variables: tuple[jax.Array, ...]) -> jax.Array:
    return _way().forward(space, program, variables)


def _differentiable_forward(space: Space, program: Program, variables: tuple[jax.Array, ...]):
    return _forward(space, program, variables), (program, variables)


def _differentiable_backward(space: Space, residuals: tuple[Program, tuple[jax.Array, ...]], cotangent: jax.Array):
    program, variables = residuals
    _, gradients = _way().both(space, program, variables, cotangent)
    moving = dict(zip(space.differentiable, gradients, strict=True))
    to_variables = tuple(moving.get(v.name, jnp.zeros_like(a)) for v, a in zip(space.variables, variables, strict=True))
    return jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), program), to_variables


_differentiable = jax.custom_vjp(_forward, nondiff_argnums=(0,))
_differentiable.defvjp(_differentiable_forward, _differentiable_backward)
