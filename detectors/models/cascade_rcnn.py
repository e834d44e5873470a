"""Cascade R-CNN (Cai and Vasconcelos 2018): heads of rising IoU thresholds; each gets the boxes of the one before."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from cse_jax.errors import InputError
from cse_jax.ranges import Amount, Items, Share
from detectors.losses import DetectionLosses
from detectors.models.faster_rcnn import FasterRCNN, FasterRCNNConfig, faster_rcnn_tiny
from detectors.models.roi_head import NO_ROI, RoIConfig, RoIHead, SampledRoIs, roi_loss, sample_rois
from detectors.models.rpn import RPNConfig
from detectors.ops import boxes as box_ops
from detectors.ops.boxes import BoxStds
from detectors.ops.padding import Pyramid
from detectors.parallel import map_images
from detectors.structures import AnyArray, Batch


@dataclasses.dataclass
class CascadeRCNNConfig(FasterRCNNConfig):
    """Cascade R-CNN; the defaults are those of R50-FPN on COCO (MMDetection 2.8).

    Attributes:
      stage_ious: IoU from which a RoI is positive, in each stage.
      stage_stds: of the box offsets of each stage.
      stage_weights: factors on the losses of each stage.
      roi: settings that the stages share.  The other attributes are Faster R-CNN's.
    """

    rpn: RPNConfig = dataclasses.field(
        default_factory=lambda: RPNConfig(box_beta=1 / 9, train_proposals=2000, test_proposals=1000)
    )
    roi: RoIConfig = dataclasses.field(default_factory=lambda: RoIConfig(class_agnostic=True))
    stage_ious: Annotated[tuple[Share, ...], Items()] = (0.5, 0.6, 0.7)
    stage_stds: tuple[BoxStds, ...] = (
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    )
    stage_weights: tuple[Amount, ...] = (1.0, 0.5, 0.25)

    def check(self) -> None:
        """Raises InputError if the numbers of stages differ, or boxes are not class-agnostic."""
        super().check()
        if not len(self.stage_ious) == len(self.stage_stds) == len(self.stage_weights):
            raise InputError(
                f"stage_ious, stage_stds and stage_weights have {len(self.stage_ious)}, {len(self.stage_stds)} and "
                f"{len(self.stage_weights)} entries; each stage needs one of each"
            )
        if not self.roi.class_agnostic:
            raise InputError("roi.class_agnostic must be True: a stage hands one box for all classes to the next")

    def stages(self) -> list[RoIConfig]:
        """The settings of each stage."""
        pairs = zip(self.stage_ious, self.stage_stds, strict=True)
        return [dataclasses.replace(self.roi, positive_iou=iou, stds=stds) for iou, stds in pairs]


def cascade_rcnn_tiny(classes: int = 10) -> CascadeRCNNConfig:
    """A small Cascade R-CNN for 96-pixel images."""
    small = vars(faster_rcnn_tiny(classes))
    return CascadeRCNNConfig(**small | {"roi": dataclasses.replace(small["roi"], class_agnostic=True)})


class CascadeRCNN(FasterRCNN):
    """The detector."""

    config: CascadeRCNNConfig

    def __init__(self, config: CascadeRCNNConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        del self.roi
        channels = config.fpn.channels
        self.heads = nnx.List([RoIHead(stage, channels, config.classes, rngs=rngs) for stage in config.stages()])

    def loss(
        self, batch: Batch, losses: DetectionLosses, *, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Total loss and its parts; each stage's are normalised by its sampled RoIs of the batch, then weighted.

        Args:
          batch: images and padded ground truth.
          losses: classification and box losses of all stages.
          key: random key of the sampling of anchors and RoIs.
        """
        features, rois, real, parts, keys = self._propose(batch, key)
        cls = box = jnp.zeros(())
        for number, (head, weight) in enumerate(zip(self.heads, self.config.stage_weights, strict=True), start=1):

            def draw(rois, real, truth, key, head=head, number=number):
                key = jax.random.fold_in(key, number)
                return sample_rois(head.config, self.config.classes, rois, real, truth, key)

            sampled, is_truth = map_images(draw, rois, real, batch, keys)
            logits, deltas = head(features, sampled.boxes, self.strides)
            stage_cls, stage_box = roi_loss(head.config, logits, deltas, losses, sampled)
            cls, box = cls + weight * stage_cls, box + weight * stage_box
            parts |= {f"cls_{number}": stage_cls, f"box_{number}": stage_box}
            if number == 1:
                parts["positives"] = sampled.positive.sum().astype(jnp.float32)
            rois, real = _handed_on(head.config, sampled, is_truth, jax.lax.stop_gradient(deltas), batch.image_size)
        total = parts["rpn_cls"] + parts["rpn_box"] + cls + box
        return total, parts | {"loss": total, "cls": cls, "box": box}

    def _refine(
        self,
        features: Pyramid,
        rois: Float[AnyArray, "b k 4"],
        image_size: Float[AnyArray, "b 2"],
    ) -> tuple[Float[Array, "b k d"], Float[Array, "b k 1 4"]]:
        """The stages at test: the mean of their class logits, and the last one's boxes."""
        total = jnp.zeros(())
        for head in self.heads:
            logits, deltas = head(features, rois, self.strides)
            total = total + logits
            rois = _refined(head.config, rois, deltas, image_size)
        return total / len(self.heads), jnp.asarray(rois)[:, :, None]


def _refined(
    config: RoIConfig,
    rois: Float[AnyArray, "b k 4"],
    deltas: Float[AnyArray, "b k 1 4"],
    image_size: Float[AnyArray, "b 2"],
) -> Float[Array, "b k 4"]:
    """RoIs moved by a stage's offsets and clipped to the image."""
    return jax.vmap(box_ops.clip)(box_ops.decode_deltas(rois, deltas[:, :, 0], config.stds), image_size)


def _handed_on(
    config: RoIConfig,
    sampled: SampledRoIs,
    is_truth: Bool[AnyArray, "b s"],
    deltas: Float[AnyArray, "b s 1 4"],
    image_size: Float[AnyArray, "b 2"],
) -> tuple[Float[Array, "b s 4"], Bool[Array, "b s"]]:
    """The next stage's proposals, and which are real.

    They are a stage's refined RoIs without those of the ground truth, which the next stage adds itself.
    """
    boxes = _refined(config, sampled.boxes, deltas, image_size)
    real = sampled.valid & ~is_truth & (box_ops.area(boxes) > 0.0)
    return jnp.where(real[..., None], boxes, NO_ROI), real
