"""Box regression losses.

Shapes: ``b`` batch axes (any number, also none), ``n`` boxes.  Coordinate losses (L1 and kin) read encoded offsets and
give one value per coordinate; overlap losses read boxes ``(x1, y1, x2, y2)`` in pixels and give one per box.  ``mask``
and ``weights`` have one entry per box: a masked row gives 0, and no gradient whatever it holds.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cse_jax.language.spaces.box import AREA_EPS
from cse_jax.losses._boxes import centre, enclosing_sides, overlap, sides
from cse_jax.losses._masking import hide, settle


def _smooth_l1(difference: jax.Array, beta: float) -> jax.Array:
    inner = jnp.minimum(difference, beta)
    return 0.5 * inner * inner / beta + (difference - inner)


def l1_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n 4"]:
    """Absolute difference.

    Args:
      predictions: encoded offsets.
      targets: encoded offsets.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``|d|`` per coordinate.
    """
    predictions, targets = hide(mask, predictions, targets)
    return settle(jnp.abs(predictions - targets), mask, weights)


def smooth_l1_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    beta: float = 1.0,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n 4"]:
    """Smooth L1 (Girshick, Fast R-CNN, ICCV 2015, equation 3).

    Args:
      predictions: encoded offsets.
      targets: encoded offsets.
      beta: difference at which the parabola ends, above 0.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``d^2 / (2 beta)`` below ``beta``, ``|d| - beta/2`` above, per coordinate.
    """
    predictions, targets = hide(mask, predictions, targets)
    return settle(_smooth_l1(jnp.abs(predictions - targets), beta), mask, weights)


def balanced_l1_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    alpha: float = 0.5,
    gamma: float = 1.5,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n 4"]:
    """Balanced L1 (Pang et al., Libra R-CNN, CVPR 2019, equations 8 to 10).

    Args:
      predictions: encoded offsets.
      targets: encoded offsets.
      alpha: the smaller, the larger the gradient of accurate coordinates; above 0.
      gamma: largest gradient, reached at a difference of 1; above 0.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``alpha/b (b|d| + 1) ln(b|d| + 1) - alpha |d|`` below 1, ``gamma |d| + C`` above, per coordinate, with
      ``alpha ln(b + 1) = gamma`` and C such that it is continuous.
    """
    predictions, targets = hide(mask, predictions, targets)
    difference = jnp.abs(predictions - targets)
    b = math.expm1(gamma / alpha)
    inner = jnp.minimum(difference, 1.0)
    curve = alpha / b * (b * inner + 1.0) * jnp.log1p(b * inner) - alpha * inner
    return settle(curve + gamma * (difference - inner), mask, weights)


def iou_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Linear IoU loss; flat for disjoint boxes.

    Args:
      predictions: boxes in pixels.
      targets: boxes in pixels.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``1 - IoU`` per box.
    """
    predictions, targets = hide(mask, predictions, targets)
    return settle(1.0 - overlap(predictions, targets).iou, mask, weights)


def log_iou_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    eps: float = 1e-6,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Logarithmic IoU loss (Yu et al., UnitBox, ACM MM 2016); flat for disjoint boxes.

    Args:
      predictions: boxes in pixels.
      targets: boxes in pixels.
      eps: an IoU below counts as this (MMDetection).
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``-ln IoU`` per box.
    """
    predictions, targets = hide(mask, predictions, targets)
    return settle(-jnp.log(jnp.maximum(overlap(predictions, targets).iou, eps)), mask, weights)


def bounded_iou_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    beta: float = 0.2,
    eps: float = 1e-3,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n 4"]:
    """Bounded IoU loss (Tychsen-Smith and Petersson, Fitness NMS, CVPR 2018).

    For each of centre x, centre y, width and height: the highest IoU that a box with this error can still reach.

    Args:
      predictions: boxes in pixels.
      targets: boxes in pixels.
      beta: difference from 1 at which the parabola of smooth L1 ends, above 0.
      eps: added to sides that divide, in pixels (MMDetection).
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``smooth L1(1 - bound)`` for (x, y, w, h); the loss of a box is their sum.
    """
    predictions, targets = hide(mask, predictions, targets)
    size = jnp.stack(sides(predictions), axis=-1)
    target_size = jnp.stack(sides(targets), axis=-1)
    shift = 2.0 * jnp.abs(centre(targets) - centre(predictions))
    place = jnp.maximum((target_size - shift) / (target_size + shift + eps), 0.0)
    scale = jnp.minimum(target_size / (size + eps), size / (target_size + eps))
    return settle(_smooth_l1(1.0 - jnp.concatenate([place, scale], axis=-1), beta), mask, weights)


def giou_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Generalised IoU loss (Rezatofighi et al., CVPR 2019, algorithm 2).

    Args:
      predictions: boxes in pixels.
      targets: boxes in pixels.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``1 - i/u + (e - u)/e`` per box, from 0 to 2.
    """
    predictions, targets = hide(mask, predictions, targets)
    areas = overlap(predictions, targets)
    return settle(1.0 - areas.iou + (areas.enclosure - areas.union) / areas.enclosure, mask, weights)


def _distance_penalty(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared distance of the centres over the squared diagonal of the enclosing box."""
    width, height = enclosing_sides(predictions, targets)
    distance = jnp.sum(jnp.square(centre(predictions) - centre(targets)), axis=-1)
    return distance / (width * width + height * height + AREA_EPS)


def diou_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Distance IoU loss (Zheng et al., AAAI 2020, equation 7).

    Args:
      predictions: boxes in pixels.
      targets: boxes in pixels.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``1 - IoU + rho^2 / c^2`` per box: distance of the centres over the diagonal of the enclosing box.
    """
    predictions, targets = hide(mask, predictions, targets)
    loss = 1.0 - overlap(predictions, targets).iou + _distance_penalty(predictions, targets)
    return settle(loss, mask, weights)


def ciou_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    min_iou: float = 0.5,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Complete IoU loss (Zheng et al., AAAI 2020, equations 8 to 11; trade-off of the 2021 journal version).

    No gradient flows through the trade-off ``alpha = v / (1 - IoU + v)``, as in the authors' code.

    Args:
      predictions: boxes in pixels.
      targets: boxes in pixels.
      min_iou: the aspect ratio counts above this IoU only (journal version, MMDetection); -1 for the AAAI version.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``1 - IoU + rho^2 / c^2 + alpha v`` per box, v being the squared difference of the aspects' angles.
    """
    predictions, targets = hide(mask, predictions, targets)
    iou = overlap(predictions, targets).iou
    width, height = sides(predictions)
    target_width, target_height = sides(targets)
    angle = jnp.arctan(target_width / (target_height + AREA_EPS)) - jnp.arctan(width / (height + AREA_EPS))
    aspect = 4.0 / math.pi**2 * angle * angle
    trade_off = jnp.where(iou > min_iou, aspect / (1.0 - iou + aspect + AREA_EPS), 0.0)
    loss = 1.0 - iou + _distance_penalty(predictions, targets) + jax.lax.stop_gradient(trade_off) * aspect
    return settle(loss, mask, weights)


def cse_autoloss_a_reg(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Regression branch of CSE-AutoLoss-A, searched on Faster R-CNN (Liu et al., ICLR 2021).

    It has areas beside numbers, so it depends on the unit, and is negative at perfect overlap.

    Args:
      predictions: boxes in pixels.
      targets: boxes in pixels.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``(1 - i/u) + (1 - (i + 2)/e)`` per box.
    """
    predictions, targets = hide(mask, predictions, targets)
    i, u, e = overlap(predictions, targets)
    return settle(1.0 - i / u + (e - i - 2.0) / e, mask, weights)


def cse_autoloss_b_reg(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Regression branch of CSE-AutoLoss-B, searched on FCOS (Liu et al., ICLR 2021).

    It has areas beside numbers, so it depends on the unit, and is negative.

    Args:
      predictions: boxes in the unit of training: strides for FCOS with normalised targets, else pixels.
      targets: boxes in the same unit.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``(3eu + 12e + 3i + 3u + 18) / ((u + 5)(u + i - 3e))`` per box.
    """
    predictions, targets = hide(mask, predictions, targets)
    i, u, e = overlap(predictions, targets)
    return settle((3.0 * e * u + 12.0 * e + 3.0 * i + 3.0 * u + 18.0) / (u + 5.0) / (u + i - 3.0 * e), mask, weights)
