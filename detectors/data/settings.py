"""How batches are made from any data set."""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import UInt8

from cse_jax.errors import InputError
from cse_jax.ranges import Count, Positive, Range, Share
from detectors.data.resizing import Pixels, fitted_size, image_size, interpolated, resized
from detectors.structures import SIZE_MULTIPLE, Normalisation

Grey = Annotated[float, Range(least=0, most=255)]
Deviation = Annotated[float, Range(above=0, most=255)]


@dataclasses.dataclass(kw_only=True)
class BatchConfig:
    """Settings that all data sets share.

    Attributes:
      data_dir: where built data sets are kept; empty: ``$CSE_JAX_DATA_DIR`` or ``~/.cache/cse_jax``.
      max_boxes: number of boxes that ground truth is padded to.
      mean, std: of RGB in grey levels of 0..255, for the normalisation of images.
      flip: probability that a training image is mirrored left to right.
      min_side: images with a shorter side are not trained on; pixels.
      short_side, long_side: images are resized to fit into these, keeping their ratio; 0 for both keeps their size.
      torchvision_resizing: resize as torchvision's detectors do, whose sides are rounded down, and not to whole grey
        levels; images that get smaller are not smoothed.
      mask_stride: pixels per cell of the batches' masks; 0 for no masks.
      workers: processes that decode training images; 0 for threads of this one.
      cache: keep decoded and resized images in memory.
    """

    data_dir: str = ""
    max_boxes: Positive = 100
    mean: tuple[Grey, Grey, Grey] = Normalisation().mean
    std: tuple[Deviation, Deviation, Deviation] = Normalisation().std
    flip: Share = 0.5
    min_side: Count = 32
    short_side: Count = 800
    long_side: Count = 1333
    torchvision_resizing: bool = False
    mask_stride: Annotated[int, Range(least=0, most=32)] = 0
    workers: Annotated[int, Range(least=0, most=1024)] = 0
    cache: bool = False

    @property
    def normalisation(self) -> Normalisation:
        """Of the detector that is trained with these batches."""
        return Normalisation(self.mean, self.std)

    @property
    def limits(self) -> tuple[int, int] | None:
        """(short, long) side that images are resized to fit into; None if they keep their size."""
        return (self.short_side, self.long_side) if self.long_side else None

    def fitted_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) at which an image of a size is looked at."""
        return fitted_size(size, self.limits, down=self.torchvision_resizing) if self.limits else size

    def fitted(self, image: UInt8[np.ndarray, "h w 3"]) -> Pixels:
        """An image as it is looked at, normalised where it gets other than whole grey levels."""
        size = self.fitted_size(image_size(image))
        if not self.torchvision_resizing:
            return resized(image, size)
        return np.asarray(self.normalisation.applied(interpolated(image, size)))

    def check(self) -> None:
        """Raises InputError for settings that contradict each other."""
        if not 0 < self.short_side <= self.long_side and (self.short_side or self.long_side):
            raise InputError(
                f"short_side={self.short_side} and long_side={self.long_side} must be 0 < short <= long, or both 0 to "
                "keep the images' size"
            )
        if self.mask_stride and SIZE_MULTIPLE % self.mask_stride:
            raise InputError(f"mask_stride={self.mask_stride} must divide {SIZE_MULTIPLE}; 4 is usual, 0 for none")
