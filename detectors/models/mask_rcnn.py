"""Mask R-CNN (He et al. 2017): Faster R-CNN with a mask for each detection."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from cse_jax.errors import InputError
from cse_jax.ranges import Positive
from detectors.losses import DetectionLosses
from detectors.models.convolution import Conv
from detectors.models.faster_rcnn import FasterRCNN, FasterRCNNConfig, faster_rcnn_tiny
from detectors.models.roi_head import RoIConfig, SampledRoIs, pool_rois
from detectors.ops.masks import crop_masks
from detectors.ops.padding import Pyramid
from detectors.parallel import map_images
from detectors.structures import AnyArray, Batch, Detections, Images


@dataclasses.dataclass
class MaskConfig:
    """The mask head.

    Attributes:
      size: bins per side of RoIAlign; masks have twice as many.
      convs, channels: 3x3 convolutions before the mask is doubled, and their channels.
      soft_targets: a target is the covered share of a bin (torchvision), not whether half of the bin is covered.
      whole_pixels: masks are put into an image within boxes of whole pixels (torchvision), not where the boxes are.
    """

    size: Positive = 14
    convs: Positive = 4
    channels: Positive = 256
    soft_targets: bool = False
    whole_pixels: bool = False


@dataclasses.dataclass
class MaskRCNNConfig(FasterRCNNConfig):
    """Mask R-CNN; the defaults are those of R50-FPN on COCO (MMDetection 2.8).

    Attributes:
      mask: the mask head.  The other attributes are Faster R-CNN's.
    """

    roi: RoIConfig = dataclasses.field(default_factory=lambda: RoIConfig(low_quality_iou=0.5))
    mask: MaskConfig = dataclasses.field(default_factory=MaskConfig)


def mask_rcnn_tiny(classes: int = 10) -> MaskRCNNConfig:
    """A small Mask R-CNN for 96-pixel images."""
    return MaskRCNNConfig(
        **vars(faster_rcnn_tiny(classes)),
        mask=MaskConfig(size=7, convs=2, channels=32),
    )


class _MaskHead(nnx.Module):
    """Convolutions, a doubling of the resolution, and the logits of each class's mask."""

    def __init__(self, config: MaskConfig, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        he = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        inputs = [channels] + [config.channels] * (config.convs - 1)
        pads, channels = [(1, 1)] * 2, config.channels
        self.convs = nnx.List([Conv(n, channels, (3, 3), padding=pads, kernel_init=he, rngs=rngs) for n in inputs])
        self.double = nnx.ConvTranspose(channels, channels, (2, 2), 2, padding="VALID", kernel_init=he, rngs=rngs)
        self.logits = nnx.Linear(config.channels, classes, kernel_init=he, rngs=rngs)

    def __call__(self, x: Float[Array, "b k s s c"]) -> Float[Array, "b k t t e"]:
        """Logits at twice the resolution for each class, in float32."""
        b, k, s = x.shape[:3]
        x = x.reshape(b * k, *x.shape[2:])
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        x = jax.nn.relu(self.double(x))
        return self.logits(x.reshape(b, k, 2 * s, 2 * s, -1)).astype(jnp.float32)


class MaskRCNN(FasterRCNN):
    """The detector."""

    config: MaskRCNNConfig

    def __init__(self, config: MaskRCNNConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.mask = _MaskHead(config.mask, config.fpn.channels, config.classes, rngs=rngs)

    def loss(
        self, batch: Batch, losses: DetectionLosses, *, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Total loss and its parts: Faster R-CNN's and the mask's.

        Args:
          batch: images and padded ground truth with masks.
          losses: classification and box losses of the second stage.
          key: random key of the sampling of anchors and RoIs.

        Raises:
          InputError: the batch has no masks.
        """
        total, parts, features, sampled = self._losses(batch, losses, key)
        mask = self._mask_loss(features, batch, sampled)
        total += mask
        return total, parts | {"loss": total, "mask": mask}

    def _mask_loss(self, features: Pyramid, batch: Batch, sampled: SampledRoIs) -> Float[Array, ""]:
        """Cross-entropy of the mask of each positive's class, averaged over all positives' bins of the batch."""
        if batch.masks is None:
            raise InputError("Mask R-CNN learns from batch.masks, which is None; use data with masks, or Faster R-CNN")
        config = self.config
        most = min(int(config.roi.samples * config.roi.positive_fraction), sampled.boxes.shape[1])
        rois, labels, positive, _, _, truth = (a[:, :most] for a in sampled)  # positives come first
        labels = jnp.minimum(labels, config.classes - 1)
        logits = self._mask_logits(features, rois, labels)
        coarser = batch.image.shape[1] // batch.masks.shape[2]

        cut = functools.partial(crop_masks, size=logits.shape[-1], aligned=config.roi.aligned)
        target = map_images(cut, batch.masks, truth, rois / coarser, batch.image_size / coarser)
        if not config.mask.soft_targets:
            target = (target >= 0.5).astype(jnp.float32)
        cross_entropy = (jax.nn.softplus(logits) - logits * target).mean((-2, -1))
        return jnp.where(positive, cross_entropy, 0.0).sum() / jnp.maximum(positive.sum(), 1)

    def _mask_logits(
        self, features: Pyramid, boxes: Float[AnyArray, "b k 4"], labels: Int[AnyArray, "b k"]
    ) -> Float[Array, "b k t t"]:
        """Logits of each box's mask for its class."""
        pooled = pool_rois(self.config.roi, features, boxes, self.strides, size=self.config.mask.size)
        return jnp.take_along_axis(self.mask(pooled), labels[..., None, None, None], axis=-1)[..., 0]

    def detect(self, image: Images, image_size: Float[AnyArray, "b 2"]) -> tuple[Detections, Int[Array, " b"]]:
        """Detections with masks over their boxes, and the overflow, as Faster R-CNN's ``detect``."""
        features = self.features(image, image_size)
        height, width = image.shape[1:3]
        detections, overflow = self._detect(features, (height, width), image_size)
        logits = self._mask_logits(features, detections.boxes, detections.labels)
        masks = jnp.where(detections.valid[..., None, None], jax.nn.sigmoid(logits), 0.0)
        return detections._replace(masks=masks), overflow
