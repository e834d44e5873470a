"""Non-maximum suppression with static shapes, exactly equal to the greedy algorithm, for one image."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from detectors.ops import boxes as box_ops
from detectors.structures import AnyArray, Detections


def nms(
    boxes: Float[AnyArray, "n 4"],
    scores: Float[AnyArray, " n"],
    valid: Bool[AnyArray, " n"],
    *,
    iou_threshold: float,
    group: Int[AnyArray, " n"] | None = None,
) -> Bool[Array, " n"]:
    """The boxes that greedy suppression keeps: it takes the best score first and drops boxes that overlap it.

    The greedy result is the only fixed point of ``keep = valid and not suppressed by a kept, better box``.  Each
    iteration from ``valid`` settles at least one more box; in practice a handful settle all of them.

    Args:
      boxes: in any unit.
      scores: equal scores are taken in input order.
      valid: boxes that take part.
      iou_threshold: a box is dropped if its IoU with a kept, better one is above it.
      group: if given, boxes suppress only boxes of their own group.

    Returns:
      The kept boxes, in input order.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    sorted_boxes, sorted_valid = boxes[order], valid[order]
    overlapping = box_ops.pairwise_iou(sorted_boxes, sorted_boxes) > iou_threshold
    if group is not None:
        overlapping &= group[order][:, None] == group[order][None]
    suppresses = jnp.triu(overlapping, k=1)

    def settle(state):
        keep, _ = state
        now = sorted_valid & ~(suppresses & keep[:, None]).any(0)
        return now, (now != keep).any()

    keep, _ = lax.while_loop(lambda state: state[1], settle, (sorted_valid, jnp.asarray(True)))
    return jnp.zeros_like(keep).at[order].set(keep)


def select_detections(
    boxes: Float[AnyArray, "n 4"] | Float[AnyArray, "n c 4"],
    scores: Float[AnyArray, "n c"],
    valid: Bool[AnyArray, " n"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_candidates: int,
    max_detections: int,
) -> tuple[Detections, Int[Array, ""]]:
    """The final detections of an image: the best (box, class) pairs, suppressed class by class.

    Args:
      boxes: one per row, or one per row and class, pixels.
      scores: class scores.
      valid: rows that take part.
      score_threshold: pairs must score above it.
      iou_threshold: for suppression within a class.
      max_candidates: pairs that enter suppression, at least ``max_detections``; the best ones if there are more.
      max_detections: length of the result.

    Returns:
      The detections, and how many pairs above the threshold did not fit into ``max_candidates``.
    """
    n, c = scores.shape
    eligible = (scores > score_threshold) & valid[:, None]
    flat = jnp.where(eligible, scores, -jnp.inf).reshape(-1)
    count = min(max(max_candidates, max_detections), n * c)
    best, index = lax.top_k(flat, count)
    row, label = index // c, index % c
    chosen = boxes[row] if boxes.ndim == 2 else boxes[row, label]
    usable = jnp.isfinite(best)
    keep = nms(chosen, best, usable, iou_threshold=iou_threshold, group=label)
    final, position = lax.top_k(jnp.where(keep, best, -jnp.inf), min(max_detections, count))
    padding = max_detections - final.shape[0]
    kept = jnp.isfinite(final)
    detections = Detections(
        boxes=jnp.where(kept[:, None], chosen[position], 0.0),
        scores=jnp.where(kept, final, 0.0),
        labels=jnp.where(kept, label[position], 0),
        valid=kept,
    )
    detections = jax.tree.map(lambda a: jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)), detections)
    return detections, jnp.maximum(eligible.sum() - count, 0)
