"""What looks wrong about boxes or pixels although each of them can be read."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from detectors.data.records import Annotation

_FEWEST = 20  # boxes that allow a judgement
_BEYOND = 0.2  # share of boxes that leave their images, from which on they are doubted
_MOST = 0.9


def doubts_of_boxes(boxes: Float[np.ndarray, "n 4"], sizes: Float[np.ndarray, "n 2"]) -> list[str]:
    """Sentences on boxes that are perhaps in other units or of another form than they are read in.

    Args:
      boxes: corners as read, pixels.
      sizes: (height, width) of the image of each.
    """
    if len(boxes) < _FEWEST:
        return []
    low, high = np.asarray(boxes[:, :2], np.float64), np.asarray(boxes[:, 2:], np.float64)
    limit = np.asarray(sizes, np.float64)[:, ::-1]
    beyond = (low < -1).any(1) | (high > limit + 1).any(1)
    found = []
    if beyond.mean() >= _BEYOND:
        corners = ((high - low > low) & (high - low <= limit + 1)).all(1)  # width and height read as the far corner
        hint = "they look like corners x1, y1, x2, y2 where x, y, width, height are wanted"
        other = "perhaps they are of images of another size"
        found.append(
            f"{beyond.sum()} of {len(boxes)} boxes leave their images: {hint if corners.mean() >= _MOST else other}"
        )
    centre = (low + high) / 2 / limit
    for place, inside in {"upper left": centre < 0.25, "lower right": centre > 0.75}.items():
        share = inside.all(1).mean()
        if share >= _MOST:
            found.append(
                f"{share:.0%} of the boxes lie in the {place} corner of their images: perhaps their numbers are parts"
                " of the image or of one of another size, instead of pixels"
            )
    return found


def doubts_of_annotations(annotations: Sequence[Annotation]) -> list[str]:
    """As ``doubts_of_boxes``, for the boxes of annotated images."""
    counts = [len(annotation.labels) for annotation in annotations]
    boxes = np.concatenate([np.zeros((0, 4)), *(annotation.boxes for annotation in annotations)])
    sizes = np.array([annotation.size for annotation in annotations], np.float64).reshape(-1, 2)
    return doubts_of_boxes(boxes, np.repeat(sizes, counts, axis=0))
