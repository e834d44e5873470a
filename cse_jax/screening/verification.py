"""Convergence property verification: which formulas can train a detector at all, judged without one.

Whole batches of candidates are judged at once, on every point of the verification grid: first the values of all, then
the gradients of those whose values are in order, which are few.  A formula that passes gets a fingerprint, which two
losses share if their gradients agree up to a positive factor.

Two derivatives are taken at each point: the gradient along the path, and the gradient in a general direction, which
shows infinities that the path misses.
"""

import concurrent.futures
import dataclasses
import enum
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cse_jax.errors import InputError
from cse_jax.language import graph as graphs
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.graph import Graph
from cse_jax.language.population import encode
from cse_jax.language.spaces import Space, Trajectories, trajectories
from cse_jax.screening.sizes import sizes

GRADIENT_TOLERANCE = 1e-6  # of the largest gradient along the path: far below that of any real dip
ROUNDING = 1e-12  # of the largest magnitude on the path: a gradient below it is noise of float64
MIN_RISE = 1e-3  # of the largest magnitude on the path
VANISHED = 0.05  # of the largest gradient along the path
LARGEST = float(np.finfo(np.float32).max)  # detectors train in float32
_PROJECTIONS = 8
_NOISE = 1e-9  # of the largest magnitude on a path: no larger gradient is a rounded 0


class Property(enum.IntEnum):
    """What a loss must satisfy, in the order in which it is checked; ``NONE`` is a pass."""

    FINITE_VALUE = 0
    DEPENDS = 1
    MONOTONE = 2
    RISES = 3
    FINITE_GRADIENT = 4
    GRADIENT_SIGN = 5
    VANISHES = 6
    NONE = 7


VALIDITY = (Property.FINITE_VALUE, Property.DEPENDS)

_EXPLANATIONS = {
    Property.FINITE_VALUE: "not finite in float32: the loss is {value:g}",
    Property.DEPENDS: "does not depend on the prediction: the loss stays the same",
    Property.MONOTONE: "not monotone: the loss falls by {value:.4g} while the prediction gets worse",
    Property.RISES: "does not rise: the loss changes by only {value:.4g} while the prediction gets worse",
    Property.FINITE_GRADIENT: "gradient not finite in float32: it is {value:g}",
    Property.GRADIENT_SIGN: "not monotone: the gradient along the path is {value:.4g}, below 0",
    Property.VANISHES: "gradient does not vanish: along the path it is {value:.4g} at the well-predicted end",
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The gate's judgement of one formula.

    Attributes:
      passed: whether it may go on.
      reason: empty if passed, else the failed property, the path, the point and the value.
      failed: the failed property.
      flipped: passed only with its sign flipped (``sign_flip=True``).
      fingerprint: equal for losses whose gradients are equal up to a positive factor (after the flip); empty if
        neither the formula nor its negation passes.
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
      rise: the smallest rise over a path that must rise, as a share of the largest magnitude on it; this and the
        following are 0 where the values alone decide.
      start_gradient: the largest gradient at the good end of a path where it must vanish, as a share of the largest
        along that path.
      fingerprint: projections of the gradients along the paths.
    """

    failed: Int[np.ndarray, "n 2"]
    rise: Float[np.ndarray, "n 2"]
    start_gradient: Float[np.ndarray, "n 2"]
    fingerprint: Float[np.ndarray, "n k"]

    def passed(self, *, sign_flip: bool) -> Bool[np.ndarray, " n"]:
        """Which formulas pass, or pass with their sign flipped."""
        good = self.failed == Property.NONE
        return good.any(1) if sign_flip else good[:, 0]


class _Condition(NamedTuple):
    """Where a property fails [n, s, t], and what is found there, for ``n`` formulas at ``s`` points of ``t`` paths."""

    fails: Bool[Array, "n s t"]
    found: Float[Array, "n s t"]


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
      InputError: a formula belongs to another space, or the space does not know the unit.
    """
    for expression in expressions:
        if expression.space != space:
            raise InputError(f"the formula {expression} belongs to space {expression.space}, not {space}")
    tokens = encode(expressions, space)
    judged = judge(tokens, space, units=units)
    passed = judged.passed(sign_flip=sign_flip)
    reasons = iter(_explain(tokens[~passed], judged.failed[~passed, 0], space, units))
    verdicts = []
    for k in range(len(expressions)):
        flipped = bool(passed[k] and judged.failed[k, 0] != Property.NONE)
        failed = Property.NONE if passed[k] else Property(int(judged.failed[k, 0]))
        reason = "" if passed[k] else next(reasons)
        named = (judged.failed[k] == Property.NONE).any()
        name = fingerprint(judged, k, flipped=flipped) if named else ""
        verdicts.append(Verdict(bool(passed[k]), reason, failed, flipped, name))
    return verdicts


def margins(expressions: Sequence[Expression], space: Space, *, units: str = "pixels") -> Float[np.ndarray, " n"]:
    """By how much formulas pass the gate: the decimal digits between a formula's figures and the thresholds.

    Below 0 for what fails, the lower the earlier the property that it fails is checked.
    """
    judged = judge(encode(expressions, space), space, units=units, values_first=False)
    failed, rise, start = judged.failed[:, 0], judged.rise[:, 0], judged.start_gradient[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        slack = np.minimum(np.log10(rise / MIN_RISE), np.log10(VANISHED / np.maximum(start, ROUNDING)))
    return np.where(failed == Property.NONE, slack, failed - float(Property.NONE))


def behaviours(expressions: Sequence[Expression], space: Space, *, units: str = "pixels") -> Float[np.ndarray, "n d"]:
    """What tells losses apart: their gradients along all paths of the grid, up to a positive factor.

    Gradients are in units of the typical steepest gradient of a path, compressed with ``asinh``.  A fingerprint is a
    projection of this.  What is not finite is 0.

    Args:
      expressions: formulas of ``space``, each with the sign with which it trains.
      space: their search space, with ``d`` points on all of its paths together.
      units: unit of length, one of ``space.units``.
    """
    tokens = encode(expressions, space)
    (found,) = _in_batches(functools.partial(_behaviours, space, units), tokens, space, gradients=True)
    return np.nan_to_num(found, posinf=0.0, neginf=0.0).astype(np.float32)


def judge(tokens: Int[np.ndarray, "n m"], space: Space, *, units: str = "pixels", values_first: bool = True) -> Judged:
    """Judges formulas, given as prefix tokens by number, on the full grid of the space.

    Args:
      tokens: one formula a row (see ``cse_jax.language.population``).
      space: their search space.
      units: unit of length, one of ``space.units``.
      values_first: take gradients only where the values are in order, which is slower where most are.  The verdicts
        are the same.
    """
    with_gradients = functools.partial(_judge_with_gradients, space, units)
    if not values_first:
        return Judged(*_in_batches(with_gradients, tokens, space, gradients=True))
    failed = _in_batches(functools.partial(_judge_values, space, units), tokens, space, gradients=False)[0]
    judged = Judged(failed, *(np.zeros((len(tokens), k)) for k in (2, 2, _PROJECTIONS)))
    rows = np.flatnonzero((failed == Property.NONE).any(1))
    found = _in_batches(with_gradients, tokens[rows], space, gradients=True)
    for array, part in zip(judged, found, strict=True):
        array[rows] = part
    return judged


def _in_batches(
    function: Callable[..., Sequence[jax.Array]], tokens: Int[np.ndarray, "n m"], space: Space, *, gradients: bool
) -> list[np.ndarray]:
    """A function of a graph, its roots and whether they have a class axis, over batches of formulas."""
    cut = sizes()
    size, tile = (cut.gradient_batch, cut.gradient_tile) if gradients else (cut.batch, cut.tile)

    def one(start: int) -> list[np.ndarray]:
        chunk = tokens[start : start + size]
        graph, roots, wide = graphs.from_tokens(chunk, space, width=tile)
        missing = size - len(chunk)
        with float64():
            found = function(graph, np.pad(roots, (0, missing)), np.pad(wide, (0, missing)))
            return [array[: len(chunk)] for array in jax.device_get(found)]

    with concurrent.futures.ThreadPoolExecutor(cut.workers) as pool:
        parts = list(pool.map(one, range(0, max(len(tokens), 1), size)))
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judge_values(space: Space, units: str, graph: Graph, roots: jax.Array, wide: jax.Array) -> tuple[jax.Array]:
    """The first property that the values of each formula, and of its negation, violate."""
    (values,) = _on_grid(space, units, graph, roots, wide, gradients=False)
    paths = trajectories(space, units)
    return (jnp.stack([_first(_of_values(paths, values, sign), values) for sign in (1.0, -1.0)], 1),)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judge_with_gradients(
    space: Space, units: str, graph: Graph, roots: jax.Array, wide: jax.Array
) -> tuple[jax.Array, ...]:
    """The fields of ``Judged``: the first property that values or gradients violate, and the figures of a loss."""
    values, along, general = _on_grid(space, units, graph, roots, wide, gradients=True)
    paths = trajectories(space, units)
    magnitude, steepest = jnp.abs(values).max(1), jnp.abs(along).max(1)
    rise = jnp.where(paths.gated, (values[:, -1] - values[:, 0]) / magnitude, jnp.nan)
    start = jnp.where(paths.vanishing, jnp.abs(along[:, 0]) / steepest, 0.0).max(1)
    conditions = [
        _of_values(paths, values, sign) | _of_gradients(paths, values, along, general, sign) for sign in (1.0, -1.0)
    ]
    return (
        jnp.stack([_first(each, values) for each in conditions], 1),
        jnp.stack([jnp.nanmin(sign * rise, 1) for sign in (1.0, -1.0)], 1),
        jnp.stack([start, start], 1),
        jax.vmap(_project)(values, along),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _behaviours(space: Space, units: str, graph: Graph, roots: jax.Array, wide: jax.Array) -> tuple[jax.Array]:
    values, along, _ = _on_grid(space, units, graph, roots, wide, gradients=True)
    return (jax.vmap(_compressed)(values, along),)


def _on_grid(
    space: Space, units: str, graph: Graph, roots: jax.Array, wide: jax.Array, *, gradients: bool
) -> list[Float[Array, "n s t"]]:
    """Values at ``s`` points of ``t`` paths; with ``gradients`` also those along it and in a general direction."""
    paths = trajectories(space, units)
    inputs, tangents = (np.swapaxes(a, 1, 2) for a in (paths.inputs, paths.tangents))
    shape, points = inputs.shape[1:3], (-1, *inputs.shape[3:])
    leaves = graphs.leaf_values(space, inputs.reshape(len(inputs), *points))
    directions = []
    if gradients:
        along, general = np.zeros_like(leaves), np.zeros_like(leaves)
        along[: len(inputs)] = tangents.reshape(len(inputs), *points)
        for k, variable in enumerate(space.variables):
            if variable.name in space.differentiable:  # different at all points, so that no parts cancel
                general[k] = 1.0 + np.random.default_rng(k).random(leaves.shape[1:])
        directions = [along, general]
    passes = next(parts for parts in sizes().passes if leaves.shape[1] % parts == 0)
    results = graphs.evaluate(space, graph, roots, leaves, *directions, passes=passes)
    if space.class_axis:
        results = [jnp.where(wide[:, None], a.sum(-1), a[..., 0]) for a in results]
    return [a.reshape(-1, *shape) for a in results]


def _of_values(paths: Trajectories, values: Float[Array, "n s t"], sign: float) -> dict[Property, _Condition]:
    """What the values of a formula must satisfy, times the sign."""
    highest, lowest = values.max(1, keepdims=True), values.min(1, keepdims=True)
    magnitude, spread = jnp.maximum(highest, -lowest), highest - lowest
    steps, rise = sign * (values[:, 1:] - values[:, :-1]), sign * (values[:, -1:] - values[:, :1])
    tolerated = GRADIENT_TOLERANCE * spread + ROUNDING * magnitude
    return {
        Property.FINITE_VALUE: _Condition(~(jnp.abs(values) < LARGEST), values),
        Property.DEPENDS: _Condition((spread == 0.0).all(2, keepdims=True), spread),
        Property.MONOTONE: _Condition((steps < -tolerated) & paths.gated, -steps),
        Property.RISES: _Condition(~(rise > MIN_RISE * magnitude) & paths.gated, rise),
    }


def _of_gradients(
    paths: Trajectories,
    values: Float[Array, "n s t"],
    along: Float[Array, "n s t"],
    general: Float[Array, "n s t"],
    sign: float,
) -> dict[Property, _Condition]:
    """What the gradients of a formula along the paths, and in a general direction, must satisfy, times the sign."""
    steepest = jnp.abs(along).max(1, keepdims=True)
    tolerated = GRADIENT_TOLERANCE * steepest + ROUNDING * jnp.abs(values).max(1, keepdims=True)
    start = along[:, :1]
    return {
        Property.FINITE_GRADIENT: _Condition(~(jnp.abs(along) + jnp.abs(general) < LARGEST), general),
        Property.GRADIENT_SIGN: _Condition((sign * along < -tolerated) & paths.gated, sign * along),
        Property.VANISHES: _Condition(~(jnp.abs(start) <= VANISHED * steepest) & paths.vanishing, sign * start),
    }


def _first(conditions: dict[Property, _Condition], values: jax.Array) -> Int[Array, " n"]:
    failed = jnp.full(len(values), Property.NONE)
    for name, condition in reversed(conditions.items()):
        failed = jnp.where(condition.fails.any((1, 2)), name, failed)
    return failed


def _project(values: Float[Array, "s t"], along: Float[Array, "s t"]) -> Float[Array, " k"]:
    """Random projections of a loss's behaviour."""
    weights = np.random.default_rng(0).standard_normal((_PROJECTIONS, along.size)) / np.sqrt(along.size)
    return jnp.asarray(weights) @ _compressed(values, along)


def _compressed(values: Float[Array, "s t"], along: Float[Array, "s t"]) -> Float[Array, " d"]:
    """The gradients along the paths, compressed so that no single one dominates.

    The unit is the typical largest gradient of a path.  Paths whose gradients are only rounding don't count for it.
    """
    steepest = jnp.abs(along).max(0)
    moves = steepest > _NOISE * jnp.abs(values).max(0)
    logs = jnp.where(moves, jnp.log(jnp.where(moves, steepest, 1.0)), 0.0)
    scale = jnp.exp(logs.sum() / jnp.maximum(moves.sum(), 1))
    return jnp.arcsinh(along / scale).reshape(-1)


def fingerprint(judged: Judged, k: int, *, flipped: bool) -> str:
    """A name that is equal for formulas whose gradients are equal up to a positive factor (after the flip)."""
    projections = np.round((-1.0 if flipped else 1.0) * judged.fingerprint[k], 8) + 0.0
    return hashlib.blake2b(projections.astype("<f8").tobytes(), digest_size=12).hexdigest()


def _explain(tokens: Int[np.ndarray, "n m"], failed: Int[np.ndarray, " n"], space: Space, units: str) -> Iterator[str]:
    """Why each of these formulas fails: the property, the path, the point and what is found there."""
    paths = trajectories(space, units)
    places, found = _in_batches(functools.partial(_locate, space, units), tokens, space, gradients=True)
    for k, code in enumerate(failed.tolist()):
        what = _EXPLANATIONS[Property(code)].format(value=found[k, code])
        if code == Property.DEPENDS:
            moving = (v.symbol for v in space.variables if v.name in space.differentiable)
            yield f"{what}, whatever {', '.join(moving)}"
            continue
        point, path = divmod(int(places[k, code]), len(paths.names))
        point = -1 if code == Property.RISES else point
        shown = (f"{v.symbol}={_show(paths.inputs[k, path, point])}" for k, v in enumerate(space.variables))
        yield f"{what}, where {paths.names[path]}, at {', '.join(shown)}"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _locate(space: Space, units: str, graph: Graph, roots: jax.Array, wide: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where each property fails first, as an index into points and paths, and what is found there [n, property]."""
    values, along, general = _on_grid(space, units, graph, roots, wide, gradients=True)
    paths = trajectories(space, units)
    conditions = _of_values(paths, values, 1.0) | _of_gradients(paths, values, along, general, 1.0)
    places, found = [], []
    for fails, what in conditions.values():
        where = fails.reshape(len(values), -1).argmax(1)
        flat = jnp.broadcast_to(what, fails.shape[:1] + what.shape[1:]).reshape(len(values), -1)
        places.append(where)
        found.append(jnp.take_along_axis(flat, jnp.minimum(where, flat.shape[1] - 1)[:, None], 1)[:, 0])
    return jnp.stack(places, 1), jnp.stack(found, 1)


def _show(value: np.ndarray | np.floating) -> str:
    if value.ndim == 0:
        return f"{value:g}"
    return "[" + " ".join(f"{entry:g}" for entry in value) + "]"
