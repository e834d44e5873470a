"""Masks of instances: targets cut out at RoIs, and predictions put back into an image."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from detectors.ops.roi_align import in_cells
from detectors.structures import AnyArray


def crop_masks(
    masks: Bool[AnyArray, "m h w"],
    index: Int[AnyArray, " n"],
    rois: Float[AnyArray, "n 4"],
    image_size: Float[AnyArray, " 2"],
    *,
    size: int,
    aligned: bool = True,
) -> Float[Array, "n size size"]:
    """The share of each bin of each RoI that its mask covers: RoIAlign with a sampling point per pixel, for one image.

    Args:
      masks: one per ground truth.
      index: of each RoI's mask.
      rois: boxes in pixels of the masks, within the image.
      image_size: (height, width) in pixels of the masks; what is beyond it is padding and does not count.
      size: bins per side.
      aligned: as in ``roi_align``.
    """
    height, width = masks.shape[1:]
    masks, (own_height, own_width) = jnp.asarray(masks), jnp.ceil(image_size)

    def one(args):
        roi, which = args
        x1, y1, x2, y2 = in_cells(roi[None], 1.0, aligned=aligned)[0]
        rows = _bin_weights(y1, y2, size, height, own_height)
        columns = _bin_weights(x1, x2, size, width, own_width)
        return rows @ masks[which].astype(rows.dtype) @ columns.T

    # A few at a time: all the RoIs' masks at once would not fit.
    return jax.lax.map(one, (rois, index), batch_size=8)


def _bin_weights(
    low: Float[Array, ""], high: Float[Array, ""], size: int, length: int, end: Float[Array, ""]
) -> Float[Array, "size length"]:
    """Weight of each pixel of an axis in each bin from ``low`` to ``high``; a bin has ceil(its length) points."""
    most = -(-length // size)
    step = (high - low) / size
    points = jnp.clip(jnp.ceil(step), 1, most)
    within = jnp.arange(most)
    at = low + step * (jnp.arange(size)[:, None] + (within + 0.5) / points)
    used = (within < points) & (at >= -1.0) & (at <= end)
    at = jnp.clip(at, 0.0, end - 1.0)[..., None]
    near = jnp.maximum(1.0 - jnp.abs(at - jnp.arange(length)), 0.0)
    return jnp.where(used[..., None], near, 0.0).sum(1) / points


def paste_masks(
    masks: Float[np.ndarray, "k s s"],
    boxes: Float[np.ndarray, "k 4"],
    image_size: tuple[int, int],
    *,
    whole_pixels: bool = False,
) -> Float[np.ndarray, "k h w"]:
    """Probability of each instance at each pixel of an image; 0 outside its box.  A mask is where it is 0.5 or more.

    Args:
      masks: probabilities over each box, as a detector gives them.
      boxes: in pixels of the image.
      image_size: its (height, width), pixels.
      whole_pixels: torchvision's rule, which moves boxes to whole pixels; else each pixel's centre is interpolated.
    """
    height, width = image_size
    pasted = np.zeros((len(masks), height, width), np.float32)
    for k, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks, np.asarray(boxes, np.float32), strict=True)):
        side = mask.shape[0]
        rows, row = _places(y1, y2, side, height, whole_pixels)
        columns, column = _places(x1, x2, side, width, whole_pixels)
        bordered = np.pad(np.asarray(mask, np.float32), 1)
        pasted[k, rows, columns] = _between(_between(bordered, row).T, column).T
    return pasted


def _places(
    low: np.floating, high: np.floating, side: int, length: int, whole_pixels: bool
) -> tuple[slice, Float[np.ndarray, " n"]]:
    """The pixels of an axis that a mask of ``side`` cells with an empty border reaches, and their places in it."""
    pixel = np.arange(length)
    if whole_pixels:
        centre, half = (low + high) * np.float32(0.5), (high - low) * np.float32(0.5 * (side + 2) / side)
        first, last = int(centre - half), int(centre + half)
        count = max(last - first + 1, 1)
        at = np.clip((pixel - first + 0.5) * ((side + 2) / count) - 0.5, 0.0, side + 1.0)
        inside = (pixel >= first) & (pixel < first + count)
    else:
        at = (pixel + 0.5 - low) / max(high - low, 1e-6) * side + 0.5
        inside = (at > 0.0) & (at < side + 1.0)
    reached = np.flatnonzero(inside)
    if not len(reached):
        return slice(0, 0), np.zeros(0, np.float32)
    return slice(reached[0], reached[-1] + 1), at[inside].astype(np.float32)


def _between(values: Float[np.ndarray, "s t"], at: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n t"]:
    """Rows at fractional places, interpolated between the two nearest."""
    low = np.minimum(at.astype(np.intp), len(values) - 2)
    share = (at - low)[:, None]
    return values[low] * (1.0 - share) + values[low + 1] * share
