"""The grid on which convergence is verified: paths along which a prediction gets steadily worse.

A loss converges if, along every path, it rises from the good prediction to the bad one; for classification its slope
must also vanish at the good end (CSE-AutoLoss, ICLR 2021: convergence property verification).  Paths stay within
|logit| <= 12 and are evaluated in float64, so that a vanishing slope is never underflow.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from cse_jax.spaces import Space

LOGITS = np.linspace(12.0, -12.0, 25)
PIXEL_SIDES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
STRIDE_SIDES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_STEPS = np.linspace(0.0, 1.0, 13)
_RIGHT = 1e-7  # tangents are taken from the right: areas have kinks where edges meet, perfect overlap among them


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectories:
    """Paths for one space; ``t`` paths of ``p`` points with ``c`` classes (no class axis in the box space).

    Attributes:
      names: what moves on each path, for messages.
      inputs: the variables along each path, in the order of ``space.variables``.
      tangents: derivative of each variable along the path.
      gated: paths that must rise; the others need only be finite (soft labels, whose optimum may lie inside).
      vanishing: paths whose slope must vanish at their start.
    """

    names: tuple[str, ...]
    inputs: Float[np.ndarray, "v t p *c"]
    tangents: Float[np.ndarray, "v t p *c"]
    gated: Bool[np.ndarray, " t"]
    vanishing: Bool[np.ndarray, " t"]


@functools.cache
def trajectories(space: Space, units: str = "pixels") -> Trajectories:
    """The verification paths of a space.

    Args:
      space: one of ``cse_jax.spaces``.
      units: for boxes, ``"pixels"`` (sides 1 to 128) or ``"strides"`` (sides 0.25 to 16); what the detector feeds.
    """
    if units not in ("pixels", "strides"):
        raise ValueError(f"units is {units!r}; use 'pixels' or 'strides'")
    if space.name == "box":
        return _boxes(PIXEL_SIDES if units == "pixels" else STRIDE_SIDES)
    if space.name == "multi_class":
        return _collect(_multi_class_paths())
    if space.name == "binary_class":
        return _collect(_binary_class_paths())
    raise ValueError(f"no verification paths are known for space {space.name!r}")


def _collect(paths: list[tuple[str, np.ndarray, np.ndarray, bool]]) -> Trajectories:
    names, inputs, tangents, gated = zip(*paths, strict=True)
    gated = np.asarray(gated)
    return Trajectories(names, np.stack(inputs, 1), np.stack(tangents, 1), gated, gated)


_OTHERS = ((0.0, 0.0, 0.0), (1.0, -2.0, 0.5), (-4.0, -3.0, -5.0), (3.0, -1.0, 2.0))


def _sweep(others: tuple[float, ...], moving: int, worse_when_rising: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits and tangent [p, c] with class ``moving`` swept from its good end to its bad one, the others fixed."""
    values = -LOGITS if worse_when_rising else LOGITS
    logits = np.tile(np.insert(np.asarray(others), moving, 0.0), (len(values), 1))
    tangent = np.zeros_like(logits)
    logits[:, moving] = values
    tangent[:, moving] = 1.0 if worse_when_rising else -1.0
    return logits, tangent


def _multi_class_paths() -> list[tuple[str, np.ndarray, np.ndarray, bool]]:
    paths = []
    classes, background = 4, 3
    for label in (0, background):
        kind = "background" if label == background else "foreground"
        for others in _OTHERS:
            for moving, iou in [(label, 1.0), (1, 1.0)] + [(label, w) for w in (0.2, 0.6) if label != background]:
                logits, tangent = _sweep(others, moving, worse_when_rising=moving != label)
                labels = np.broadcast_to(np.eye(classes)[label], logits.shape)
                inputs = np.stack([logits, labels, np.full_like(logits, iou)])
                tangents = np.stack([tangent, np.zeros_like(tangent), np.zeros_like(tangent)])
                what = "the label's logit falls" if moving == label else "another class's logit rises"
                paths.append((f"{what} ({kind} row, w={iou:g})", inputs, tangents, iou == 1.0))
    return paths


def _binary_class_paths() -> list[tuple[str, np.ndarray, np.ndarray, bool]]:
    paths = []
    for label in (0, None):
        kind = "background" if label is None else "foreground"
        for others in _OTHERS:
            for moving, iou in [(1, 1.0)] + [(0, w) for w in (1.0, 0.2, 0.6) if label is not None]:
                logits, tangent = _sweep(others, moving, worse_when_rising=moving != label)
                positive = np.zeros_like(logits)
                if label is not None:
                    positive[:, label] = 1.0
                inputs = np.stack([logits, iou * positive, positive, 1.0 - positive])
                tangents = np.stack([tangent] + [np.zeros_like(tangent)] * 3)
                what = "the label's logit falls" if moving == label else "another class's logit rises"
                paths.append((f"{what} ({kind} row, q={iou:g})", inputs, tangents, iou == 1.0))
    return paths


_BoxPath = Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array, jax.Array]]

# Centre offset and scale of the predicted box, in units of the target's sides, as the path parameter goes from 0 to 1.
_BOX_PATHS: dict[str, _BoxPath] = {
    "the box shifts right": lambda s: (3.0 * s, 0.0, 1.0, 1.0),
    "the box shifts down": lambda s: (0.0, 3.0 * s, 1.0, 1.0),
    "the box shifts along the diagonal": lambda s: (2.5 * s, 2.5 * s, 1.0, 1.0),
    "the box grows": lambda s: (0.0, 0.0, 1.0 + 3.0 * s, 1.0 + 3.0 * s),
    "the box shrinks": lambda s: (0.0, 0.0, 1.0 - 0.95 * s, 1.0 - 0.95 * s),
    "the box gets wide and low": lambda s: (0.0, 0.0, 1.0 + 3.0 * s, 1.0 / (1.0 + 3.0 * s)),
    "the box gets narrow and high": lambda s: (0.0, 0.0, 1.0 / (1.0 + 3.0 * s), 1.0 + 3.0 * s),
}


def _boxes(sides: tuple[float, ...]) -> Trajectories:
    def areas(path: _BoxPath, width: float, height: float, s: jax.Array) -> jax.Array:
        """Intersection, union and enclosure areas along a path, in the order of the box space's variables."""
        dx, dy, scale_x, scale_y = path(s)
        spans = []
        for centre, length, target in ((dx * width, scale_x * width, width), (dy * height, scale_y * height, height)):
            low, high = centre - length / 2, centre + length / 2
            inner = jnp.maximum(jnp.minimum(high, target / 2) - jnp.maximum(low, -target / 2), 0.0)
            outer = jnp.maximum(high, target / 2) - jnp.minimum(low, -target / 2)
            spans.append((inner, outer))
        intersection = spans[0][0] * spans[1][0]
        union = scale_x * width * scale_y * height + width * height - intersection
        return jnp.stack([intersection, union + 1e-7, spans[0][1] * spans[1][1] + 1e-7])

    widths = [side if k % 2 else side * 1.25 for k, side in enumerate(sides)]
    heights = [side if k % 2 else side * 0.8 for k, side in enumerate(sides)]
    names, inputs, tangents = [], [], []
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        for name, path in _BOX_PATHS.items():
            along = functools.partial(areas, path)
            for fn, steps, results in ((along, _STEPS, inputs), (jax.jacfwd(along, 2), _STEPS + _RIGHT, tangents)):
                over_steps = jax.vmap(fn, (None, None, 0), 1)
                results.append(
                    np.asarray(jax.vmap(over_steps, (0, 0, None), 1)(np.array(widths), np.array(heights), steps))
                )
            names += [f"{name} (target {w:g} x {h:g})" for w, h in zip(widths, heights, strict=True)]
    gated = np.ones(len(names), bool)
    return Trajectories(tuple(names), np.concatenate(inputs, 1), np.concatenate(tangents, 1), gated, ~gated)
