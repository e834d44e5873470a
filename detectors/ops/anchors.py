"""Anchor boxes of a pyramid (Faster R-CNN, Ren et al. 2015), centred on multiples of each level's stride."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Anchors(NamedTuple):
    """All anchors, level after level; within a level row by row, and the anchors of a cell one after the other."""

    boxes: Float[np.ndarray, "n 4"]  # pixels; may reach out of the image
    centre: Float[np.ndarray, "n 2"]  # (x, y), pixels
    level: Int[np.ndarray, " n"]


def level_grid(
    image_shape: tuple[int, int], stride: int, *, fit_image: bool = False
) -> tuple[Float[np.ndarray, "r c 2"], tuple[int, int]]:
    """The cells of a level: (x, y) of their upper left corners, in pixels, and the numbers of rows and columns.

    Args:
      image_shape: (height, width) of the padded image, pixels.
      stride: of the level, pixels.
      fit_image: cells are image side // cells apart instead of a stride (torchvision).  This differs where the stride
        does not divide the side.
    """
    height, width = image_shape
    rows, columns = -(-height // stride), -(-width // stride)
    row_step, column_step = (height // rows, width // columns) if fit_image else (stride, stride)
    y, x = np.meshgrid(np.arange(rows) * row_step, np.arange(columns) * column_step, indexing="ij")
    return np.stack([x, y], -1).astype(np.float64), (rows, columns)


def pyramid_anchors(
    image_shape: tuple[int, int],
    strides: tuple[int, ...],
    *,
    scale: float,
    ratios: tuple[float, ...],
    whole_pixels: bool = False,
    fit_image: bool = False,
) -> Anchors:
    """Anchors of side ``scale * stride``, one per ratio (height over width) at every cell of every level.

    Args:
      image_shape: (height, width) of the padded image, pixels.
      strides: of the levels, pixels.
      scale: side over stride.
      ratios: height over width, at constant area.
      whole_pixels: round the distances from the centre to the edges (torchvision).
      fit_image: as in ``level_grid``.
    """
    root = np.sqrt(np.asarray(ratios))
    boxes, centres, levels = [], [], []
    for level, stride in enumerate(strides):
        half = 0.5 * scale * stride * np.stack([1.0 / root, root], axis=-1)
        shapes = np.concatenate([-half, half], axis=-1)
        shapes = np.round(shapes) if whole_pixels else shapes
        centre = level_grid(image_shape, stride, fit_image=fit_image)[0].reshape(-1, 1, 2)
        placed = shapes + np.tile(centre, 2)
        boxes.append(placed.reshape(-1, 4))
        centres.append(np.repeat(centre, len(ratios), axis=1).reshape(-1, 2))
        levels.append(np.full(len(boxes[-1]), level))
    join = np.concatenate
    return Anchors(join(boxes).astype(np.float32), join(centres).astype(np.float32), join(levels).astype(np.int32))
