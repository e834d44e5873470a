"""Faster R-CNN (Ren et al. 2015) with a feature pyramid and a box loss on decoded boxes."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cse_jax import spaces
from detectors.losses import DetectionLosses, box_loss, multi_class_loss
from detectors.models.backbone import ResNet, ResNetConfig, resnet50, tiny
from detectors.models.fpn import FPN, FPNConfig
from detectors.models.rpn import RPN, RPNConfig
from detectors.ops import boxes as box_ops
from detectors.ops.matching import match
from detectors.ops.nms import select_detections
from detectors.ops.roi_align import roi_align, roi_levels
from detectors.ops.sampling import sample
from detectors.parallel import map_images
from detectors.structures import Batch, Detections


@dataclasses.dataclass
class RoIConfig:
    """The second stage.

    Attributes:
      levels: pyramid levels that RoIs are pooled from, finest first.
      finest_side: RoIs of this side are pooled from the second level, pixels.
      size: bins per side of RoIAlign.
      aligned: whether RoIAlign takes a cell's value for that of its centre; torchvision: of its corner.
      pool_as_product: RoIAlign as a matrix product: the same, and faster for small maps on CPUs.
      width: of the two fully connected layers.
      stds: of the box offsets.
      positive_iou: from which a proposal is positive.
      low_quality_iou: from which each ground truth also takes the proposals that overlap it most; none without.
      samples, positive_fraction: proposals per image in the loss.
    """

    levels: int = 4
    finest_side: float = 56.0
    size: int = 7
    aligned: bool = True
    pool_as_product: bool = False
    width: int = 1024
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    positive_iou: float = 0.5
    low_quality_iou: float | None = None
    samples: int = 512
    positive_fraction: float = 0.25


@dataclasses.dataclass
class FasterRCNNConfig:
    """Faster R-CNN; the defaults are those of R50-FPN on COCO (MMDetection 2.8).

    Attributes:
      classes: number of categories.
      backbone, fpn, rpn, roi: the parts.
      score_threshold, nms_threshold, max_candidates, max_detections: of the final selection.
      min_side: detections with a side below it, cut to the image, are dropped, pixels.
    """

    classes: int = 80
    backbone: ResNetConfig = dataclasses.field(default_factory=lambda: resnet50(outputs=(1, 2, 3, 4)))
    fpn: FPNConfig = dataclasses.field(default_factory=lambda: FPNConfig(extra="max_pool", extra_levels=1))
    rpn: RPNConfig = dataclasses.field(default_factory=RPNConfig)
    roi: RoIConfig = dataclasses.field(default_factory=RoIConfig)
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_candidates: int = 2000
    max_detections: int = 100
    min_side: float = 0.0


def faster_rcnn_tiny(classes: int = 10) -> FasterRCNNConfig:
    """A small Faster R-CNN for 96-pixel images."""
    return FasterRCNNConfig(
        classes=classes,
        backbone=tiny(),
        fpn=FPNConfig(channels=48, extra="none"),
        rpn=RPNConfig(
            scale=3.0,
            ratios=(1.0, 1.6),
            samples=64,
            per_level=100,
            test_per_level=100,
            train_proposals=60,
            test_proposals=60,
        ),
        roi=RoIConfig(
            levels=2, finest_side=40.0, size=5, pool_as_product=True, width=128, samples=32, positive_fraction=0.5
        ),
        score_threshold=0.02,
        max_candidates=200,
        max_detections=50,
    )


class SampledRoIs(NamedTuple):
    """The RoIs of a batch in the second stage's loss: positives, then background, then padding."""

    boxes: Float[Array, "b s 4"]
    labels: Int[Array, "b s"]  # the background comes after the last category
    positive: Bool[Array, "b s"]
    valid: Bool[Array, "b s"]
    targets: Float[Array, "b s 4"]  # the ground truth's boxes; the RoIs themselves where not positive
    truth: Int[Array, "b s"]  # index of the ground truth; meaningless where not positive


def pool_rois(
    config: RoIConfig,
    features: list[Float[Array, "b _h _w c"]],
    rois: Float[Array, "b k 4"],
    strides: tuple[int, ...],
    *,
    size: int,
) -> Float[Array, "b k size size c"]:
    """Features of each RoI in ``size`` bins per side, from the level that suits it."""

    def one(features, rois):
        level = roi_levels(rois, levels=config.levels, finest_side=config.finest_side)
        options = dict(aligned=config.aligned, as_product=config.pool_as_product)
        return roi_align(features, rois, level, strides=strides[: config.levels], size=size, **options)

    return map_images(one, features[: config.levels], rois)


class _RoIHead(nnx.Module):
    """Two fully connected layers, class logits (background last) and class-specific box offsets."""

    def __init__(self, config: RoIConfig, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.classes = config, classes
        xavier, normal = nnx.initializers.xavier_uniform(), nnx.initializers.normal
        self.fc1 = nnx.Linear(config.size**2 * channels, config.width, kernel_init=xavier, rngs=rngs)
        self.fc2 = nnx.Linear(config.width, config.width, kernel_init=xavier, rngs=rngs)
        self.cls = nnx.Linear(config.width, classes + 1, kernel_init=normal(0.01), rngs=rngs)
        self.box = nnx.Linear(config.width, 4 * classes, kernel_init=normal(0.001), rngs=rngs)

    def __call__(
        self, features: list[Float[Array, "b _h _w c"]], rois: Float[Array, "b k 4"], strides: tuple[int, ...]
    ) -> tuple[Float[Array, "b k d"], Float[Array, "b k e 4"]]:
        """Class logits (``d`` is classes + 1) and offsets of each class (``e`` is classes), in float32."""
        pooled = pool_rois(self.config, features, rois, strides, size=self.config.size)
        x = jax.nn.relu(self.fc1(pooled.reshape(*rois.shape[:2], -1)))
        x = jax.nn.relu(self.fc2(x))
        deltas = self.box(x).reshape(*rois.shape[:2], self.classes, 4)
        return self.cls(x).astype(jnp.float32), deltas.astype(jnp.float32)


class FasterRCNN(nnx.Module):
    """The detector."""

    cls_space = spaces.MULTI_CLASS
    box_units = "pixels"
    box_weight = 10.0

    def __init__(self, config: FasterRCNNConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.strides = config.fpn.strides(config.backbone.strides)
        self.backbone = ResNet(config.backbone, rngs=rngs)
        self.fpn = FPN(config.fpn, config.backbone.channels, rngs=rngs)
        self.rpn = RPN(config.rpn, config.fpn.channels, self.strides, rngs=rngs)
        self.roi = _RoIHead(config.roi, config.fpn.channels, config.classes, rngs=rngs)

    def loss(
        self, batch: Batch, losses: DetectionLosses, *, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Total loss and its parts; the second stage's are normalised by all sampled RoIs of the batch.

        Args:
          batch: images and padded ground truth.
          losses: classification and box losses of the second stage.
          key: of the sampling of anchors and RoIs.
        """
        return self._losses(batch, losses, key)[:2]

    def _losses(
        self, batch: Batch, losses: DetectionLosses, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]], list[Float[Array, "b _h _w c"]], SampledRoIs]:
        """``loss``, and what further heads need: the pyramid's features and the sampled RoIs."""
        features = self.fpn(self.backbone(batch.image))
        anchors, objectness, deltas = self.rpn(features, batch.image.shape[1:3])
        rpn_key, roi_key = (
            jax.vmap(lambda i, k=k: jax.random.fold_in(k, i))(jnp.arange(batch.image.shape[0]))
            for k in jax.random.split(key)
        )
        rpn_cls, rpn_box = self.rpn.loss(anchors, objectness, deltas, batch, rpn_key)
        proposals, real = self.rpn.propose(
            anchors,
            objectness,
            deltas,
            batch.image_size,
            count=self.config.rpn.train_proposals,
            per_level=self.config.rpn.per_level,
        )
        sampled = map_images(self._sample, proposals, real, batch, roi_key)
        cls, box = self._roi_loss(features, losses, sampled)
        total = rpn_cls + rpn_box + cls + box
        parts = {"loss": total, "cls": cls, "box": box, "rpn_cls": rpn_cls, "rpn_box": rpn_box}
        parts |= {"positives": sampled.positive.sum().astype(jnp.float32)}
        return total, parts, features, sampled

    def _sample(
        self, proposals: Float[Array, "k 4"], real: Bool[Array, " k"], truth: Batch, key: jax.Array
    ) -> SampledRoIs:
        """One image's RoIs: proposals and ground truth, matched and sampled."""
        config = self.config.roi
        boxes = jnp.concatenate([truth.boxes, proposals])
        usable = jnp.concatenate([truth.valid & (box_ops.area(truth.boxes) > 0.0), real])
        matches = match(
            boxes,
            usable,
            truth.boxes,
            truth.valid,
            positive_iou=config.positive_iou,
            negative_iou=config.positive_iou,
            low_quality_iou=config.low_quality_iou,
        )
        chosen = sample(
            key, matches.positive, matches.negative, count=config.samples, fraction=config.positive_fraction
        )
        target = matches.target[chosen.index]
        labels = jnp.where(chosen.positive, truth.labels[target], self.config.classes)
        rois = jnp.where(chosen.valid[:, None], boxes[chosen.index], jnp.array([0.0, 0.0, 1.0, 1.0]))
        targets = jnp.where(chosen.positive[:, None], truth.boxes[target], rois)
        return SampledRoIs(rois, labels, chosen.positive, chosen.valid, targets, target)

    def _roi_loss(
        self, features: list[Float[Array, "b _h _w c"]], losses: DetectionLosses, sampled: SampledRoIs
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Classification and box losses of the sampled RoIs."""
        classes = self.config.classes
        rois, labels, positive, valid, targets, _ = sampled
        logits, deltas = self.roi(features, rois, self.strides)
        own = jnp.take_along_axis(deltas, jnp.minimum(labels, classes - 1)[..., None, None], axis=2)[:, :, 0]
        decoded = box_ops.decode_deltas(rois, own, self.config.roi.stds)
        predicted = jnp.where(positive[..., None], decoded, rois)
        iou = jax.lax.stop_gradient(jnp.where(positive, box_ops.iou(predicted, targets), 1.0))
        encoded = box_ops.encode_deltas(rois, targets, self.config.roi.stds)
        flat = [a.reshape(-1, *a.shape[2:]) for a in (logits, labels, iou, predicted, targets, own, encoded, positive)]
        logits, labels, iou, predicted, targets, own, encoded, positive = flat
        count = jnp.maximum(valid.sum(), 1)
        per_roi = multi_class_loss(losses.cls, logits=logits, labels=jax.nn.one_hot(labels, classes + 1), iou=iou)
        per_box = box_loss(
            losses.box,
            predicted=predicted,
            target=targets,
            predicted_offsets=own,
            target_offsets=encoded,
            mask=positive,
        )
        cls = jnp.where(valid.reshape(-1), per_roi, 0.0).sum() / count
        box = per_box.sum() / count
        return cls, box

    def predict(self, image: Float[Array, "b h w 3"], image_size: Float[Array, "b 2"]) -> Detections:
        """Detections, best first, in pixels of the padded image."""
        return self.detect(image, image_size)[0]

    def detect(
        self, image: Float[Array, "b h w 3"], image_size: Float[Array, "b 2"]
    ) -> tuple[Detections, Int[Array, " b"]]:
        """Detections as ``predict``, and the pairs over the score threshold that exceeded ``max_candidates``."""
        return self._detect(self.fpn(self.backbone(image)), image.shape[1:3], image_size)

    def _detect(
        self,
        features: list[Float[Array, "b _h _w c"]],
        image_shape: tuple[int, int],
        image_size: Float[Array, "b 2"],
    ) -> tuple[Detections, Int[Array, " b"]]:
        """``detect`` from the pyramid's features and the shape of the padded image."""
        config = self.config
        anchors, objectness, deltas = self.rpn(features, image_shape)
        rois, real = self.rpn.propose(
            anchors,
            objectness,
            deltas,
            image_size,
            count=config.rpn.test_proposals,
            per_level=config.rpn.test_per_level,
        )
        rois = jnp.where(real[..., None], rois, jnp.array([0.0, 0.0, 1.0, 1.0]))
        logits, deltas = self.roi(features, rois, self.strides)
        boxes = box_ops.decode_deltas(rois[:, :, None], deltas, config.roi.stds)
        scores = jax.nn.softmax(logits, axis=-1)[..., :-1]

        def one(boxes, scores, real, size):
            boxes = box_ops.clip(boxes, size)
            wide = (boxes[..., 2:] - boxes[..., :2]).min(-1) >= config.min_side
            return select_detections(
                boxes,
                jnp.where(wide, scores, 0.0),
                real,
                score_threshold=config.score_threshold,
                iou_threshold=config.nms_threshold,
                max_candidates=config.max_candidates,
                max_detections=config.max_detections,
            )

        return map_images(one, boxes, scores, real, image_size)
