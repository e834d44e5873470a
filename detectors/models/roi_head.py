"""What happens to a region of interest: pooling, the two-layer head, sampling for training, and the losses."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cse_jax.ranges import Positive, PositiveAmount, PositiveShare, Share
from detectors.losses import DetectionLosses, box_loss, multi_class_loss
from detectors.ops import boxes as box_ops
from detectors.ops.boxes import BoxStds
from detectors.ops.matching import match
from detectors.ops.padding import Pyramid
from detectors.ops.roi_align import roi_align, roi_levels
from detectors.ops.sampling import sample
from detectors.parallel import map_images
from detectors.structures import AnyArray, Batch


@dataclasses.dataclass
class RoIConfig:
    """The second stage.

    Attributes:
      levels: pyramid levels that RoIs are pooled from, finest first.
      finest_side: RoIs whose sides are below twice this are pooled from the finest level, pixels.
      size: bins per side of RoIAlign.
      aligned: whether RoIAlign takes a cell's value for that of its centre; torchvision takes it for its corner's.
      pool_as_product: compute RoIAlign as a matrix product; the result is the same, and faster for small maps on CPUs.
      width: of the two fully connected layers.
      stds: of the box offsets.
      class_agnostic: one box per RoI, not one per RoI and class.
      positive_iou: IoU from which a proposal is positive.
      low_quality_iou: IoU from which each ground truth also takes the proposals that overlap it most; None for never.
      samples, positive_fraction: proposals per image in the loss.
    """

    levels: Positive = 4
    finest_side: PositiveAmount = 56.0
    size: Positive = 7
    aligned: bool = True
    pool_as_product: bool = False
    width: Positive = 1024
    stds: BoxStds = (0.1, 0.1, 0.2, 0.2)
    class_agnostic: bool = False
    positive_iou: Share = 0.5
    low_quality_iou: Share | None = None
    samples: Positive = 512
    positive_fraction: PositiveShare = 0.25


NO_ROI = np.array([0.0, 0.0, 1.0, 1.0], np.float32)  # stands in for missing RoIs


class SampledRoIs(NamedTuple):
    """The RoIs in the second stage's loss, of a batch or without ``b`` of one image: positives, background, padding."""

    boxes: Float[Array, "*b s 4"]
    labels: Int[Array, "*b s"]  # the background comes after the last category
    positive: Bool[Array, "*b s"]
    valid: Bool[Array, "*b s"]
    targets: Float[Array, "*b s 4"]  # the ground truth's boxes; the RoIs themselves where not positive
    truth: Int[Array, "*b s"]  # index of the ground truth; meaningless where not positive


def pool_rois(
    config: RoIConfig,
    features: Pyramid,
    rois: Float[AnyArray, "b k 4"],
    strides: tuple[int, ...],
    *,
    size: int,
) -> Float[Array, "b k size size c"]:
    """Features of each RoI in ``size`` bins per side, from the level that suits it."""

    def one(features, extents, rois):
        level = roi_levels(rois, levels=config.levels, finest_side=config.finest_side)
        options = dict(aligned=config.aligned, as_product=config.pool_as_product)
        cells = [extent.cells for extent in extents]
        return roi_align(features, rois, level, strides=strides[: config.levels], size=size, cells=cells, **options)

    return map_images(one, *(part[: config.levels] for part in features), rois)


class RoIHead(nnx.Module):
    """Two fully connected layers, class logits (background last) and box offsets."""

    def __init__(self, config: RoIConfig, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.boxes = config, 1 if config.class_agnostic else classes
        xavier, normal = nnx.initializers.xavier_uniform(), nnx.initializers.normal
        self.fc1 = nnx.Linear(config.size**2 * channels, config.width, kernel_init=xavier, rngs=rngs)
        self.fc2 = nnx.Linear(config.width, config.width, kernel_init=xavier, rngs=rngs)
        self.cls = nnx.Linear(config.width, classes + 1, kernel_init=normal(0.01), rngs=rngs)
        self.box = nnx.Linear(config.width, 4 * self.boxes, kernel_init=normal(0.001), rngs=rngs)

    def __call__(
        self, features: Pyramid, rois: Float[AnyArray, "b k 4"], strides: tuple[int, ...]
    ) -> tuple[Float[Array, "b k d"], Float[Array, "b k e 4"]]:
        """Class logits (``d`` is classes + 1) and offsets (``e`` is classes, or 1 if agnostic), in float32."""
        pooled = pool_rois(self.config, features, rois, strides, size=self.config.size)
        x = jax.nn.relu(self.fc1(pooled.reshape(*rois.shape[:2], -1)))
        x = jax.nn.relu(self.fc2(x))
        deltas = self.box(x).reshape(*rois.shape[:2], self.boxes, 4)
        return self.cls(x).astype(jnp.float32), deltas.astype(jnp.float32)


def sample_rois(
    config: RoIConfig,
    classes: int,
    proposals: Float[AnyArray, "k 4"],
    real: Bool[AnyArray, " k"],
    truth: Batch,
    key: jax.Array,
) -> tuple[SampledRoIs, Bool[Array, " s"]]:
    """One image's RoIs: proposals and ground truth, matched and sampled.

    Args:
      config: of the head.
      classes: number of categories.
      proposals: boxes in pixels.
      real: proposals that are not padding.
      truth: one image of a batch, without the dimension ``b``.
      key: random key of the image.

    Returns:
      The RoIs, and which of them are boxes of the ground truth.
    """
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
    chosen = sample(key, matches.positive, matches.negative, count=config.samples, fraction=config.positive_fraction)
    target = matches.target[chosen.index]
    labels = jnp.where(chosen.positive, truth.labels[target], classes)
    rois = jnp.where(chosen.valid[:, None], boxes[chosen.index], NO_ROI)
    targets = jnp.where(chosen.positive[:, None], truth.boxes[target], rois)
    sampled = SampledRoIs(rois, labels, chosen.positive, chosen.valid, targets, target)
    return sampled, chosen.valid & (chosen.index < truth.boxes.shape[0])


def roi_loss(
    config: RoIConfig,
    logits: Float[Array, "b s d"],
    deltas: Float[Array, "b s e 4"],
    losses: DetectionLosses,
    sampled: SampledRoIs,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Classification and box losses of a head's outputs, over all sampled RoIs of the batch.

    Args:
      config: of the head.
      logits, deltas: as ``RoIHead`` gives them.
      losses: of the head.
      sampled: the RoIs.
    """
    classes = logits.shape[-1] - 1
    rois, labels, positive, valid, targets, _ = sampled
    which = jnp.zeros_like(labels) if config.class_agnostic else jnp.minimum(labels, classes - 1)
    own = jnp.take_along_axis(deltas, which[..., None, None], axis=2)[:, :, 0]
    decoded = box_ops.decode_deltas(rois, own, config.stds)
    predicted = jnp.where(positive[..., None], decoded, rois)
    iou = jax.lax.stop_gradient(jnp.where(positive, box_ops.iou(predicted, targets), 1.0))
    encoded = box_ops.encode_deltas(rois, targets, config.stds)
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
