"""Weights of PyTorch's and Keras's files, brought into our detectors; no code in a file is run."""

from detectors.weights.importing import (
    CLASSIFIER,
    RESNET,
    WeightsError,
    assign,
    load_faster_rcnn,
    load_fcos,
    load_mask_rcnn,
    load_mobilenet,
    load_resnet,
)

__all__ = [
    "CLASSIFIER",
    "RESNET",
    "WeightsError",
    "assign",
    "load_faster_rcnn",
    "load_fcos",
    "load_mask_rcnn",
    "load_mobilenet",
    "load_resnet",
]
