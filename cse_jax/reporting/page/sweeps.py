"""A loss and its gradient while one thing about a prediction changes: a logit, or a box's shift, scale or aspect."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.spaces import BINARY_CLASS, BOX, MULTI_CLASS, Inputs, Space
from cse_jax.language.spaces.box import areas

IOUS = (1.0, 0.6, 0.3)  # of the boxes of positives
SIDES = {"pixels": 32.0, "strides": 4.0}  # of the square target of a box
_LOGITS = np.linspace(-8.0, 8.0, 161)
_LOG2 = np.linspace(-2.0, 2.0, 121)
_ITS_OWN = np.zeros(1)  # log2 of the scale of a box as large as its target
_OTHERS = (-4.0, 0.0)  # logits of the further classes, of sigmoids and in a softmax
_CLASSES = 3


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Predictions along a line.

    Attributes:
      panel: what is drawn in one figure has the same.
      name: tells it apart from the others of its panel; empty if it is the only one.
      axis: what changes, with its unit.
      x: how far.
      inputs: the variables of the space at ``x``.
    """

    panel: str
    name: str
    axis: str
    x: Float[np.ndarray, " p"]
    inputs: Callable[[Float[Array, " p"]], Inputs]

    @property
    def title(self) -> str:
        """Panel and name."""
        return f"{self.panel}, {self.name}" if self.name else self.panel


@dataclasses.dataclass(frozen=True)
class Area:
    """Predictions that differ in two things.

    Attributes:
      sweep: the points, row by row; the gradient is in what changes along a row.
      down: what changes from row to row, with its unit.
      y: how far, of each row.
    """

    sweep: Sweep
    down: str
    y: Float[np.ndarray, " r"]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A loss along a sweep.

    Attributes:
      value: above its lowest finite value.
      gradient: in what changes.
      optimum: where the loss is lowest; NaN if it is not finite anywhere.
      at_end: whether that is an end of the sweep, so that the optimum may lie beyond.
    """

    value: Float[np.ndarray, " p"]
    gradient: Float[np.ndarray, " p"]
    optimum: float
    at_end: bool

    @property
    def lowest(self) -> str:
        """Where the loss is lowest, in words."""
        if np.isnan(self.optimum):
            return "finite nowhere"
        beyond = (" or more" if self.optimum > 0.0 else " or less") if self.at_end else ""
        return f"{self.optimum:.2f}{beyond}"


def sweeps(space: Space, units: str) -> list[Sweep]:
    """The sweeps that show a loss of a space.

    Args:
      space: one of those that detectors train with; any other has none.
      units: unit of length of boxes.
    """
    if space == BOX:
        return _of_boxes(SIDES[units])
    if space in (BINARY_CLASS, MULTI_CLASS):
        return [_of_logit(space, iou) for iou in (*IOUS, None)]
    return []


@functools.lru_cache(maxsize=64)
def curves(loss: Expression, weight: float, units: str) -> tuple[Curve, ...]:
    """A weighted loss along all sweeps of its space; a page that is written again has them at once."""
    return tuple(curve(loss, weight, sweep) for sweep in sweeps(loss.space, units))


def area(space: Space, units: str) -> Area | None:
    """Positives by logit and IoU, or boxes by shift and scale; None of a space that detectors don't train with."""
    if space == BOX:
        y = np.linspace(-1.5, 1.5, 31)
        return Area(_of_boxes(SIDES[units], y)[0], "log2 of the scale", y)
    if space in (BINARY_CLASS, MULTI_CLASS):
        y = np.linspace(0.0, 1.0, 21)
        return Area(_of_logit(space, np.repeat(y, len(_LOGITS)), np.tile(_LOGITS, len(y))), "IoU", y)
    return None


@functools.lru_cache(maxsize=64)
def gradients(loss: Expression, weight: float, units: str) -> Float[np.ndarray, "r p"]:
    """The gradient of a weighted loss over the area of its space."""
    over = area(loss.space, units)
    assert over is not None
    return curve(loss, weight, over.sweep).gradient.reshape(len(over.y), -1)


def curve(loss: Expression, weight: float, sweep: Sweep) -> Curve:
    """A weighted loss and its gradient along a sweep."""

    def value(x: jax.Array) -> jax.Array:
        found = weight * loss.evaluate(sweep.inputs(x))
        return found.sum(-1) if loss.space.class_axis else found

    with float64():
        x = jnp.asarray(sweep.x)
        values, gradient = (np.asarray(a) for a in jax.jvp(value, (x,), (jnp.ones_like(x),)))
    if not np.isfinite(values).any():
        return Curve(np.full_like(values, np.nan), gradient, float("nan"), at_end=False)
    finite = np.where(np.isfinite(values), values, np.inf)
    lowest = int(np.argmin(finite))
    ends = finite[[0, -1]] <= finite[lowest] + 1e-9 * np.ptp(finite[np.isfinite(finite)])
    return Curve(values - finite[lowest], gradient, float(sweep.x[lowest]), bool(ends.any()))


def _of_logit(space: Space, iou: float | Float[np.ndarray, " p"] | None, x: Float[np.ndarray, " p"] = _LOGITS) -> Sweep:
    """The logit of the label of a positive with this IoU, of each point if there are many, or of a negative's class."""
    positive = iou is not None
    softmax = space == MULTI_CLASS
    label = np.zeros(_CLASSES)
    if positive or softmax:
        label[0 if positive else -1] = 1.0  # the last class of a softmax is the background
    quality = np.full((len(x), _CLASSES), 1.0 if iou is None else np.reshape(iou, (-1, 1)))

    def inputs(x: jax.Array) -> Inputs:
        others = jnp.full((len(x), _CLASSES - 1), _OTHERS[softmax], x.dtype)
        logits = jnp.concatenate([x[:, None], others], -1)
        labels, qualities = (jnp.broadcast_to(jnp.asarray(a), logits.shape) for a in (label, quality))
        if softmax:
            return {"X": logits, "Y": labels, "Z": qualities}
        return {"X": logits, "Q": labels * qualities, "PY": labels, "NY": 1.0 - labels}

    panel = "positive" if positive else "negative"
    axis = "logit of the label" if positive else "logit of a class that is not there"
    return Sweep(panel, f"IoU {iou:g}" if isinstance(iou, float) else "", axis, x, inputs)


def _of_boxes(side: float, scales: Float[np.ndarray, " r"] = _ITS_OWN) -> list[Sweep]:
    """A square target, and a box that is shifted, scaled or stretched against it.

    Args:
      side: of the target.
      scales: log2 of the scale of the box that is shifted, a row for each.
    """
    shifts = 121 if len(scales) == 1 else 61
    size = np.repeat(2.0**scales, shifts)

    def sweep(panel: str, axis: str, x: Float[np.ndarray, " p"], pose: Callable[[jax.Array], tuple]) -> Sweep:
        def inputs(x: jax.Array) -> Inputs:
            centre, width, height = pose(x)
            centres = jnp.stack([centre, jnp.zeros_like(x)], -1)
            halves = jnp.stack([width, height], -1) / 2
            return areas(
                jnp.concatenate([centres - halves, centres + halves], -1), jnp.full((len(x), 2), side, x.dtype)
            )

        return Sweep(panel, "", axis, x, inputs)

    return [
        sweep(
            "shift",
            "shift, in sides of the target",
            np.tile(np.linspace(-1.5, 1.5, shifts), len(scales)),
            lambda x: (x, size.astype(x.dtype), size.astype(x.dtype)),
        ),
        sweep("scale", "log2 of the scale", _LOG2, lambda x: (jnp.zeros_like(x), 2.0**x, 2.0**x)),
        sweep("aspect", "log2 of the width, the area unchanged", _LOG2, lambda x: (jnp.zeros_like(x), 2.0**x, 2.0**-x)),
    ]
