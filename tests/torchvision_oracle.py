"""torchvision's detectors as an oracle, on a torch without torchvision's compiled operators.

Import this before torchvision: it registers the three operators that the detectors need, in Python.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")


def _nms(boxes, scores, iou_threshold):
    order = torch.argsort(scores, descending=True, stable=True)
    sorted_boxes = boxes[order].double()
    area = (sorted_boxes[:, 2:] - sorted_boxes[:, :2]).prod(1)
    low = torch.maximum(sorted_boxes[:, None, :2], sorted_boxes[None, :, :2])
    high = torch.minimum(sorted_boxes[:, None, 2:], sorted_boxes[None, :, 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    overlapping = (inner > iou_threshold * (area[:, None] + area[None] - inner)).numpy()
    suppressed = np.zeros(len(order), bool)
    for k in range(len(order)):
        if not suppressed[k]:
            suppressed[k + 1 :] |= overlapping[k, k + 1 :]
    return order[torch.from_numpy(~suppressed)]


def _roi_align_op(features, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    """torchvision's Python rule, a few RoIs at a time and, where it samples every pixel, near the RoI only."""
    rule = _roi_align_in_python()
    pooled = (pooled_height, pooled_width, sampling_ratio, aligned)
    if sampling_ratio > 0:
        parts = [rule(features, part, spatial_scale, *pooled) for part in rois.split(64)]
        return torch.cat(parts) if len(rois) else features.new_zeros(0, features.shape[1], pooled_height, pooled_width)
    results = []
    for roi in rois:
        x, y = (max(int(low * spatial_scale) - 2, 0) for low in roi[1:3])
        right, bottom = (int(high * spatial_scale) + 4 for high in roi[3:])
        near = features[int(roi[0]) : int(roi[0]) + 1, :, y:bottom, x:right]
        moved = roi[None] * torch.tensor([0.0, *[spatial_scale] * 4]) - torch.tensor([0.0, x, y, x, y])
        results.append(rule(near, moved, 1.0, *pooled))
    return torch.cat(results)


def _roi_align_in_python():
    import sys

    return sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__


def _load():
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
        " int sampling_ratio, bool aligned) -> Tensor"
    )
    library.impl("nms", _nms, "CPU")
    library.impl("roi_align", _roi_align_op, "CPU")
    pytest.importorskip("torchvision")
    import importlib

    extension = importlib.import_module("torchvision.extension")
    module = importlib.import_module("torchvision.ops.roi_align")
    extension._has_ops = module._has_ops = lambda: True
    return library


_LIBRARY = _load()  # must live as long as its operators
