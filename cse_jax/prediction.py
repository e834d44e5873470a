"""Prediction-space simulation: gradient descent on logits or box coordinates themselves, without a network.

A loss that can't improve predictions when it moves them directly won't do so through a network (after the rejection
protocol of AutoLoss-Zero, Li et al., 2021).  All candidates of a generation are simulated together under ``jax.vmap``.
Steps are scaled by the gradient's first root mean square, so a loss and its multiples are one.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cse_jax import program as programs
from cse_jax.expression import Expression
from cse_jax.program import Program
from cse_jax.spaces import Space

BATCH = 64
ROWS = 64
CLASSES = 4
STEPS = 60
LOGIT_RATE = 0.5  # logits a step, at the root mean square of the first gradient
BOX_RATE = 0.02  # sides a step, likewise


class Simulation(NamedTuple):
    """What the simulation found of one candidate.

    Attributes:
      before, after: the metric (balanced accuracy, or mean IoU) at start and end; NaN where the descent diverged.
      gradient: root mean square of the gradient in the predictions (logits; box coordinates in sides) at the start.
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
      units: for boxes, ``"pixels"`` (sides 8 to 64) or ``"strides"`` (sides 1 to 8).
      seed: of the predictions and targets.
    """
    results: list[Simulation] = []
    for start in range(0, len(expressions), BATCH):
        chunk = expressions[start : start + BATCH]
        compiled = [programs.compile_expression(e) for e in chunk]
        batch = programs.stack(compiled + compiled[-1:] * (BATCH - len(chunk)))
        columns = jax.device_get(_simulate_batch(space, units, seed, batch))
        results += [Simulation(*(float(column[k]) for column in columns)) for k in range(len(chunk))]
    return results


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _simulate_batch(space: Space, units: str, seed: int, batch: Program) -> Simulation:
    start, inputs_of, metric, rate = _boxes(units, seed) if space.name == "box" else _logits(space, seed)
    return jax.vmap(functools.partial(_descend, space, start, inputs_of, metric, rate))(batch)


def _descend(space, start, inputs_of, metric, rate, program: Program) -> Simulation:
    def gradient(prediction):
        inputs, pullback = jax.vjp(inputs_of, prediction)
        _, gradients = programs.value_and_gradients(space, program, inputs)
        nothing = {name: jnp.zeros_like(value) for name, value in inputs.items()}
        return pullback(nothing | gradients)[0]

    def step(_, prediction):
        return prediction - rate / first * gradient(prediction)

    first = jnp.sqrt(jnp.mean(gradient(start) ** 2))
    end = jax.lax.fori_loop(0, STEPS, step, start)
    after = jnp.where(jnp.isfinite(end).all(), metric(end), jnp.nan)
    return Simulation(metric(start), after, first)


def _logits(space: Space, seed: int):
    """Random logits and labels, a third of the rows background; w (or q) is a random IoU on foreground rows."""
    rng = np.random.default_rng(seed)
    background = np.arange(ROWS) % 3 == 0
    label = np.where(background, CLASSES - 1, rng.integers(0, CLASSES - 1, ROWS))
    iou = rng.uniform(0.3, 1.0, (ROWS, 1)).astype(np.float32)
    start = jnp.asarray(rng.normal(0.0, 1.5, (ROWS, CLASSES)).astype(np.float32))
    one_hot = np.eye(CLASSES, dtype=np.float32)[label]
    if space.name == "binary_class":
        one_hot[background] = 0.0
    iou = np.broadcast_to(np.where(background[:, None], 1.0, iou).astype(np.float32), one_hot.shape)

    def inputs_of(logits: Float[Array, "n c"]):
        values = {"X": logits, "Y": one_hot, "Z": iou, "Q": iou * one_hot, "PY": one_hot, "NY": 1.0 - one_hot}
        return {v.name: jnp.asarray(values[v.name]) for v in space.variables}

    def accuracy(logits: Float[Array, "n c"]):
        if space.name == "multi_class":
            right = logits.argmax(-1) == label
            return 0.5 * (right[background].mean() + right[~background].mean())
        positive = logits > 0.0
        recall = jnp.sum(positive * one_hot) / one_hot.sum()
        return 0.5 * (recall + jnp.sum(~positive * (1.0 - one_hot)) / (1.0 - one_hot).sum())

    return start, inputs_of, accuracy, LOGIT_RATE


def _boxes(units: str, seed: int):
    """Random target boxes and displaced, resized predictions; coordinates are in sides of the target."""
    rng = np.random.default_rng(seed)
    low, high = (8.0, 64.0) if units == "pixels" else (1.0, 8.0)
    sides = np.exp(rng.uniform(np.log(low), np.log(high), (ROWS, 1))) * np.exp(rng.normal(0.0, 0.2, (ROWS, 2)))
    sides = sides.astype(np.float32)
    centre = rng.normal(0.0, 0.25, (ROWS, 2))
    half = 0.5 * np.exp(rng.normal(0.0, 0.35, (ROWS, 2)))
    start = jnp.asarray(np.concatenate([centre - half, centre + half], -1).astype(np.float32))

    def areas(boxes: Float[Array, "n 4"]):
        low, high = boxes[:, :2], boxes[:, 2:]
        inner = jnp.maximum(jnp.minimum(high, 0.5) - jnp.maximum(low, -0.5), 0.0) * sides
        outer = (jnp.maximum(high, 0.5) - jnp.minimum(low, -0.5)) * sides
        own = jnp.maximum(high - low, 0.0) * sides
        intersection = inner[:, 0] * inner[:, 1]
        union = own[:, 0] * own[:, 1] + sides[:, 0] * sides[:, 1] - intersection
        return intersection, union + 1e-7, outer[:, 0] * outer[:, 1] + 1e-7

    def inputs_of(boxes):
        return dict(zip("IUE", areas(boxes), strict=True))

    def mean_iou(boxes):
        intersection, union, _ = areas(boxes)
        return jnp.mean(intersection / union)

    return start, inputs_of, mean_iou, BOX_RATE
