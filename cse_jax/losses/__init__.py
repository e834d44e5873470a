"""The known detection losses, as plain functions: to train with, and to compare a searched loss against.

A loss takes predictions and targets first and the rest by keyword, reduces nothing over boxes, and treats ``mask`` and
``weights`` as every other.  The two GHM losses also return the state of their gradient density.
"""

from cse_jax.losses._classification import (
    binary_cross_entropy,
    cross_entropy,
    cse_autoloss_a_cls,
    cse_autoloss_b_cls,
    focal_loss,
    iou_weighted_binary_cross_entropy,
    iou_weighted_cross_entropy,
    poly1_cross_entropy,
    quality_focal_loss,
    varifocal_loss,
)
from cse_jax.losses._ghm import ghm_c_loss, ghm_r_loss
from cse_jax.losses._regression import (
    balanced_l1_loss,
    bounded_iou_loss,
    ciou_loss,
    cse_autoloss_a_reg,
    cse_autoloss_b_reg,
    diou_loss,
    giou_loss,
    iou_loss,
    l1_loss,
    log_iou_loss,
    smooth_l1_loss,
)

__all__ = [
    "balanced_l1_loss",
    "binary_cross_entropy",
    "bounded_iou_loss",
    "ciou_loss",
    "cross_entropy",
    "cse_autoloss_a_cls",
    "cse_autoloss_a_reg",
    "cse_autoloss_b_cls",
    "cse_autoloss_b_reg",
    "diou_loss",
    "focal_loss",
    "ghm_c_loss",
    "ghm_r_loss",
    "giou_loss",
    "iou_loss",
    "iou_weighted_binary_cross_entropy",
    "iou_weighted_cross_entropy",
    "l1_loss",
    "log_iou_loss",
    "poly1_cross_entropy",
    "quality_focal_loss",
    "smooth_l1_loss",
    "varifocal_loss",
]
