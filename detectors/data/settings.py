"""How batches are made from any data set."""

import dataclasses

from cse_jax.errors import InputError


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
      mask_stride: pixels per cell of the batches' masks; 0 for no masks.
      workers: processes that decode training images; 0 for threads of this one.
      cache: keep decoded and resized images in memory.
    """

    data_dir: str = ""
    max_boxes: int = 100
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    flip: float = 0.5
    min_side: int = 32
    short_side: int = 800
    long_side: int = 1333
    mask_stride: int = 0
    workers: int = 0
    cache: bool = False

    @property
    def limits(self) -> tuple[int, int] | None:
        """(short, long) side that images are resized to fit into; None if they keep their size.

        Raises:
          InputError: the sides contradict each other.
        """
        if not self.short_side and not self.long_side:
            return None
        if not 0 < self.short_side <= self.long_side:
            raise InputError(
                f"data.short_side={self.short_side} and data.long_side={self.long_side} must be 0 < short <= long, or "
                "both 0 to keep the images' size"
            )
        return self.short_side, self.long_side
