"""Convergence property verification: which formulas can train a detector at all, judged without one.

Whole batches of compiled candidates are judged under ``jax.vmap``: the loss and its derivative along every path of
its space are reduced to a verdict, and to a fingerprint that two losses share if their slopes agree up to a
positive factor.
"""

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cse_jax import program as programs
from cse_jax.expression import Expression
from cse_jax.program import Program
from cse_jax.spaces import Space, Trajectories, trajectories

BATCH = 256
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
    verdicts: list[Verdict] = []
    for start in range(0, len(expressions), BATCH):
        chunk = expressions[start : start + BATCH]
        compiled = [programs.compile_expression(e) for e in chunk]
        batch = programs.stack(compiled + compiled[-1:] * (BATCH - len(chunk)))
        with jax.enable_x64(True):
            judged = jax.device_get(_judge_batch(space, units, batch))
        verdicts += [_verdict(judged, k, space, units, sign_flip) for k in range(len(chunk))]
    return verdicts


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judge_batch(space: Space, units: str, batch: Program) -> dict[str, jax.Array]:
    paths = trajectories(space, units)
    return jax.vmap(functools.partial(_judge, space, paths))(batch)


def _judge(space: Space, paths: Trajectories, program: Program) -> dict[str, jax.Array]:
    """Judges one candidate and its negation; the first axis of the results is the sign (+, -)."""
    inputs = {v.name: jnp.asarray(paths.inputs[k]) for k, v in enumerate(space.variables)}
    values, gradients = programs.value_and_gradients(space, program, inputs)
    tangents = {v.name: jnp.asarray(paths.tangents[k]) for k, v in enumerate(space.variables)}
    per_class = sum(gradients[name] * tangents[name] for name in space.differentiable)
    largest = jnp.stack([jnp.abs(g) for g in gradients.values()]).max(0)
    if space.class_axis:
        values, slopes, largest = values.sum(-1), per_class.sum(-1), largest.max(-1)
    else:
        slopes = per_class
    checked = [_check(paths, sign * values, sign * slopes, largest) for sign in (1.0, -1.0)]
    result = jax.tree.map(lambda *signs: jnp.stack(signs), *checked)
    return result | {"fingerprint": _project(slopes)}


def _check(paths: Trajectories, values: jax.Array, slopes: jax.Array, largest: jax.Array) -> dict[str, jax.Array]:
    """The first failed property with the path, the point on it, and the offending value."""
    gated, vanishing = jnp.asarray(paths.gated), jnp.asarray(paths.vanishing)
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
        (~(largest < LARGEST), largest),
        (jnp.broadcast_to(steepest.max() == 0.0, values.shape), jnp.zeros_like(values)),
        ((worst < 0.0) & (worst == worst.min()), jnp.where(dips < 0.0, slopes, steps)),
        (_at_point(gated & ~enough, points - 1, points), jnp.broadcast_to(rise[:, None], values.shape)),
        (_at_point(vanishing & ~vanished, 0, points), slopes),
    ]
    failed = jnp.stack([where.any() for where, _ in failures] + [jnp.asarray(True)]).argmax()
    places = jnp.stack([where.reshape(-1).argmax() for where, _ in failures])
    reported = jnp.stack([what.reshape(-1)[place] for (_, what), place in zip(failures, places, strict=True)])
    which = jnp.minimum(failed, len(failures) - 1)
    return {"failed": failed, "place": places[which], "value": reported[which]}


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


def _verdict(judged: dict[str, np.ndarray], k: int, space: Space, units: str, sign_flip: bool) -> Verdict:
    plain, negated = (Property(int(p)) for p in judged["failed"][k])
    flipped = sign_flip and plain is not Property.NONE and negated is Property.NONE
    failed = Property.NONE if flipped else plain
    sign = -1.0 if flipped else 1.0
    projections = np.round(sign * judged["fingerprint"][k], 8) + 0.0
    fingerprint = hashlib.blake2b(projections.astype("<f8").tobytes(), digest_size=12).hexdigest()
    reason = ""
    if failed is not Property.NONE:
        reason = _explain(failed, int(judged["place"][k, 0]), float(judged["value"][k, 0]), space, units)
    return Verdict(failed is Property.NONE, reason, failed, flipped, fingerprint)


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
