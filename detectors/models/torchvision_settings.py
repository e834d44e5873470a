"""The settings of torchvision's detectors, under which their weights and figures carry over.

Where torchvision departs from MMDetection: anchors of whole pixels, spread evenly over the image; Smooth L1 in the RPN;
RoIAlign without half a cell's shift; masks put into boxes of whole pixels; FCOS with points in the corners of their
cells, levels without their limits, the paper's centreness and the square root of the score; batch norms that do not
train at all.  Categories are numbered from 0 here and from 1 in torchvision: ours are one less, and COCO's 90 numbers
keep their gaps.
"""

from detectors.losses import DetectionLosses, resolve_pair
from detectors.models.faster_rcnn import FasterRCNN, FasterRCNNConfig
from detectors.models.fcos import FCOS, FCOSConfig
from detectors.models.mask_rcnn import MaskConfig, MaskRCNNConfig
from detectors.models.resnet import ResNetConfig, resnet50
from detectors.models.roi_head import RoIConfig
from detectors.models.rpn import RPNConfig


def fasterrcnn_resnet50_fpn(classes: int = 90, *, norm_eps: float = 0.0) -> FasterRCNNConfig:
    """torchvision's Faster R-CNN.

    Args:
      classes: categories without background.
      norm_eps: of the batch norms: 0 for torchvision's COCO weights, 1e-5 for a training from ImageNet weights.
    """
    return FasterRCNNConfig(classes=classes, **_rcnn(norm_eps))


def maskrcnn_resnet50_fpn(classes: int = 90, *, norm_eps: float = 0.0) -> MaskRCNNConfig:
    """torchvision's Mask R-CNN; arguments as ``fasterrcnn_resnet50_fpn``."""
    return MaskRCNNConfig(classes=classes, mask=MaskConfig(soft_targets=True, whole_pixels=True), **_rcnn(norm_eps))


def fcos_resnet50_fpn(classes: int = 90) -> FCOSConfig:
    """torchvision's FCOS; ``classes`` without background."""
    return FCOSConfig(
        classes=classes,
        backbone=_backbone(),
        point_offset=0.0,
        fit_image=True,
        open_ranges=True,
        level_scales=False,
        weight_by_quality=False,
        count_images=False,
        geometric_centreness=True,
        root_score=True,
        score_threshold=0.2,
        candidates_are_pairs=True,
    )


def rcnn_losses() -> DetectionLosses:
    """The second stage's losses: cross-entropy, and Smooth L1 on the encoded offsets."""
    return resolve_pair(FasterRCNN.cls_space, cls="cross_entropy", box=f"smooth_l1_loss(beta={1 / 9})")


def fcos_losses() -> DetectionLosses:
    """Focal loss and GIoU."""
    return resolve_pair(FCOS.cls_space)


def _backbone(**changes) -> ResNetConfig:
    return resnet50(frozen_affine=True, **changes)


def _rcnn(norm_eps: float) -> dict:
    return dict(
        backbone=_backbone(outputs=(1, 2, 3, 4), norm_eps=norm_eps),
        rpn=RPNConfig(
            whole_pixel_anchors=True,
            fit_image=True,
            low_quality_iou=0.0,
            low_quality_keeps_best=True,
            box_beta=1 / 9,
            test_per_level=1000,
            train_proposals=2000,
        ),
        roi=RoIConfig(aligned=False),
        min_side=0.01,
    )
