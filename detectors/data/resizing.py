"""Images and masks at the size of a detector's input."""

import numpy as np
from hotcoco import mask as rle
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "_ _ 3"] | Float32[np.ndarray, "_ _ 3"]  # an image: RGB of 0..255, or floats, normalised


def image_size(image: Pixels) -> tuple[int, int]:
    """(height, width) of an image, pixels."""
    height, width, _ = image.shape
    return height, width


def fitted_size(size: tuple[int, int], limits: tuple[int, int], *, down: bool = False) -> tuple[int, int]:
    """The largest (height, width) of an image's ratio whose sides are within ``limits`` (short, long), pixels.

    Args:
      size: of the image.
      limits: of the sides.
      down: round the sides down, not to the nearest whole number.
    """
    scale = min(limits[0] / min(size), limits[1] / max(size))
    more = 0.0 if down else 0.5
    return max(int(size[0] * scale + more), 1), max(int(size[1] * scale + more), 1)


def resized(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image at another (height, width), bilinear with antialiasing."""
    if image_size(image) == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def interpolated(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float32[np.ndarray, "h2 w2 3"]:
    """The image at another (height, width), bilinear between the nearest pixels, as PyTorch's ``interpolate``."""
    for axis, (before, after) in enumerate(zip(image_size(image), size, strict=True)):
        at = np.clip((np.arange(after, dtype=np.float32) + 0.5) * np.float32(before / after) - 0.5, 0, before - 1)
        first = at.astype(int)
        share = np.expand_dims(at - first, (1, 2) if axis == 0 else (0, 2)).astype(np.float32)
        near, far = (np.take(image, np.minimum(k, before - 1), axis) for k in (first, first + 1))
        image = near * (1 - share) + far * share
    return image


def mask_grid(
    runs: bytes, size: tuple[int, int], target: tuple[int, int], stride: int, *, mirrored: bool = False
) -> Bool[np.ndarray, "h2 w2"]:
    """A mask over a resized image in cells of ``stride`` pixels; a cell is set if the mask covers half of it.

    A pixel of the original counts to the cell that holds its centre, so coverage is exact up to the pixels at a cell's
    edge.

    Args:
      runs: COCO's compressed run lengths over the original image.
      size: (height, width) of the original image.
      target: (height, width) of the resized image; the grid covers it, rounded up to whole cells.
      stride: pixels per cell.
      mirrored: whether the image was flipped left to right.
    """
    mask = rle.decode({"size": list(size), "counts": runs})
    if mirrored:
        mask = mask[:, ::-1]
    if stride == 1 and target == size:
        return mask.astype(bool)
    rows, columns = (-(-side // stride) for side in target)
    # The last cells reach beyond the image, so the grid covers a little more than the image.
    box = (0.0, 0.0, size[1] * columns * stride / target[1], size[0] * rows * stride / target[0])
    right, bottom = int(np.ceil(box[2])) - size[1], int(np.ceil(box[3])) - size[0]
    grey = np.pad(mask, ((0, bottom), (0, right))) * np.uint8(255)
    small = Image.fromarray(grey).resize((columns, rows), Image.Resampling.BOX, box=box)
    return np.asarray(small) >= 128
