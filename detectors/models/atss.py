"""ATSS (Zhang et al. 2020): one square anchor per cell, adaptive assignment, a centreness that predicts the IoU."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cse_jax.errors import InputError
from cse_jax.language import spaces
from cse_jax.ranges import Count, Positive, PositiveAmount, Share
from detectors.losses import DetectionLosses, binary_class_divisor, binary_class_loss, box_loss
from detectors.models.backbone import BackboneConfig, build_backbone
from detectors.models.dense import Tower, head_conv, select_by_level
from detectors.models.detector import Detector
from detectors.models.fpn import FPN, FPNConfig
from detectors.models.resnet import resnet50, tiny
from detectors.ops import boxes as box_ops
from detectors.ops.anchors import Anchors, pyramid_anchors
from detectors.ops.atss import assign_adaptively
from detectors.ops.boxes import BoxStds
from detectors.ops.padding import inside_padded_image
from detectors.parallel import map_images
from detectors.structures import AnyArray, Batch, Detections, Images


@dataclasses.dataclass
class ATSSConfig:
    """ATSS; the defaults are those of R50-FPN on COCO (MMDetection 2.8).

    Attributes:
      classes: number of categories.
      backbone, fpn: features.
      towers: 3x3 convolutions before the outputs of each branch.
      norm_groups: groups of the towers' group norm.
      scale: side of the anchors, strides.
      stds: of the box offsets.
      nearest: anchors of each level that are candidates for a ground truth.
      alpha: balance of positives in the classification loss.
      weight_by_quality: weight each positive's box loss by its IoU; False is the authors' code for searched losses.
      score_threshold: on the class probability, before centreness is multiplied.
      nms_threshold, candidates_per_level, max_candidates, max_detections: of the final selection.
      candidates_are_pairs: a level's candidates are its best (cell, class) pairs, not all classes of its best cells.
    """

    classes: Positive = 80
    backbone: BackboneConfig = dataclasses.field(default_factory=resnet50)
    fpn: FPNConfig = dataclasses.field(default_factory=lambda: FPNConfig(relu_before_extra=False))
    towers: Count = 4
    norm_groups: Positive = 32
    scale: PositiveAmount = 8.0
    stds: BoxStds = (0.1, 0.1, 0.2, 0.2)
    nearest: Positive = 9
    alpha: Share = 0.25
    weight_by_quality: bool = True
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.6
    candidates_per_level: Positive = 1000
    candidates_are_pairs: bool = False
    max_candidates: Positive = 2000
    max_detections: Positive = 100

    def check(self) -> None:
        """Raises InputError for groups that don't fit."""
        if self.fpn.channels % self.norm_groups:
            raise InputError(f"norm_groups={self.norm_groups} must divide fpn.channels={self.fpn.channels}")


def atss_tiny(classes: int = 10) -> ATSSConfig:
    """A small ATSS for 96-pixel images."""
    return ATSSConfig(
        classes=classes,
        backbone=tiny(),
        fpn=FPNConfig(channels=48, extra="none"),
        towers=2,
        norm_groups=8,
        scale=3.0,
        score_threshold=0.02,
        candidates_per_level=200,
        max_candidates=200,
        max_detections=50,
    )


class ATSS(Detector):
    """The detector."""

    cls_space = spaces.BINARY_CLASS
    box_units = "pixels"
    box_weight = 2.0  # the paper of the searched losses uses 1
    normalisers = {
        "cls": "the number of anchors of objects",
        "box": "the sum of the anchors' weights, which multiply the losses: the IoUs, or 1 without weight_by_quality",
    }

    def __init__(self, config: ATSSConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        channels = config.fpn.channels
        self.strides = config.fpn.strides(config.backbone.strides)
        self.backbone = build_backbone(config.backbone, rngs=rngs)
        self.fpn = FPN(config.fpn, config.backbone.channels, rngs=rngs)
        self.cls_tower, self.box_tower = (
            Tower(channels, config.towers, config.norm_groups, rngs=rngs) for _ in range(2)
        )
        prior = 0.01
        self.cls = head_conv(channels, config.classes, rngs, bias=math.log(prior / (1.0 - prior)))
        self.box = head_conv(channels, 4, rngs)
        self.centreness = head_conv(channels, 1, rngs)
        self.scales = nnx.Param(jnp.ones(len(self.strides)))

    @staticmethod
    def is_output(path: tuple) -> bool:
        """Whether a parameter, given by its path, belongs to the last layers."""
        return path[0] in ("cls", "box", "centreness", "scales")

    def _heads(
        self, image: Images, image_size: Float[AnyArray, "b 2"]
    ) -> tuple[Anchors, Float[Array, "b n c"], Float[Array, "b n 4"], Float[Array, "b n"]]:
        """Anchors; class logits, box offsets and centreness logits of each, in float32."""
        logits, deltas, centreness = [], [], []
        for level, (x, extent) in enumerate(zip(*self.features(image, image_size), strict=True)):
            batch = x.shape[0]
            by_class, by_box = self.cls_tower(x, extent), self.box_tower(x, extent)
            logits.append(self.cls(by_class).reshape(batch, -1, self.config.classes))
            deltas.append(self.box(by_box).astype(jnp.float32).reshape(batch, -1, 4) * self.scales[level])
            centreness.append(self.centreness(by_box).reshape(batch, -1))
        height, width = image.shape[1:3]
        anchors = pyramid_anchors((height, width), self.strides, scale=self.config.scale, ratios=(1.0,))
        logits, deltas, centreness = (
            jnp.concatenate(parts, axis=1).astype(jnp.float32) for parts in (logits, deltas, centreness)
        )
        return anchors, logits, deltas, centreness

    def loss(
        self, batch: Batch, losses: DetectionLosses, *, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Total loss and its parts.

        Classification and centreness are normalised by positives (GHM-C by all entries), box regression by the sum of
        its weights (the IoU of each prediction with its target); all over the whole batch.

        Args:
          batch: images and padded ground truth.
          losses: classification and box losses.
          key: not used; ATSS samples nothing.
        """
        del key
        config = self.config
        anchors, logits, deltas, centreness = self._heads(batch.image, batch.image_size)
        inside = map_images(lambda size: inside_padded_image(anchors.centre, size), batch.image_size)
        logits = jnp.where(inside[..., None], logits, 0.0)  # where a loss is NaN, masking it leaves NaN gradients
        targets = map_images(
            lambda *truth: assign_adaptively(anchors, *truth, candidates=config.nearest),
            batch.boxes,
            batch.labels,
            batch.valid,
            inside,
        )
        positive, target = targets.positive, targets.boxes
        predicted = jnp.where(
            positive[..., None], box_ops.decode_deltas(anchors.boxes, deltas, config.stds), anchors.boxes
        )
        quality = jax.lax.stop_gradient(jnp.where(positive, box_ops.iou(predicted, target), 0.0))
        count = jnp.maximum(positive.sum().astype(jnp.float32), 1.0)

        one_hot = jax.nn.one_hot(targets.labels, config.classes) * positive[..., None]
        per_class = binary_class_loss(
            losses.cls,
            logits=logits,
            quality=quality[..., None] * one_hot,
            labels=one_hot,
            mask=inside,
            alpha=config.alpha,
        )
        cls = per_class.sum() / binary_class_divisor(losses.cls, usual=count, mask=inside, classes=config.classes)

        weights = quality if config.weight_by_quality else positive.astype(jnp.float32)
        per_box = box_loss(
            losses.box,
            predicted=predicted,
            target=target,
            predicted_offsets=deltas,
            target_offsets=box_ops.encode_deltas(anchors.boxes, target, config.stds),
            mask=positive,
        )
        box = (per_box * weights).sum() / jnp.maximum(weights.sum(), 1e-6)

        cross_entropy = jnp.where(positive, jax.nn.softplus(centreness) - centreness * quality, 0.0)
        centre = cross_entropy.sum() / count
        total = cls + box + centre
        parts = {"loss": total, "cls": cls, "box": box, "centreness": centre}
        return total, parts | {"positives": positive.sum().astype(jnp.float32)}

    def predict(self, image: Images, image_size: Float[AnyArray, "b 2"]) -> Detections:
        """Detections, best first, in pixels of the padded image; a score is class probability times centreness."""
        config = self.config
        anchors, logits, deltas, centreness = self._heads(image, image_size)
        probability = jax.nn.sigmoid(logits)
        scores = jnp.where(probability > config.score_threshold, probability, 0.0)
        scores = scores * jax.nn.sigmoid(centreness)[..., None]
        boxes = box_ops.decode_deltas(anchors.boxes, deltas, config.stds)

        def one(boxes, scores, size):
            inside = inside_padded_image(anchors.centre, size)
            return select_by_level(config, boxes, scores, inside, anchors.level, size)

        return map_images(one, boxes, scores, image_size)
