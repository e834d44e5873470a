"""Rejects most candidates by their values at a few points of the verification grid.

Nothing is rejected that the full grid would pass.  A loss that passes is finite; along every path that must rise, it
ends above its start by ``MIN_RISE`` of its largest magnitude there, so that this magnitude is bounded by the rise; and
no step on the way falls by more than the gate's tolerances, which are shares of that magnitude.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cse_jax.language import graph as graphs
from cse_jax.language.float64 import float64
from cse_jax.language.spaces import Space, trajectories
from cse_jax.sampling.random_graphs import grow, tokens_of
from cse_jax.screening.verification import GRADIENT_TOLERANCE, LARGEST, MIN_RISE, ROUNDING

_SAMPLE = 4096
_MARGIN = 1.1  # on what the gate tolerates, for values that another order of operations rounds otherwise


@dataclasses.dataclass(frozen=True, eq=False)
class CoarseGrid:
    """A part of the verification grid.

    Attributes:
      leaves: values of ``space.leaves`` at all points, path by path.
      steps: which points of each path these are, the same for all.
    """

    leaves: Float[np.ndarray, "l p *c"]
    steps: Int[np.ndarray, " s"]


@functools.cache
def coarse_grid(space: Space, units: str, paths: int, points: int) -> CoarseGrid:
    """The paths that together reject the most of a sample of random formulas, each from its first to its last point."""
    grid = trajectories(space, units)
    gated = np.flatnonzero(grid.gated)
    steps = np.linspace(0, grid.inputs.shape[2] - 1, points).round().astype(int)
    values = grid.inputs[:, gated][:, :, steps]
    with float64(), jax.ensure_compile_time_eval():
        grown = grow(jax.random.key(0), space, per_operator=1)
        candidates = np.flatnonzero(grown.candidate)
        tokens = tokens_of(grown, np.random.default_rng(0).permutation(candidates)[:_SAMPLE], space)
        graph, roots, wide = graphs.from_tokens(tokens, space)
        leaves = graphs.leaf_values(space, values.reshape(len(values), -1, *values.shape[3:]))
        (found,) = graphs.evaluate(space, graph, roots, leaves)
        good = np.asarray(_good(space, steps, found, wide))  # [sign, n, path]
    chosen: list[int] = []
    remaining = np.ones(good.shape[:2], bool)
    for _ in range(min(paths, len(gated))):
        left = np.array([(remaining & good[:, :, k]).any(0).sum() for k in range(len(gated))], float)
        left[chosen] = np.inf
        chosen.append(int(left.argmin()))
        remaining &= good[:, :, chosen[-1]]
    values = values[:, sorted(chosen)]
    return CoarseGrid(graphs.leaf_values(space, values.reshape(len(values), -1, *values.shape[3:])), steps)


def may_pass(
    space: Space, steps: Int[np.ndarray, " s"], values: Float[Array, "n p *c"], wide: Bool[Array, " n"]
) -> Bool[Array, " n"]:
    """Which candidates, or their negations, may pass the gate, by their values on a coarse grid.

    Args:
      space: the space.
      steps: of the grid.
      values: of each candidate at its points.
      wide: whether each candidate has a class axis.
    """
    return _good(space, steps, values, wide).all(2).any(0)


def _good(space: Space, steps: np.ndarray, values: jax.Array, wide: jax.Array | np.ndarray) -> jax.Array:
    """Whether each path [sign, n, path] is as it must be, for a candidate and for its negation."""
    if space.class_axis:
        values = jnp.where(wide[:, None], values.sum(-1), values[..., 0])
    values = values.reshape(len(values), -1, len(steps))
    magnitude = jnp.abs(values).max(2)
    finite = magnitude < LARGEST
    rise = values[:, :, -1] - values[:, :, 0]
    tolerated = _MARGIN * (2.0 * GRADIENT_TOLERANCE + ROUNDING) / MIN_RISE * np.diff(steps)
    falls = jnp.diff(values, axis=2)
    return jnp.stack(
        [
            finite
            & (sign * rise > MIN_RISE / _MARGIN * magnitude)
            & (sign * falls >= -tolerated * (sign * rise)[..., None]).all(2)
            for sign in (1.0, -1.0)
        ]
    )
