"""Reads weights from files of PyTorch and Keras into our detectors, without running any code in a file."""

from detectors.weights.importing import (
    CLASSIFIER,
    FCOS_TABLE,
    RESNET,
    MissingWeightsError,
    WeightsError,
    assign,
    faster_rcnn_table,
    load_faster_rcnn,
    load_fcos,
    load_mask_rcnn,
    load_mobilenet,
    load_resnet,
    load_whole,
    mask_rcnn_table,
)

__all__ = [
    "CLASSIFIER",
    "FCOS_TABLE",
    "MissingWeightsError",
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
    "load_whole",
]
