"""Weights of PyTorch's and Keras's files, brought into our detectors; no code in a file is run."""

from detectors.weights.importing import (
    CLASSIFIER,
    RESNET,
    WeightsError,
    assign,
    faster_rcnn_table,
    load_faster_rcnn,
    load_fcos,
    load_mask_rcnn,
    load_mobilenet,
    load_resnet,
    mask_rcnn_table,
)

__all__ = [
    "CLASSIFIER",
    "RESNET",
    "WeightsError",
    "assign",
    "faster_rcnn_table",
    "mask_rcnn_table",
    "load_faster_rcnn",
    "load_fcos",
    "load_mask_rcnn",
    "load_mobilenet",
    "load_resnet",
]
