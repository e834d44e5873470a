"""Convergence property verification: which formulas can train a detector at all, judged without one.

Whole batches of candidates are judged at once: the loss and its slope along every path of its space are reduced to a
verdict, and to a fingerprint that two losses share if their slopes agree up to a positive factor.
"""

import concurrent.futures
import dataclasses
import enum
import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from cse_jax import dag as dags
from cse_jax.dag import Dag
from cse_jax.expression import Expression
from cse_jax.spaces import Space, trajectories

BATCH = 2048  # formulas in one graph
WORKERS = 2  # graphs judged at once, in threads
TILE = 32  # rows of a tile
PASSES = (4, 5, 3, 2, 1)  # parts of the grid, so that the rows of a part stay in the cache; the first that divides it
SLOPE_TOLERANCE = 1e-6  # of the largest slope on the path: far below any real dip
ROUNDING = 1e-12  # of the largest magnitude on the path: a slope below it is noise of float64
MIN_RISE = 1e-3  # of the largest magnitude on the path
VANISHED = 0.05  # of the largest slope on the path
LARGEST = float(np.finfo(np.float32).max)  # detectors train in float32
_PROJECTIONS = 8


class Property(enum.IntEnum):
    """What a loss must satisfy, in the order in which it is checked; ``NONE`` is a pass."""

    FINITE_VALUE = 0
    FINITE_GRADIENT = 1
    DEPENDS = 2
    MONOTONE = 3
    RISES = 4
    VANISHES = 5
    NONE = 6


VALIDITY = (Property.FINITE_VALUE, Property.FINITE_GRADIENT, Property.DEPENDS)

_EXPLANATIONS = {
    Property.FINITE_VALUE: "not finite in float32: the loss is {value:g}",
    Property.FINITE_GRADIENT: "gradient not finite in float32: it is {value:g}",
    Property.DEPENDS: "does not depend on the prediction: the largest slope is {value:g}",
    Property.MONOTONE: "not monotone: the loss falls while the prediction gets worse, slope {value:.4g}",
    Property.RISES: "does not rise: the loss changes by only {value:.4g} while the prediction gets worse",
    Property.VANISHES: "gradient does not vanish: the slope at the well-predicted end is {value:.4g}",
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The gate's judgement of one formula.

    Attributes:
      passed: whether it may go on.
      reason: empty if passed, else the failed property, the path, the point and the value.
      failed: the failed property.
      flipped: passed only with its sign flipped (``sign_flip=True``).
      fingerprint: equal for losses whose slopes are equal up to a positive factor (after the flip).
    """

    passed: bool
    reason: str
    failed: Property
    flipped: bool
    fingerprint: str

    @property
    def valid(self) -> bool:
        """Finite everywhere and dependent on the prediction."""
        return self.failed not in VALIDITY


class Judged(NamedTuple):
    """Verdicts of ``n`` formulas as arrays; the second axis is the formula's sign (+, -).

    Attributes:
      failed: the first failed property, as ``Property``.
      place: path and point where it failed, as an index into both.
      value: what was found there.
      rise: the smallest rise of a path that must rise, as a share of its largest magnitude.
      start_slope: the largest slope at the good end of a path where it must vanish, as a share of the path's steepest.
      fingerprint: projections of the slopes.
    """

    failed: Int[np.ndarray, "n 2"]
    place: Int[np.ndarray, "n 2"]
    value: Float[np.ndarray, "n 2"]
    rise: Float[np.ndarray, "n 2"]
    start_slope: Float[np.ndarray, "n 2"]
    fingerprint: Float[np.ndarray, "n k"]

    def passed(self, *, sign_flip: bool) -> Bool[np.ndarray, " n"]:
        """Which formulas pass, or pass with their sign flipped."""
        good = self.failed == Property.NONE
        return good.any(1) if sign_flip else good[:, 0]


def verify(
    expressions: Sequence[Expression], space: Space, *, sign_flip: bool = False, units: str = "pixels"
) -> list[Verdict]:
    """Judges formulas on the full grid of the space.

    Args:
      expressions: formulas of ``space``.
      space: their search space.
      sign_flip: also judge the negation of what fails; a pass is then marked ``flipped``.
      units: unit of length that the detector feeds its losses, one of ``space.units``.

    Raises:
      ValueError: a formula belongs to another space.
    """
    for expression in expressions:
        if expression.space != space:
            raise ValueError(f"the formula {expression} belongs to space {expression.space}, not {space}")
    judged = judge(dags.to_tokens(expressions, space), space, units=units)
    return [_verdict(judged, k, space, units, sign_flip) for k in range(len(expressions))]


def judge(tokens: Int[np.ndarray, "n m"], space: Space, *, units: str = "pixels") -> Judged:
    """Judges formulas, given as prefix tokens by number, on the full grid of the space.

    Args:
      tokens: one formula a row (see ``cse_jax.dag``).
      space: their search space.
      units: unit of length, one of ``space.units``.
    """
    chunks = [tokens[start : start + BATCH] for start in range(0, max(len(tokens), 1), BATCH)]
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(functools.partial(_judge_chunk, space, units), chunks))
    return Judged(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _judge_chunk(space: Space, units: str, tokens: Int[np.ndarray, "n m"]) -> list[np.ndarray]:
    dag, roots, wide = dags.from_tokens(tokens, space, width=TILE)
    missing = BATCH - len(tokens)
    with jax.enable_x64(True):
        judged = _judge_batch(space, units, dag, np.pad(roots, (0, missing)), np.pad(wide, (0, missing)))
        return [array[: len(tokens)] for array in jax.device_get(judged)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judge_batch(space: Space, units: str, dag: Dag, roots: jax.Array, wide: jax.Array) -> Judged:
    paths = trajectories(space, units)
    variables, shape = paths.inputs.shape[0], paths.inputs.shape[1:3]
    points = (-1, *paths.inputs.shape[3:])
    leaves = dags.leaf_values(space, paths.inputs.reshape(variables, *points))
    passes = next(parts for parts in PASSES if leaves.shape[1] % parts == 0)
    along, everywhere = np.zeros_like(leaves), np.zeros_like(leaves)
    along[:variables] = paths.tangents.reshape(variables, *points)
    for k, variable in enumerate(space.variables):
        if variable.name in space.differentiable:  # unlike everywhere, so that no parts cancel
            everywhere[k] = 1.0 + np.random.default_rng(k).random(leaves.shape[1:])
    results = dags.evaluate(space, dag, roots, leaves, along, everywhere, passes=passes)
    if space.class_axis:
        results = [jnp.where(wide[:, None], a.sum(-1), a[..., 0]) for a in results]
    results = [a.reshape(-1, *shape) for a in results]
    return jax.vmap(functools.partial(_judge, *lax.optimization_barrier((paths.gated, paths.vanishing))))(*results)


def _judge(
    gated: jax.Array, vanishing: jax.Array, values: jax.Array, slopes: jax.Array, gradients: jax.Array
) -> Judged:
    """Judges one candidate and its negation, from values, slopes and slopes in a general direction, all [t, p]."""
    plain, negated = (_check(gated, vanishing, sign * values, sign * slopes, gradients) for sign in (1.0, -1.0))
    return Judged(*jax.tree.map(lambda *signs: jnp.stack(signs), plain, negated), _project(slopes))


def _check(
    gated: jax.Array, vanishing: jax.Array, values: jax.Array, slopes: jax.Array, gradients: jax.Array
) -> tuple[jax.Array, ...]:
    """The first failed property with the path, the point on it, and the offending value."""
    points = values.shape[1]
    steepest = jnp.abs(slopes).max(1)
    magnitude = jnp.abs(values).max(1)
    noise = ROUNDING * magnitude[:, None]
    steps = jnp.diff(values, axis=1, append=values[:, -1:])
    dips = jnp.minimum(slopes + SLOPE_TOLERANCE * steepest[:, None] + noise, 0.0)
    drops = jnp.minimum(steps + SLOPE_TOLERANCE * jnp.ptp(values, axis=1, keepdims=True) + noise, 0.0)
    worst = jnp.where(gated[:, None], jnp.minimum(dips, drops), 0.0)
    rise = values[:, -1] - values[:, 0]
    enough = rise > MIN_RISE * magnitude
    vanished = jnp.abs(slopes[:, 0]) <= VANISHED * steepest
    failures = [  # in the order of Property: where it fails [t, p], and what is reported there
        (~(jnp.abs(values) < LARGEST), values),
        (~(jnp.abs(slopes) + jnp.abs(gradients) < LARGEST), gradients),
        (jnp.broadcast_to(steepest.max() == 0.0, values.shape), jnp.zeros_like(values)),
        ((worst < 0.0) & (worst == worst.min()), jnp.where(dips < 0.0, slopes, steps)),
        (_at_point(gated & ~enough, points - 1, points), jnp.broadcast_to(rise[:, None], values.shape)),
        (_at_point(vanishing & ~vanished, 0, points), slopes),
    ]
    failed = jnp.stack([where.any() for where, _ in failures] + [jnp.asarray(True)]).argmax()
    places = jnp.stack([where.reshape(-1).argmax() for where, _ in failures])
    reported = jnp.stack([what.reshape(-1)[place] for (_, what), place in zip(failures, places, strict=True)])
    which = jnp.minimum(failed, len(failures) - 1)
    shares = (
        jnp.where(gated, rise / magnitude, jnp.inf).min(),
        jnp.where(vanishing, jnp.abs(slopes[:, 0]) / steepest, 0.0),
    )
    return failed, places[which], reported[which], shares[0], shares[1].max()


def _at_point(paths_failed: jax.Array, point: int, points: int) -> jax.Array:
    return paths_failed[:, None] & (jnp.arange(points) == point)


def _project(slopes: jax.Array) -> jax.Array:
    """Random projections of the slopes, divided by their geometric mean and compressed so that no point dominates."""
    magnitude = jnp.abs(slopes)
    nonzero = magnitude > 0.0
    logs = jnp.where(nonzero, jnp.log(jnp.where(nonzero, magnitude, 1.0)), 0.0)
    scale = jnp.exp(logs.sum() / jnp.maximum(nonzero.sum(), 1))
    weights = np.random.default_rng(0).standard_normal((_PROJECTIONS, slopes.size)) / np.sqrt(slopes.size)
    return jnp.asarray(weights) @ jnp.arcsinh(slopes / scale).reshape(-1)


def _verdict(judged: Judged, k: int, space: Space, units: str, sign_flip: bool) -> Verdict:
    plain, negated = (Property(int(p)) for p in judged.failed[k])
    flipped = sign_flip and plain is not Property.NONE and negated is Property.NONE
    failed = Property.NONE if flipped else plain
    reason = ""
    if failed is not Property.NONE:
        reason = _explain(failed, int(judged.place[k, 0]), float(judged.value[k, 0]), space, units)
    return Verdict(failed is Property.NONE, reason, failed, flipped, fingerprint(judged, k, flipped=flipped))


def fingerprint(judged: Judged, k: int, *, flipped: bool) -> str:
    """Equal for formulas whose slopes are equal up to a positive factor (after the flip)."""
    projections = np.round((-1.0 if flipped else 1.0) * judged.fingerprint[k], 8) + 0.0
    return hashlib.blake2b(projections.astype("<f8").tobytes(), digest_size=12).hexdigest()


def _explain(failed: Property, place: int, value: float, space: Space, units: str) -> str:
    what = _EXPLANATIONS[failed].format(value=value)
    if failed is Property.DEPENDS:
        return f"{what} in {', '.join(space.differentiable)}"
    paths = trajectories(space, units)
    path, point = divmod(place, paths.inputs.shape[2])
    shown = (f"{v.name}={_show(paths.inputs[k, path, point])}" for k, v in enumerate(space.variables))
    return f"{what}, where {paths.names[path]}, at {', '.join(shown)}"


def _show(value: np.ndarray) -> str:
    if value.ndim == 0:
        return f"{value:g}"
    return "[" + " ".join(f"{entry:g}" for entry in value) + "]"
