"""Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017) and a box loss on decoded boxes."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cse_jax.errors import InputError
from cse_jax.language import spaces
from cse_jax.ranges import Amount, Positive, Share
from detectors.losses import DetectionLosses
from detectors.models.backbone import BackboneConfig, build_backbone
from detectors.models.detector import Detector
from detectors.models.fpn import FPN, FPNConfig
from detectors.models.resnet import resnet50, tiny
from detectors.models.roi_head import NO_ROI, RoIConfig, RoIHead, SampledRoIs, roi_loss, sample_rois
from detectors.models.rpn import RPN, RPNConfig
from detectors.ops import boxes as box_ops
from detectors.ops.nms import select_detections
from detectors.ops.padding import Pyramid
from detectors.parallel import map_images
from detectors.structures import AnyArray, Batch, Detections, Images


@dataclasses.dataclass
class FasterRCNNConfig:
    """Faster R-CNN; the defaults are those of R50-FPN on COCO (MMDetection 2.8).

    Attributes:
      classes: number of categories.
      backbone, fpn, rpn, roi: the parts.
      score_threshold, nms_threshold, max_candidates, max_detections: of the final selection.
      min_side: detections that have a side below it once clipped to the image are dropped, pixels.
    """

    classes: Positive = 80
    backbone: BackboneConfig = dataclasses.field(default_factory=lambda: resnet50(outputs=(1, 2, 3, 4)))
    fpn: FPNConfig = dataclasses.field(default_factory=lambda: FPNConfig(extra="max_pool", extra_levels=1))
    rpn: RPNConfig = dataclasses.field(default_factory=RPNConfig)
    roi: RoIConfig = dataclasses.field(default_factory=RoIConfig)
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.5
    max_candidates: Positive = 2000
    max_detections: Positive = 100
    min_side: Amount = 0.0

    def check(self) -> None:
        """Raises InputError for more levels than there are."""
        levels = len(self.fpn.strides(self.backbone.strides))
        if self.roi.levels > levels:
            raise InputError(f"roi.levels={self.roi.levels} must not exceed the {levels} levels of the pyramid")


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


class FasterRCNN(Detector):
    """The detector."""

    cls_space = spaces.MULTI_CLASS
    box_units = "pixels"
    box_weight = 10.0
    normalisers = {
        "cls": "the number of sampled RoIs of the batch",
        "box": "the number of sampled RoIs of the batch, of objects and of background",
    }

    def __init__(self, config: FasterRCNNConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.strides = config.fpn.strides(config.backbone.strides)
        self.backbone = build_backbone(config.backbone, rngs=rngs)
        self.fpn = FPN(config.fpn, config.backbone.channels, rngs=rngs)
        self.rpn = RPN(config.rpn, config.fpn.channels, self.strides, rngs=rngs)
        self.roi = RoIHead(config.roi, config.fpn.channels, config.classes, rngs=rngs)

    @staticmethod
    def is_output(path: tuple) -> bool:
        """Whether a parameter, given by its path, belongs to the last layers."""
        return path[0] in ("roi", "heads") and path[-2] in ("cls", "box")

    def loss(
        self, batch: Batch, losses: DetectionLosses, *, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Total loss and its parts; the second stage's are normalised by all sampled RoIs of the batch.

        Args:
          batch: images and padded ground truth.
          losses: classification and box losses of the second stage.
          key: random key of the sampling of anchors and RoIs.
        """
        total, parts, _, _ = self._losses(batch, losses, key)
        return total, parts

    def _losses(
        self, batch: Batch, losses: DetectionLosses, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]], Pyramid, SampledRoIs]:
        """``loss``, and what further heads need: the pyramid's features and the sampled RoIs."""
        features, proposals, real, parts, roi_key = self._propose(batch, key)
        sampled = map_images(self._sample, proposals, real, batch, roi_key)
        cls, box = self._roi_loss(features, losses, sampled)
        total = parts["rpn_cls"] + parts["rpn_box"] + cls + box
        parts |= {"loss": total, "cls": cls, "box": box}
        parts |= {"positives": sampled.positive.sum().astype(jnp.float32)}
        return total, parts, features, sampled

    def _propose(
        self, batch: Batch, key: jax.Array
    ) -> tuple[
        Pyramid,
        Float[Array, "b k 4"],
        Bool[Array, "b k"],
        dict[str, Float[Array, ""]],
        jax.Array,
    ]:
        """The first stage in training: features, proposals and which are real, the RPN's losses, keys for the rest."""
        features = self.features(batch.image, batch.image_size)
        height, width = batch.image.shape[1:3]
        anchors, objectness, deltas = self.rpn(features.levels, (height, width))
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
        return features, proposals, real, {"rpn_cls": rpn_cls, "rpn_box": rpn_box}, roi_key

    def _sample(
        self, proposals: Float[Array, "k 4"], real: Bool[Array, " k"], truth: Batch, key: jax.Array
    ) -> SampledRoIs:
        """One image's RoIs."""
        return sample_rois(self.config.roi, self.config.classes, proposals, real, truth, key)[0]

    def _roi_loss(
        self, features: Pyramid, losses: DetectionLosses, sampled: SampledRoIs
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Classification and box losses of the sampled RoIs."""
        logits, deltas = self.roi(features, sampled.boxes, self.strides)
        return roi_loss(self.config.roi, logits, deltas, losses, sampled)

    def predict(self, image: Images, image_size: Float[AnyArray, "b 2"]) -> Detections:
        """Detections, best first, in pixels of the padded image."""
        return self.detect(image, image_size)[0]

    def detect(self, image: Images, image_size: Float[AnyArray, "b 2"]) -> tuple[Detections, Int[Array, " b"]]:
        """Detections as ``predict``, and the pairs over the score threshold that exceeded ``max_candidates``."""
        height, width = image.shape[1:3]
        return self._detect(self.features(image, image_size), (height, width), image_size)

    def _detect(
        self,
        features: Pyramid,
        image_shape: tuple[int, int],
        image_size: Float[AnyArray, "b 2"],
    ) -> tuple[Detections, Int[Array, " b"]]:
        """``detect`` from the pyramid's features and the shape of the padded image."""
        config = self.config
        anchors, objectness, deltas = self.rpn(features.levels, image_shape)
        rois, real = self.rpn.propose(
            anchors,
            objectness,
            deltas,
            image_size,
            count=config.rpn.test_proposals,
            per_level=config.rpn.test_per_level,
        )
        rois = jnp.where(real[..., None], rois, NO_ROI)
        logits, boxes = self._refine(features, rois, image_size)
        scores = jax.nn.softmax(logits, axis=-1)[..., :-1]

        def one(boxes, scores, real, size):
            boxes = box_ops.clip(boxes, size)  # of each class, or one for all
            wide = (boxes[..., 2:] - boxes[..., :2]).min(-1) >= config.min_side
            return select_detections(
                boxes if boxes.shape[1] == scores.shape[1] else boxes[:, 0],
                jnp.where(wide, scores, 0.0),
                real,
                score_threshold=config.score_threshold,
                iou_threshold=config.nms_threshold,
                max_candidates=config.max_candidates,
                max_detections=config.max_detections,
            )

        return map_images(one, boxes, scores, real, image_size)

    def _refine(
        self,
        features: Pyramid,
        rois: Float[AnyArray, "b k 4"],
        image_size: Float[AnyArray, "b 2"],
    ) -> tuple[Float[Array, "b k d"], Float[Array, "b k e 4"]]:
        """The second stage at test: class logits and boxes of the proposals."""
        logits, deltas = self.roi(features, rois, self.strides)
        return logits, box_ops.decode_deltas(rois[:, :, None], deltas, self.config.roi.stds)
