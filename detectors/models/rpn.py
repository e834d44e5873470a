"""The region proposal network (Ren et al. 2015).  Its own losses are fixed; searched losses never replace them."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from cse_jax.losses import smooth_l1_loss
from cse_jax.ranges import Amount, Items, Positive, PositiveAmount, PositiveShare, Share
from detectors.models.convolution import Conv
from detectors.ops import boxes as box_ops
from detectors.ops.anchors import Anchors, fitting_shift, pyramid_anchors
from detectors.ops.matching import match
from detectors.ops.nms import nms
from detectors.ops.padding import inside_padded_image
from detectors.ops.sampling import sample
from detectors.parallel import map_images
from detectors.structures import AnyArray, Batch

_STDS = (1.0, 1.0, 1.0, 1.0)


@dataclasses.dataclass
class RPNConfig:
    """Anchors, assignment, sampling and proposals.

    Attributes:
      scale, ratios: of anchors: side over stride; height over width.
      whole_pixel_anchors: round the anchors' distances from centre to edge.
      fit_image: spread anchors evenly over the image where a stride does not divide its side.
      positive_iou, negative_iou, low_quality_iou: of the assignment.
      low_quality_keeps_best: an anchor matched with low quality keeps the box that it overlaps most itself.
      box_beta: distance up to which the box loss is quadratic (Smooth L1); 0 is L1.
      samples, positive_fraction: anchors per image in the loss.
      per_level, test_per_level: proposals per level before suppression, in training and at test.
      nms_threshold: suppression within a level.
      train_proposals, test_proposals: proposals per image after it.
    """

    scale: PositiveAmount = 8.0
    ratios: Annotated[tuple[PositiveAmount, ...], Items()] = (0.5, 1.0, 2.0)
    whole_pixel_anchors: bool = False
    fit_image: bool = False
    positive_iou: Share = 0.7
    negative_iou: Share = 0.3
    low_quality_iou: Share = 0.3
    low_quality_keeps_best: bool = False
    box_beta: Amount = 0.0
    samples: Positive = 256
    positive_fraction: PositiveShare = 0.5
    per_level: Positive = 2000
    test_per_level: Positive = 2000
    nms_threshold: Share = 0.7
    train_proposals: Positive = 1000
    test_proposals: Positive = 1000


class RPN(nnx.Module):
    """Objectness and box offsets at every anchor."""

    def __init__(self, config: RPNConfig, channels: int, strides: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.config, self.strides = config, strides

        def conv(outputs: int, kernel: int) -> nnx.Conv:
            pad = [(kernel // 2, kernel // 2)] * 2
            init = nnx.initializers.normal(0.01)
            return Conv(channels, outputs, (kernel, kernel), padding=pad, kernel_init=init, rngs=rngs)

        shapes = len(config.ratios)
        self.conv, self.objectness, self.deltas = conv(channels, 3), conv(shapes, 1), conv(4 * shapes, 1)

    def __call__(
        self, features: list[Float[Array, "b _h _w c"]], image_shape: tuple[int, int]
    ) -> tuple[Anchors, Float[Array, "b n"], Float[Array, "b n 4"]]:
        """Anchors, and logits and offsets at each, in float32."""
        logits, deltas = [], []
        for x in features:
            x = jax.nn.relu(self.conv(x))
            logits.append(self.objectness(x).reshape(x.shape[0], -1))
            deltas.append(self.deltas(x).reshape(x.shape[0], -1, 4))
        config = self.config
        anchors = pyramid_anchors(
            image_shape,
            self.strides,
            scale=config.scale,
            ratios=config.ratios,
            whole_pixels=config.whole_pixel_anchors,
        )
        logits, deltas = (jnp.concatenate(parts, axis=1).astype(jnp.float32) for parts in (logits, deltas))
        return anchors, logits, deltas

    def loss(
        self,
        anchors: Anchors,
        logits: Float[Array, "b n"],
        deltas: Float[Array, "b n 4"],
        batch: Batch,
        keys: jax.Array,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Cross-entropy of the sampled anchors and (Smooth) L1 of the positives' offsets, over all sampled anchors.

        Args:
          anchors, logits, deltas: as ``__call__`` gives them.
          batch: images and padded ground truth.
          keys: a random key for each image.
        """
        config = self.config

        def one(logits, deltas, truth, valid, size, key):
            boxes, usable = self._placed(anchors, size)
            matches = match(
                boxes,
                usable,
                truth,
                valid,
                positive_iou=config.positive_iou,
                negative_iou=config.negative_iou,
                low_quality_iou=config.low_quality_iou,
                low_quality_keeps_best=config.low_quality_keeps_best,
            )
            chosen = sample(
                key, matches.positive, matches.negative, count=config.samples, fraction=config.positive_fraction
            )
            score, index = logits[chosen.index], chosen.index
            target = box_ops.encode_deltas(boxes[index], truth[matches.target[index]], _STDS)
            cross_entropy = jax.nn.softplus(score) - score * chosen.positive
            beta, predicted = config.box_beta, deltas[index]
            distance = smooth_l1_loss(predicted, target, beta=beta) if beta else jnp.abs(predicted - target)
            return (
                jnp.where(chosen.valid, cross_entropy, 0.0).sum(),
                jnp.where(chosen.positive, distance.sum(-1), 0.0).sum(),
                chosen.valid.sum(),
            )

        cls, box, count = map_images(one, logits, deltas, batch.boxes, batch.valid, batch.image_size, keys)
        total = jnp.maximum(count.sum(), 1)
        return cls.sum() / total, box.sum() / total

    def _placed(
        self, anchors: Anchors, image_size: Float[Array, " 2"]
    ) -> tuple[Float[Array, "n 4"], Bool[Array, " n"]]:
        """One image's anchors, and which of them are not in the padding."""
        boxes, centre = anchors.boxes, anchors.centre
        inside = inside_padded_image(centre, image_size)  # as shifted, some of the padding would be inside
        if self.config.fit_image:
            boxes += jnp.tile(fitting_shift(centre, anchors.stride, image_size), 2)
        return boxes, inside

    def propose(
        self,
        anchors: Anchors,
        logits: Float[AnyArray, "b n"],
        deltas: Float[AnyArray, "b n 4"],
        image_size: Float[AnyArray, "b 2"],
        *,
        count: int,
        per_level: int,
    ) -> tuple[Float[Array, "b k 4"], Bool[Array, "b k"]]:
        """The best boxes after suppression within each level, clipped to the image, and which of them are real.

        Args:
          anchors, logits, deltas: as ``__call__`` gives them.
          image_size: (height, width) inside the padding, pixels.
          count: boxes per image.
          per_level: boxes per level that enter suppression.
        """
        config = self.config

        def one(logits, deltas, size):
            all_boxes, usable = self._placed(anchors, size)
            scores = jnp.where(usable, logits, -jnp.inf)
            boxes, best = [], []
            for level in range(len(self.strides)):
                start, stop = anchors.level.searchsorted([level, level + 1])
                score, index = lax.top_k(scores[start:stop], min(per_level, stop - start))
                index = start + index
                decoded = box_ops.clip(box_ops.decode_deltas(all_boxes[index], deltas[index], _STDS), size)
                real = jnp.isfinite(score) & (box_ops.area(decoded) > 0.0)
                keep = nms(decoded, score, real, iou_threshold=config.nms_threshold)
                boxes.append(decoded)
                best.append(jnp.where(keep, score, -jnp.inf))
            boxes, best = jnp.concatenate(boxes), jnp.concatenate(best)
            score, index = lax.top_k(best, min(count, best.shape[0]))
            return boxes[index], jnp.isfinite(score)

        boxes, real = map_images(one, *jax.lax.stop_gradient((logits, deltas)), image_size)
        return boxes, real
