"""Detectors with as few layers as can be, for tests that compile much and compute little."""

import dataclasses

from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.models.fcos import fcos_tiny
from detectors.models.fpn import FPNConfig
from detectors.models.resnet import tiny

FEATURES = dict(
    backbone=tiny(depths=(1, 1), widths=(8, 16), stem_width=8, outputs=(1, 2)), fpn=FPNConfig(channels=16, extra="none")
)


def micro_fcos(classes: int):
    return dataclasses.replace(fcos_tiny(classes), **FEATURES, towers=1, norm_groups=4)


def micro_faster_rcnn(classes: int):
    return dataclasses.replace(faster_rcnn_tiny(classes), **FEATURES)
