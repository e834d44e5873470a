"""Images and masks at the size of a detector's input."""

import numpy as np
from hotcoco import mask as rle
from jaxtyping import Bool, UInt8
from PIL import Image


def fitted_size(size: tuple[int, int], limits: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) of an image's ratio whose sides are within ``limits`` (short, long)."""
    scale = min(limits[0] / min(size), limits[1] / max(size))
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


def resized(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image at another (height, width), bilinear with antialiasing."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def mask_grid(
    runs: bytes, size: tuple[int, int], target: tuple[int, int], stride: int, *, mirrored: bool = False
) -> Bool[np.ndarray, "h2 w2"]:
    """A mask over a resized image, one cell per ``stride`` pixels: whether the mask covers half of the cell.

    Pixels of the original belong to a cell with their centres, so coverage is exact to those at its edge.

    Args:
      runs: COCO's compressed run lengths over the original image.
      size: (height, width) of the original image.
      target: (height, width) of the resized image; the grid covers it, rounded up to whole cells.
      stride: pixels per cell.
      mirrored: whether the image was flipped left to right.
    """
    mask = rle.decode({"size": list(size), "counts": runs})
    cells = tuple(-(-side // stride) for side in target)
    # The last cells reach beyond the image: the part of the image that the whole grid covers is a little larger.
    box = (0.0, 0.0, size[1] * cells[1] * stride / target[1], size[0] * cells[0] * stride / target[0])
    right, bottom = int(np.ceil(box[2])) - size[1], int(np.ceil(box[3])) - size[0]
    grey = np.pad(mask[:, ::-1] if mirrored else mask, ((0, bottom), (0, right))) * np.uint8(255)
    small = Image.fromarray(grey).resize(cells[::-1], Image.Resampling.BOX, box=box)
    return np.asarray(small) >= 128
