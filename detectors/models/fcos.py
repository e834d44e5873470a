"""FCOS (Tian et al. 2019) with centre sampling, normalised targets and a centreness that predicts the IoU."""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from cse_jax.errors import InputError
from cse_jax.language import spaces
from cse_jax.ranges import Count, Items, Positive, PositiveAmount, Range, Share
from detectors.losses import DetectionLosses, binary_class_divisor, binary_class_loss, box_loss
from detectors.models.backbone import BackboneConfig, build_backbone
from detectors.models.dense import Tower, head_conv, select_by_level
from detectors.models.detector import Detector
from detectors.models.fpn import FPN, FPNConfig
from detectors.models.resnet import resnet50, tiny
from detectors.ops import boxes as box_ops
from detectors.ops.anchors import fitting_shift
from detectors.ops.padding import inside_padded_image
from detectors.ops.points import Points, assign_points, pyramid_points
from detectors.parallel import map_images
from detectors.structures import AnyArray, Batch, Detections, Images


@dataclasses.dataclass
class FCOSConfig:
    """FCOS; the defaults are those of R50-FPN on COCO (MMDetection 2.8).

    Attributes:
      classes: number of categories.
      backbone, fpn: features.
      towers: 3x3 convolutions before the outputs of each branch.
      norm_groups: groups of the towers' group norm.
      point_offset: offset of the points in their cells, strides.
      fit_image: spread points evenly over the image where a stride does not divide its side.
      range_limits: lengths that separate the levels' regress ranges, pixels.
      open_ranges: a distance that equals a limit between two levels fits neither of them, not both.
      radius: of centre sampling, strides.
      alpha: balance of positives in the classification loss.
      level_scales: whether each level has a learned factor on its distances.
      box_bias: initial bias of the regressed distances, strides; with one above 0, boxes overlap their targets from the
        start.
      weight_by_quality: weight each positive's box loss by its IoU; False is the authors' code for searched losses.
      count_images: add the number of images to that of positives in the normaliser of the classification loss.
      geometric_centreness: the centreness target is that of the paper, sqrt(min(l, r) min(t, b) / (max max)), not the
        prediction's IoU.
      root_score: scores are the square root of class probability times centreness, and the threshold is on them.
      score_threshold: on the class probability, before centreness is multiplied.
      nms_threshold, candidates_per_level, max_candidates, max_detections: of the final selection.
      candidates_are_pairs: a level's candidates are its best (point, class) pairs, not all classes of its best points.
    """

    classes: Positive = 80
    backbone: BackboneConfig = dataclasses.field(
        default_factory=lambda: resnet50(stride_in_1x1=True, frozen_affine=True)
    )
    fpn: FPNConfig = dataclasses.field(default_factory=FPNConfig)
    towers: Count = 4
    norm_groups: Positive = 32
    point_offset: Share = 0.5
    fit_image: bool = False
    range_limits: Annotated[tuple[PositiveAmount, ...], Items(least=0, increasing=True)] = (64.0, 128.0, 256.0, 512.0)
    open_ranges: bool = False
    radius: PositiveAmount = 1.5
    alpha: Share = 0.25
    level_scales: bool = True
    box_bias: Annotated[float, Range(least=-1000, most=1000)] = 0.0
    weight_by_quality: bool = True
    count_images: bool = True
    geometric_centreness: bool = False
    root_score: bool = False
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.6
    candidates_per_level: Positive = 1000
    candidates_are_pairs: bool = False
    max_candidates: Positive = 2000
    max_detections: Positive = 100

    def check(self) -> None:
        """Raises InputError for levels or groups that don't fit."""
        if self.fpn.channels % self.norm_groups:
            raise InputError(f"norm_groups={self.norm_groups} must divide fpn.channels={self.fpn.channels}")
        levels = len(self.fpn.strides(self.backbone.strides))
        if len(self.range_limits) != levels - 1:
            raise InputError(f"range_limits={self.range_limits} must be {levels - 1}, for {levels} levels")


def fcos_tiny(classes: int = 10) -> FCOSConfig:
    """A small FCOS for 96-pixel images."""
    return FCOSConfig(
        classes=classes,
        backbone=tiny(),
        fpn=FPNConfig(channels=48, extra="none"),
        towers=2,
        norm_groups=8,
        range_limits=(24.0,),
        box_bias=1.5,
        score_threshold=0.02,
        candidates_per_level=200,
        max_candidates=200,
        max_detections=50,
    )


def _centreness(offsets: Float[Array, "b n 4"]) -> Float[Array, "b n"]:
    """Centreness of points in their targets (equation 3 of the paper): 1 at the centre, 0 at an edge or outside."""
    across, down = offsets[..., 0::2], offsets[..., 1::2]
    ratio = across.min(-1) / across.max(-1) * (down.min(-1) / down.max(-1))
    return jnp.sqrt(jnp.maximum(ratio, 0.0))


def _points(
    config: FCOSConfig, strides: tuple[int, ...], image: Images, image_size: Float[AnyArray, "b 2"]
) -> tuple[Points, Bool[Array, "b n"]]:
    """Points of each image, and which of them are not in the padding."""
    height, width = image.shape[1:3]
    points = pyramid_points((height, width), strides, config.range_limits, offset=config.point_offset)
    # Not of the points as shifted below: some of the padding's would be inside.
    inside = map_images(lambda size: inside_padded_image(points.xy, size), image_size)
    if config.fit_image:
        shift = map_images(lambda size: fitting_shift(points.xy, points.stride, size), image_size)
        return points._replace(xy=points.xy + shift), inside
    return points._replace(xy=jnp.broadcast_to(points.xy, (len(image), *points.xy.shape))), inside


class FCOS(Detector):
    """The detector."""

    cls_space = spaces.BINARY_CLASS
    box_units = "strides"
    box_weight = 1.0
    normalisers = {
        "cls": "the number of points of objects (with count_images, plus that of images)",
        "box": "the sum of the points' weights, which multiply the losses: the IoUs, or 1 without weight_by_quality",
    }

    def __init__(self, config: FCOSConfig, *, rngs: nnx.Rngs) -> None:
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
        self.box = head_conv(channels, 4, rngs, bias=config.box_bias)
        self.centreness = head_conv(channels, 1, rngs)
        self.scales = nnx.Param(jnp.ones(len(self.strides))) if config.level_scales else None

    @staticmethod
    def is_output(path: tuple) -> bool:
        """Whether a parameter, given by its path, belongs to the last layers."""
        return path[0] in ("cls", "box", "centreness", "scales")

    def _heads(
        self, image: Images, image_size: Float[AnyArray, "b 2"]
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b n 4"], Float[Array, "b n"]]:
        """Class logits, distances in strides and centreness logits at each point, in float32."""
        logits, distances, centreness = [], [], []
        for level, (x, extent) in enumerate(zip(*self.features(image, image_size), strict=True)):
            batch = x.shape[0]
            by_class, by_box = self.cls_tower(x, extent), self.box_tower(x, extent)
            logits.append(self.cls(by_class).reshape(batch, -1, self.config.classes))
            scale = 1.0 if self.scales is None else self.scales[level]
            distances.append(jax.nn.relu(self.box(by_box).astype(jnp.float32).reshape(batch, -1, 4) * scale))
            centreness.append(self.centreness(by_box).reshape(batch, -1))
        logits, distances, centreness = (
            jnp.concatenate(parts, axis=1).astype(jnp.float32) for parts in (logits, distances, centreness)
        )
        return logits, distances, centreness

    def loss(
        self, batch: Batch, losses: DetectionLosses, *, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Total loss and its parts.

        Classification is normalised by positives + images (GHM-C by all entries), box regression by the sum of its
        weights (the IoU of each prediction with its target), centreness by positives; all over the whole batch.
        ``count_images`` and ``weight_by_quality`` change the first two.

        Args:
          batch: images and padded ground truth.
          losses: classification and box losses.
          key: not used; FCOS samples nothing.
        """
        del key
        config = self.config
        points, inside = _points(config, self.strides, batch.image, batch.image_size)
        logits, distances, centreness = self._heads(batch.image, batch.image_size)
        logits = jnp.where(inside[..., None], logits, 0.0)  # where a loss is NaN, masking it leaves NaN gradients
        targets = map_images(
            lambda xy, *truth: assign_points(
                points._replace(xy=xy), *truth, radius=config.radius, open_ranges=config.open_ranges
            ),
            points.xy,
            batch.boxes,
            batch.labels,
            batch.valid,
            inside,
        )
        positive, stride = targets.positive, points.stride[:, None]
        centres = points.xy / stride
        own_cell = box_ops.decode_ltrb(centres, jnp.full_like(distances, 0.5))
        predicted = jnp.where(positive[..., None], box_ops.decode_ltrb(centres, distances), own_cell)
        target = targets.boxes / stride
        quality = jax.lax.stop_gradient(jnp.where(positive, box_ops.iou(predicted, target), 0.0))

        one_hot = jax.nn.one_hot(targets.labels, config.classes) * positive[..., None]
        per_class = binary_class_loss(
            losses.cls,
            logits=logits,
            quality=quality[..., None] * one_hot,
            labels=one_hot,
            mask=inside,
            alpha=config.alpha,
        )
        count = positive.sum().astype(jnp.float32)
        normaliser = count + logits.shape[0] if config.count_images else jnp.maximum(count, 1.0)
        cls = per_class.sum() / binary_class_divisor(losses.cls, usual=normaliser, mask=inside, classes=config.classes)

        weights = quality if config.weight_by_quality else positive.astype(jnp.float32)
        target_offsets = box_ops.encode_ltrb(centres, target)
        per_box = box_loss(
            losses.box,
            predicted=predicted,
            target=target,
            predicted_offsets=distances,
            target_offsets=target_offsets,
            mask=positive,
        )
        box = (per_box * weights).sum() / jnp.maximum(weights.sum(), 1e-6)

        centred = _centreness(target_offsets) if config.geometric_centreness else quality
        cross_entropy = jnp.where(positive, jax.nn.softplus(centreness) - centreness * centred, 0.0)
        centre = cross_entropy.sum() / jnp.maximum(count, 1.0)
        total = cls + box + centre
        return total, {"loss": total, "cls": cls, "box": box, "centreness": centre, "positives": count}

    def predict(self, image: Images, image_size: Float[AnyArray, "b 2"]) -> Detections:
        """Detections, best first, in pixels of the padded image; a score is class probability times centreness.

        With ``root_score`` it is the square root of that.
        """
        config = self.config
        points, inside = _points(config, self.strides, image, image_size)
        logits, distances, centreness = self._heads(image, image_size)
        probability = jax.nn.sigmoid(logits)
        scores = probability * jax.nn.sigmoid(centreness)[..., None]
        scores = jnp.sqrt(scores) if config.root_score else scores
        judged = scores if config.root_score else probability
        scores = jnp.where(judged > config.score_threshold, scores, 0.0)
        boxes = box_ops.decode_ltrb(points.xy, distances * points.stride[:, None])

        def one(boxes, scores, inside, size):
            return select_by_level(config, boxes, scores, inside, points.level, size)

        return map_images(one, boxes, scores, inside, image_size)
