"""What overlap losses share: how two aligned boxes ``(x1, y1, x2, y2)`` lie to each other."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cse_jax.language.spaces.box import AREA_EPS


class Overlap(NamedTuple):
    """Areas of aligned box pairs; ``union`` and ``enclosure`` include ``AREA_EPS``."""

    intersection: Float[Array, "*b n"]
    union: Float[Array, "*b n"]
    enclosure: Float[Array, "*b n"]

    @property
    def iou(self) -> Float[Array, "*b n"]:
        return self.intersection / self.union


def sides(boxes: Float[Array, "*b n 4"]) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
    """Width and height; 0 where the corners are exchanged."""
    return _extent(boxes[..., :2], boxes[..., 2:])


def centre(boxes: Float[Array, "*b n 4"]) -> Float[Array, "*b n 2"]:
    """Centre points."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2.0


def enclosing_sides(
    a: Float[Array, "*b n 4"], b: Float[Array, "*b n 4"]
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
    """Width and height of the smallest box that holds both."""
    return _extent(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))


def overlap(a: Float[Array, "*b n 4"], b: Float[Array, "*b n 4"]) -> Overlap:
    """Intersection, union and smallest enclosing box of aligned pairs, in the square of the boxes' unit."""
    inner_w, inner_h = _extent(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    outer_w, outer_h = enclosing_sides(a, b)
    (a_w, a_h), (b_w, b_h) = sides(a), sides(b)
    intersection = inner_w * inner_h
    return Overlap(intersection, a_w * a_h + b_w * b_h - intersection + AREA_EPS, outer_w * outer_h + AREA_EPS)


def _extent(
    low: Float[Array, "*b n 2"], high: Float[Array, "*b n 2"]
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
    extent = jnp.maximum(high - low, 0.0)
    return extent[..., 0], extent[..., 1]
