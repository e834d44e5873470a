"""Detectors with the fewest layers, to see that something runs."""

import dataclasses

from detectors.models.faster_rcnn import FasterRCNNConfig, faster_rcnn_tiny
from detectors.models.fcos import FCOSConfig, fcos_tiny
from detectors.models.fpn import FPNConfig
from detectors.models.resnet import tiny

FEATURES = dict(
    backbone=tiny(depths=(1, 1), widths=(8, 16), stem_width=8, outputs=(1, 2)), fpn=FPNConfig(channels=16, extra="none")
)


def fcos_smallest(classes: int = 10) -> FCOSConfig:
    """One layer of 16 channels in each tower."""
    return dataclasses.replace(fcos_tiny(classes), **FEATURES, towers=1, norm_groups=4)


def faster_rcnn_smallest(classes: int = 10) -> FasterRCNNConfig:
    """The small one's heads on features of 16 channels."""
    return dataclasses.replace(faster_rcnn_tiny(classes), **FEATURES)
