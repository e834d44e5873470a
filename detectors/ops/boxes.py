"""Boxes as ``(x1, y1, x2, y2)``: areas, overlaps, and the encodings that heads regress.

All functions broadcast.  Boxes may be in any unit; where a function takes two arrays, both have the same.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from cse_jax.ranges import PositiveAmount
from detectors.structures import AnyArray

BoxStds = tuple[PositiveAmount, PositiveAmount, PositiveAmount, PositiveAmount]  # of the offsets that heads regress

MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def area(boxes: Float[AnyArray, "*n 4"]) -> Float[Array, "*n"]:
    """Areas in the square of the boxes' unit; 0 for boxes whose sides are not positive."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), axis=-1)


def overlap(
    a: Float[AnyArray, "*#n 4"], b: Float[AnyArray, "*#n 4"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """Areas of intersection, union and smallest enclosing box, in the square of the boxes' unit."""
    inner = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    outer = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    intersection = jnp.prod(jnp.maximum(inner, 0.0), axis=-1)
    return intersection, area(a) + area(b) - intersection, jnp.prod(outer, axis=-1)


def iou(a: Float[AnyArray, "*#n 4"], b: Float[AnyArray, "*#n 4"]) -> Float[Array, "*n"]:
    """Intersection over union; 0 where both boxes are empty."""
    intersection, union, _ = overlap(a, b)
    return jnp.where(union > 0.0, intersection / jnp.where(union > 0.0, union, 1.0), 0.0)


def pairwise_iou(a: Float[AnyArray, "n 4"], b: Float[AnyArray, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of every pair."""
    return iou(a[:, None], b[None])


def clip(boxes: Float[AnyArray, "*n 4"], image_size: Float[AnyArray, " 2"]) -> Float[Array, "*n 4"]:
    """Boxes clipped to the image.

    Args:
      boxes: boxes in pixels.
      image_size: (height, width) in pixels.
    """
    limit = jnp.stack([image_size[1], image_size[0], image_size[1], image_size[0]])
    return jnp.clip(boxes, 0.0, limit)


def encode_ltrb(points: Float[AnyArray, "*#n 2"], boxes: Float[AnyArray, "*#n 4"]) -> Float[Array, "*n 4"]:
    """Distances from points (x, y) to the left, top, right and bottom edges; negative outside (FCOS, equation 1)."""
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def decode_ltrb(points: Float[AnyArray, "*#n 2"], distances: Float[AnyArray, "*#n 4"]) -> Float[Array, "*n 4"]:
    """Boxes from points (x, y) and distances to their edges."""
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], axis=-1)


def _centre_size(boxes: Float[AnyArray, "*n 4"]) -> tuple[Float[AnyArray, "*n 2"], Float[AnyArray, "*n 2"]]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2.0, boxes[..., 2:] - boxes[..., :2]


def encode_deltas(
    anchors: Float[AnyArray, "*#n 4"], boxes: Float[AnyArray, "*#n 4"], stds: tuple[float, ...]
) -> Float[Array, "*n 4"]:
    """Offsets (dx, dy, dw, dh) from anchors to boxes, divided by ``stds`` (Faster R-CNN, Ren et al. 2015).

    Sides below 1e-6 are read as 1e-6, so padding gives finite offsets.
    """
    anchor_centre, anchor_size = _centre_size(anchors)
    centre, size = _centre_size(boxes)
    anchor_size, size = jnp.maximum(anchor_size, 1e-6), jnp.maximum(size, 1e-6)
    shift = (centre - anchor_centre) / anchor_size
    return jnp.concatenate([shift, jnp.log(size / anchor_size)], axis=-1) / jnp.asarray(stds, boxes.dtype)


def decode_deltas(
    anchors: Float[AnyArray, "*#n 4"], deltas: Float[AnyArray, "*#n 4"], stds: tuple[float, ...]
) -> Float[Array, "*n 4"]:
    """Boxes from anchors and offsets, the inverse of ``encode_deltas``; |dw| and |dh| are clamped at log(1000/16)."""
    anchor_centre, anchor_size = _centre_size(anchors)
    deltas = deltas * jnp.asarray(stds, deltas.dtype)
    centre = anchor_centre + deltas[..., :2] * anchor_size
    size = anchor_size * jnp.exp(jnp.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return jnp.concatenate([centre - size / 2.0, centre + size / 2.0], axis=-1)
