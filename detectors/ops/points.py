"""FCOS's points and the assignment of ground truth to them, for one image (Tian et al. 2019)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cse_jax.errors import InputError
from detectors.ops import boxes as box_ops
from detectors.ops.anchors import level_grid
from detectors.structures import AnyArray


class Points(NamedTuple):
    """All points of a pyramid, level after level."""

    xy: Float[AnyArray, "*b n 2"]  # pixels; of each image where they differ
    stride: Float[Array, " n"]  # pixels
    regress_range: Float[Array, "n 2"]  # lengths of the longest target distance that the level takes, pixels
    level: Int[np.ndarray, " n"]


class PointTargets(NamedTuple):
    """What each point is to predict."""

    positive: Bool[Array, " n"]
    labels: Int[Array, " n"]  # category; meaningless where not positive
    boxes: Float[Array, "n 4"]  # pixels; where not positive, a box around the point (FCOS) or the anchor (ATSS)


def pyramid_points(
    image_shape: tuple[int, int],
    strides: tuple[int, ...],
    limits: tuple[float, ...],
    *,
    offset: float = 0.5,
) -> Points:
    """Points at ``stride * x + offset * stride`` on every level.

    Args:
      image_shape: (height, width) of the padded image, a multiple of the largest stride, pixels.
      strides: of the levels.
      limits: boundaries of the regress ranges between the levels, one fewer than strides, pixels.
      offset: of the points in their cells, strides; torchvision's is 0.

    Raises:
      InputError: the numbers of limits and strides do not fit.
    """
    if len(limits) != len(strides) - 1:
        raise InputError(f"{len(strides)} levels need {len(strides) - 1} range limits, not {len(limits)}: {limits}")
    edges = np.array((-1.0, *limits, np.inf), np.float32)
    xy, stride, ranges, levels = [], [], [], []
    for level, step in enumerate(strides):
        corners = level_grid(image_shape, step)
        xy.append(corners + offset * step)
        stride.append(jnp.full(len(corners), step, jnp.float32))
        ranges.append(jnp.broadcast_to(edges[level : level + 2], (len(corners), 2)))
        levels.append(np.full(len(corners), level, np.int32))
    xy, stride, ranges = map(jnp.concatenate, (xy, stride, ranges))
    return Points(xy, stride, ranges, np.concatenate(levels))


def assign_points(
    points: Points,
    boxes: Float[AnyArray, "m 4"],
    labels: Int[AnyArray, " m"],
    valid: Bool[AnyArray, " m"],
    inside_image: Bool[AnyArray, " n"],
    *,
    radius: float,
    open_ranges: bool = False,
) -> PointTargets:
    """Centre sampling: each point gets the smallest box whose centre region holds it and whose size fits its level.

    Args:
      points: of the pyramid.
      boxes, labels, valid: padded ground truth; boxes in pixels.
      inside_image: points that are not in the padding.
      radius: half side of the centre region, in strides; the region is cut to the box.
      open_ranges: a box whose length equals a limit between two levels fits neither (torchvision), not both.
    """
    xy = points.xy[:, None]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2.0
    reach = radius * points.stride[:, None, None]
    start, end = jnp.maximum(centre - reach, boxes[:, :2]), jnp.minimum(centre + reach, boxes[:, 2:])
    in_centre = jnp.concatenate([xy - start, end - xy], axis=-1).min(-1) > 0.0
    longest = box_ops.encode_ltrb(xy, boxes[None]).max(-1)
    low, high = points.regress_range[:, :1], points.regress_range[:, 1:]
    fits = (longest > low) & (longest < high) if open_ranges else (longest >= low) & (longest <= high)
    area = box_ops.area(boxes)
    candidate = in_centre & fits & (valid & (area > 0.0)) & inside_image[:, None]
    chosen = jnp.where(candidate, area, jnp.inf).argmin(-1)
    positive = candidate.any(-1)
    half = points.stride[:, None] / 2.0
    around = jnp.concatenate([points.xy - half, points.xy + half], axis=-1)
    return PointTargets(positive, labels[chosen], jnp.where(positive[:, None], boxes[chosen], around))
