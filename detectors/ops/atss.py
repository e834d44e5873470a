"""Adaptive training sample selection, for one image (Zhang et al. 2020, algorithm 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from detectors.ops import boxes as box_ops
from detectors.ops.anchors import Anchors
from detectors.ops.points import PointTargets
from detectors.structures import AnyArray

_INSIDE = 0.01  # pixels from the edges within which a centre does not count as inside


def assign_adaptively(
    anchors: Anchors,
    boxes: Float[AnyArray, "m 4"],
    labels: Int[AnyArray, " m"],
    valid: Bool[AnyArray, " m"],
    inside_image: Bool[AnyArray, " n"],
    *,
    candidates: int,
) -> PointTargets:
    """Assigns to each ground truth the nearest anchors whose IoU is at least the mean plus the standard deviation.

    Mean and deviation are over the ``candidates`` nearest anchors of every level.  An anchor's centre must lie in the
    box.  An anchor that several boxes want takes the one that it overlaps most.

    Args:
      anchors: of the pyramid, one at each cell.
      boxes, labels, valid: padded ground truth; boxes in pixels.
      inside_image: anchors that are not in the padding.
      candidates: how many of the nearest anchors of each level are candidates, by the distance of the centres.
    """
    usable = valid & (box_ops.area(boxes) > 0.0)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2.0
    distance = jnp.linalg.norm(anchors.centre[:, None] - centre, axis=-1)
    distance = jnp.where(inside_image[:, None], distance, jnp.inf)
    near = jnp.concatenate(
        [_nearest(distance[start:stop], candidates) for start, stop in _levels(anchors)]
    ) & jnp.isfinite(distance)

    iou = box_ops.pairwise_iou(anchors.boxes, boxes)
    count = jnp.maximum(near.sum(0), 1)
    mean = jnp.where(near, iou, 0.0).sum(0) / count
    variance = jnp.where(near, (iou - mean) ** 2, 0.0).sum(0) / jnp.maximum(count - 1, 1)
    in_box = box_ops.encode_ltrb(anchors.centre[:, None], boxes[None]).min(-1) > _INSIDE
    positive = near & (iou >= mean + jnp.sqrt(variance)) & in_box & usable
    chosen = jnp.where(positive, iou, -1.0).argmax(1)
    taken = positive.any(1)
    return PointTargets(taken, labels[chosen], jnp.where(taken[:, None], boxes[chosen], anchors.boxes))


def _levels(anchors: Anchors) -> list[tuple[int, int]]:
    """Where each level starts and stops."""
    edges = [*(anchors.level.searchsorted(range(int(anchors.level[-1]) + 1))).tolist(), len(anchors.level)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _nearest(distance: Float[Array, "l m"], count: int) -> Bool[Array, "l m"]:
    """Marks the rows of the smallest distances of each column; of equal ones the first."""
    _, rows = jax.lax.top_k(-distance.T, min(count, len(distance)))
    return jnp.zeros(distance.shape, bool).at[rows.T, jnp.arange(distance.shape[1])].set(True)
