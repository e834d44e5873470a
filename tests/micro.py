"""Detectors with few layers and losses that aren't data, for tests that compile much and compute little."""

import dataclasses

from cse_jax.language import spaces
from detectors.losses import DetectionLosses, resolve_pair
from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.models.fcos import fcos_tiny
from detectors.models.fpn import FPNConfig
from detectors.models.resnet import tiny

FEATURES = dict(
    backbone=tiny(depths=(1, 1), widths=(8, 16), stem_width=8, outputs=(1, 2)), fpn=FPNConfig(channels=16, extra="none")
)

FLAGS = [  # of a script that trains a small detector
    "--config.detector.backbone.depths=(1, 1)",
    "--config.detector.backbone.widths=(8, 16)",
    "--config.detector.backbone.stem_width=8",
    "--config.detector.backbone.outputs=(1, 2)",
    "--config.detector.fpn.channels=16",
]


def micro_fcos(classes: int):
    return dataclasses.replace(fcos_tiny(classes), **FEATURES, towers=1, norm_groups=4)


def micro_faster_rcnn(classes: int):
    return dataclasses.replace(faster_rcnn_tiny(classes), **FEATURES)


def library_losses(detector) -> DetectionLosses:
    """The detector's usual losses as code, which compiles in two thirds of the time of a step that takes formulas."""
    cls = "cross_entropy" if detector.cls_space == spaces.MULTI_CLASS else "focal_loss"
    return resolve_pair(detector.cls_space, cls=cls, box="giou_loss", box_weight=detector.box_weight)
