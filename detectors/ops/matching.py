"""Assignment of anchors or proposals to ground truth by IoU, for one image."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from detectors.ops import boxes as box_ops
from detectors.structures import AnyArray


class Matches(NamedTuple):
    """What each box is matched with.  Boxes that are neither positive nor negative are ignored."""

    target: Int[Array, " n"]  # index of a ground-truth box; meaningless where not positive
    positive: Bool[Array, " n"]
    negative: Bool[Array, " n"]


def match(
    boxes: Float[AnyArray, "n 4"],
    usable: Bool[AnyArray, " n"],
    truth: Float[AnyArray, "m 4"],
    valid: Bool[AnyArray, " m"],
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality_iou: float | None = None,
    low_quality_keeps_best: bool = False,
) -> Matches:
    """Matches each box with the ground truth that it overlaps most (Faster R-CNN, Ren et al. 2015, section 3.1.2).

    Args:
      boxes: anchors or proposals, pixels.
      usable: boxes that take part.
      truth, valid: padded ground truth, pixels.
      positive_iou: a box is positive from this IoU on.
      negative_iou: a box is negative below this IoU.
      low_quality_iou: if given, each ground truth that is overlapped by at least this much also takes all boxes that
        overlap it most, ties included (the later ground truth wins, as in MMDetection).
      low_quality_keeps_best: a box taken in this way keeps the ground truth that it overlaps most itself (torchvision).
    """
    iou = jnp.where(valid[None] & usable[:, None], box_ops.pairwise_iou(boxes, truth), -1.0)
    best = iou.max(1)
    target = iou.argmax(1)
    positive = best >= positive_iou
    negative = best < negative_iou
    if low_quality_iou is not None:
        most = iou.max(0)
        taken = (iou == most) & (most >= low_quality_iou)
        if not low_quality_keeps_best:
            last = truth.shape[0] - 1 - taken[:, ::-1].argmax(1)
            target = jnp.where(taken.any(1), last, target)
        positive |= taken.any(1)
    return Matches(target, positive & usable, negative & ~positive & usable)
