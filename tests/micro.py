"""Losses that aren't data, and flags of small detectors, for tests that compile much and compute little."""

from cse_jax.language import spaces
from detectors.losses import DetectionLosses, resolve_pair

FLAGS = [  # of a script that trains a small detector
    "--config.detector.backbone.depths=(1, 1)",
    "--config.detector.backbone.widths=(8, 16)",
    "--config.detector.backbone.stem_width=8",
    "--config.detector.backbone.outputs=(1, 2)",
    "--config.detector.fpn.channels=16",
]


def library_losses(detector) -> DetectionLosses:
    """The detector's usual losses as code, which compiles in two thirds of the time of a step that takes formulas."""
    cls = "cross_entropy" if detector.cls_space == spaces.MULTI_CLASS else "focal_loss"
    return resolve_pair(detector.cls_space, cls=cls, box="giou_loss", box_weight=detector.box_weight)
