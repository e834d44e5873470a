"""The arrays that flow between data, detectors and evaluation.

Dimensions used everywhere: ``b`` images, ``h w`` space, ``n`` boxes or points, ``c`` classes, ``m`` padded
ground-truth boxes, ``k`` padded detections.  Boxes are ``(x1, y1, x2, y2)`` in pixels of the network's input.  Padding
is always marked by a mask, never by a sentinel value.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

AnyArray = Array | np.ndarray  # a function that takes one takes arrays of the host and of the device
SIZE_MULTIPLE = 32  # images are padded to a multiple of the detectors' common strides, pixels
# RGB of 0..255, which the detector normalises on the device; floats are normalised and zero-padded already.
Images = UInt8[AnyArray, "b h w 3"] | Float[AnyArray, "b h w 3"]


class Normalisation(NamedTuple):
    """Mean and deviation of RGB in grey levels of 0..255; by default ImageNet's."""

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def applied(self, image: Shaped[AnyArray, "*b 3"]) -> Float[AnyArray, "*b 3"]:
        """Grey levels, normalised."""
        factor = (1 / np.array(self.std)).astype(np.float32)
        return (image.astype(np.float32) - np.array(self.mean, np.float32)) * factor


class Batch(NamedTuple):
    """One batch of a detector's input, all shapes static; on the host as NumPy arrays, in a step as JAX arrays."""

    image: Images
    image_size: Float[AnyArray, "b 2"]  # (height, width) of the image inside the padding, pixels
    boxes: Float[AnyArray, "b m 4"]
    labels: Int[AnyArray, "b m"]  # 0 .. classes - 1
    valid: Bool[AnyArray, "b m"]  # False marks padding of boxes and labels
    image_id: Int[AnyArray, " b"]
    real: Bool[AnyArray, " b"]  # False marks images that only fill up an evaluation's last batch
    masks: Bool[AnyArray, "b m h2 w2"] | None = None  # over the padded image, or coarser by a whole factor


class Detections(NamedTuple):
    """A detector's output for one image (or, with a leading ``b``, for a batch), best score first."""

    boxes: Float[AnyArray, "*b k 4"]
    scores: Float[AnyArray, "*b k"]
    labels: Int[AnyArray, "*b k"]
    valid: Bool[AnyArray, "*b k"]
    masks: Float[AnyArray, "*b k s s"] | None = None  # probabilities over each box
