"""Masks of instances: targets cut out at RoIs, and predictions put back into an image."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from detectors.ops.roi_align import in_cells


def crop_masks(
    masks: Bool[Array, "m h w"],
    index: Int[Array, " n"],
    rois: Float[Array, "n 4"],
    image_size: Float[Array, " 2"],
    *,
    size: int,
    aligned: bool = True,
) -> Float[Array, "n size size"]:
    """The share of each bin of each RoI that its mask covers: RoIAlign with a sampling point per pixel, for one image.

    Args:
      masks: one per ground truth.
      index: of each RoI's mask.
      rois: boxes in pixels of the masks, within the image.
      image_size: (height, width) in pixels of the masks; beyond it is padding, which is not looked at.
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
        rows = _pixel_weights(y1, y2, side, height, whole_pixels)
        columns = _pixel_weights(x1, x2, side, width, whole_pixels)
        pasted[k] = rows @ mask @ columns.T
    return pasted


def _pixel_weights(
    low: float, high: float, side: int, length: int, whole_pixels: bool
) -> Float[np.ndarray, "length side"]:
    """Weight of each of a mask's ``side`` cells at each pixel of an axis."""
    pixel = np.arange(length)
    if whole_pixels:  # with a border of one empty cell
        centre, half = (low + high) * np.float32(0.5), (high - low) * np.float32(0.5 * (side + 2) / side)
        first, last = int(centre - half), int(centre + half)
        count = max(last - first + 1, 1)
        at = np.clip((pixel - first + 0.5) * ((side + 2) / count) - 0.5, 0.0, side + 1.0) - 1.0
        inside = (pixel >= first) & (pixel < first + count)
    else:
        at = (pixel + 0.5 - low) / max(high - low, 1e-6) * side - 0.5
        inside = (at > -1.0) & (at < side)
    near = np.maximum(1.0 - np.abs(at[:, None] - np.arange(side)), 0.0)
    return np.where(inside[:, None], near, 0.0).astype(np.float32)
