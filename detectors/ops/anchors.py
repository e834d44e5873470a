"""Anchor boxes of a pyramid (Faster R-CNN, Ren et al. 2015), centred on multiples of each level's stride."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from detectors.ops.padding import own_side
from detectors.structures import AnyArray


class Anchors(NamedTuple):
    """All anchors, level after level; within a level row by row, and the anchors of a cell one after the other.

    Arrays of JAX are computed in the program that uses them: as constants of a program, the 268,000 anchors of an image
    of 800 x 1344 pixels would be 16 MB of text.
    """

    boxes: Float[Array, "n 4"]  # pixels; may reach out of the image
    centre: Float[Array, "n 2"]  # (x, y), pixels
    stride: Float[Array, " n"]  # of the level, pixels
    level: Int[np.ndarray, " n"]


def level_grid(image_shape: tuple[int, int], stride: int) -> Float[Array, "cells 2"]:
    """The cells of a level, row by row: (x, y) of their upper left corners, pixels.

    Args:
      image_shape: (height, width) of the padded image, pixels.
      stride: of the level, pixels.
    """
    cells = [-(-side // stride) for side in image_shape]
    y, x = (jax.lax.broadcasted_iota(jnp.float32, cells, axis) * stride for axis in (0, 1))
    return jnp.stack([x, y], -1).reshape(-1, 2)


def fitting_shift(
    xy: Float[AnyArray, "n 2"], stride: Float[AnyArray, " n"], image_size: Float[AnyArray, " 2"]
) -> Float[Array, "n 2"]:
    """How far torchvision's cells are from those of ``level_grid``, pixels.

    They are image side // cells apart instead of a stride, which differs where the stride does not divide the side.

    Args:
      xy: a point in each cell, pixels.
      stride: of the cell's level, pixels.
      image_size: (height, width) inside the padding, pixels.
    """
    side, step = own_side(image_size)[::-1], jnp.asarray(stride)[:, None]
    return (side // jnp.ceil(side / step) - step) * (xy // step)


def pyramid_anchors(
    image_shape: tuple[int, int],
    strides: tuple[int, ...],
    *,
    scale: float,
    ratios: tuple[float, ...],
    whole_pixels: bool = False,
) -> Anchors:
    """Anchors of side ``scale * stride``, one per ratio (height over width) at every cell of every level.

    Args:
      image_shape: (height, width) of the padded image, pixels.
      strides: of the levels, pixels.
      scale: side over stride.
      ratios: height over width, at constant area.
      whole_pixels: round the distances from the centre to the edges (torchvision).
    """
    root = np.sqrt(np.asarray(ratios))
    boxes, centres, steps, levels = [], [], [], []
    for level, stride in enumerate(strides):
        half = 0.5 * scale * stride * np.stack([1.0 / root, root], axis=-1)
        shapes = np.concatenate([-half, half], axis=-1)
        shapes = (np.round(shapes) if whole_pixels else shapes).astype(np.float32)
        centre = level_grid(image_shape, stride)[:, None]
        boxes.append((shapes + jnp.tile(centre, 2)).reshape(-1, 4))
        centres.append(jnp.broadcast_to(centre, (len(centre), len(ratios), 2)).reshape(-1, 2))
        steps.append(jnp.full(len(boxes[-1]), stride, jnp.float32))
        levels.append(np.full(len(boxes[-1]), level, np.int32))
    boxes, centres, steps = map(jnp.concatenate, (boxes, centres, steps))
    return Anchors(boxes, centres, steps, np.concatenate(levels))
