"""The arrays that flow between data, detectors and evaluation.

Dimensions used everywhere: ``b`` images, ``h w`` pixels, ``m`` padded ground-truth boxes, ``k`` padded detections.
Boxes are ``(x1, y1, x2, y2)`` in pixels of the network's input; padding is always marked by a mask, never by a
sentinel value.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Batch(NamedTuple):
    """One batch of a detector's input, all shapes static."""

    image: Float[Array, "b h w 3"]  # normalised, then zero-padded
    image_size: Float[Array, "b 2"]  # (height, width) of the image inside the padding, pixels
    boxes: Float[Array, "b m 4"]
    labels: Int[Array, "b m"]  # 0 .. classes - 1
    valid: Bool[Array, "b m"]  # False marks padding of boxes and labels
    image_id: Int[Array, " b"]
    real: Bool[Array, " b"]  # False marks images that only fill up an evaluation's last batch
    masks: Bool[Array, "b m h2 w2"] | None = None  # over the padded image, or coarser by a whole factor


class Detections(NamedTuple):
    """A detector's output for one image (or, with a leading ``b``, for a batch), best score first."""

    boxes: Float[Array, "*b k 4"]
    scores: Float[Array, "*b k"]
    labels: Int[Array, "*b k"]
    valid: Bool[Array, "*b k"]
    masks: Float[Array, "*b k s s"] | None = None  # probabilities over each box
