"""What training and evaluation need of a detector."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cse_jax.language.spaces import Space
from cse_jax.search.task import Part
from detectors.losses import DetectionLosses
from detectors.models.backbone import Backbone
from detectors.models.fpn import FPN
from detectors.ops.padding import Extent, Pyramid
from detectors.structures import AnyArray, Batch, Detections, Images, Normalisation


class Detector(nnx.Module):
    """Base of the detectors.

    Attributes:
      cls_space: space of the classification loss.
      box_units: unit of the boxes that the box loss gets, ``"pixels"`` or ``"strides"``.
      box_weight: usual weight of the box loss.
      normalisers: what the sums of the two losses are divided by, in words.
      config: its config, which has at least ``classes``, the number of its labels.
      backbone: the network that makes features.
      fpn: makes a pyramid of them.
      strides: of the pyramid's levels, pixels.
      normalisation: of the images that it gets as 0..255.
    """

    cls_space: ClassVar[Space]
    box_units: ClassVar[str]
    box_weight: ClassVar[float]
    normalisers: ClassVar[Mapping[Part, str]]
    config: Any
    backbone: Backbone
    fpn: FPN
    strides: tuple[int, ...]
    normalisation: Normalisation = Normalisation()

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:  # each detector has a config class of its own
        raise NotImplementedError

    def features(self, image: Images, image_size: Float[AnyArray, "b 2"]) -> Pyramid:
        """The pyramid of a batch, on each image the same whatever the padding.

        Args:
          image: as in ``Batch``.
          image_size: (height, width) inside the padding, pixels.
        """
        image = self._normalised(image, image_size)
        extent = Extent.of(image_size)
        extents = [extent.strided(stride) for stride in self.strides]
        return Pyramid(self.fpn(self.backbone(image, extent), extents), extents)

    def _normalised(self, image: Images, image_size: Float[AnyArray, "b 2"]) -> Float[Array, "b h w 3"]:
        """What the network reads, in the type of its parameters, with zeros beyond each image."""
        image = jnp.asarray(image)
        if image.dtype == jnp.uint8:
            image = Extent(image_size).clear(jnp.asarray(self.normalisation.applied(image)))
        return image.astype(self.fpn.lateral[0].kernel.dtype)

    @staticmethod
    def is_output(path: tuple) -> bool:
        """Whether a parameter, given by its path, belongs to the last layers."""
        raise NotImplementedError

    def loss(
        self, batch: Batch, losses: DetectionLosses, *, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Total loss and its parts, by name.

        Args:
          batch: images and padded ground truth.
          losses: classification and box losses of the final head.
          key: random key of what is sampled.
        """
        raise NotImplementedError

    def predict(self, image: Images, image_size: Float[AnyArray, "b 2"]) -> Detections:
        """Detections, best first, in pixels of the padded image.

        Args:
          image: as in ``Batch``.
          image_size: (height, width) inside the padding, pixels.
        """
        raise NotImplementedError


def abstract_detector(build: Callable[[nnx.Rngs], Detector]) -> Detector:
    """The detector that a function makes from random numbers, with shapes and types in place of its arrays."""
    return nnx.eval_shape(lambda: build(nnx.Rngs(0)))
