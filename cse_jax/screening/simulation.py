"""Prediction-space simulation: gradient descent on predictions themselves (logits, boxes), without a network.

A loss that can't improve predictions when it moves them directly won't do so through a network (after the rejection
protocol of AutoLoss-Zero, Li et al., 2021).  All candidates of a generation are simulated together under ``jax.vmap``.
Steps are divided by the root mean square of the first gradient, so a loss and its multiples behave the same.
"""

import concurrent.futures
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cse_jax.language import interpreter
from cse_jax.language import program as programs
from cse_jax.language.expression import Expression
from cse_jax.language.program import Program
from cse_jax.language.spaces import PredictionTask, Space
from cse_jax.screening.sizes import sizes

STEPS = 60


class Simulation(NamedTuple):
    """The outcome for one candidate.

    Attributes:
      before, after: the task's metric (balanced accuracy, mean IoU) at start and end; NaN where the descent diverged.
      gradient: root mean square of the gradient in the predictions at the start.
    """

    before: float
    after: float
    gradient: float


def simulate(
    expressions: Sequence[Expression], space: Space, *, units: str = "pixels", seed: int = 0
) -> list[Simulation]:
    """Simulates candidates on one seeded set of predictions.

    Args:
      expressions: formulas of ``space``.
      space: their search space.
      units: unit of length that the detector feeds its losses, one of ``space.units``.
      seed: of the predictions and targets.
    """

    size = sizes()
    order = sorted(range(len(expressions)), key=lambda k: len(expressions[k]))  # a batch takes as long as its longest

    def one(start: int) -> list[Simulation]:
        chunk = [expressions[k] for k in order[start : start + size.simulated]]
        compiled = [programs.compile_expression(e) for e in chunk]
        batch = programs.stack(compiled + compiled[-1:] * (size.simulated - len(chunk)))
        columns = jax.device_get(_simulate_batch(space, units, seed, batch))
        return [Simulation(*(float(column[k]) for column in columns)) for k in range(len(chunk))]

    with concurrent.futures.ThreadPoolExecutor(size.workers) as pool:
        parts = pool.map(one, range(0, len(expressions), size.simulated))
        found = dict(zip(order, itertools.chain.from_iterable(parts), strict=True))
    return [found[k] for k in range(len(expressions))]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _simulate_batch(space: Space, units: str, seed: int, batch: Program) -> tuple[Float[Array, " n"], ...]:
    """The fields of ``Simulation``, for a batch of programs."""
    task = space.prediction(units, seed)
    return jax.vmap(functools.partial(_descend, space, task))(batch)


def _descend(space: Space, task: PredictionTask, program: Program) -> tuple[Float[Array, ""], ...]:
    def gradient(prediction):
        inputs, pullback = jax.vjp(task.inputs, prediction)
        _, gradients = interpreter.value_and_gradients(space, program, inputs)
        nothing = {name: jnp.zeros_like(value) for name, value in inputs.items()}
        return pullback(nothing | gradients)[0]

    def step(_, prediction):
        return prediction - task.rate / first * gradient(prediction)

    first = _root_mean_square(gradient(task.start))
    end = jax.lax.fori_loop(0, STEPS, step, task.start)
    after = jnp.where(jnp.isfinite(end).all(), task.metric(end), jnp.nan)
    return task.metric(task.start), after, first


def _root_mean_square(values: Float[Array, "..."]) -> Float[Array, ""]:
    """Also where the squares themselves are too large or too small for their type."""
    largest = jnp.max(jnp.abs(values))
    return largest * jnp.sqrt(jnp.mean((values / jnp.where(largest > 0, largest, 1)) ** 2))
