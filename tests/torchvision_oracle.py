"""torchvision's detectors as an oracle, on a torch without torchvision's compiled operators.

Importing this registers the operators that the detectors need, written in Python, and then imports torchvision; without
either package, the tests that import this are skipped.  RoIAlign follows the compiled rule: torchvision's own Python
version (``torchvision.ops.roi_align._roi_align``) clamps points that lie more than a cell outside of a map, which the
compiled one counts as 0.
"""

import importlib
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")


def nms(boxes, scores, iou_threshold):
    """Greedy suppression; the kept boxes' indices, best first."""
    order = torch.argsort(scores, descending=True, stable=True)
    ranked = boxes[order].double()
    area = (ranked[:, 2:] - ranked[:, :2]).prod(1)
    low = torch.maximum(ranked[:, None, :2], ranked[None, :, :2])
    high = torch.minimum(ranked[:, None, 2:], ranked[None, :, 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    overlapping = (inner > iou_threshold * (area[:, None] + area[None] - inner)).numpy()
    suppressed = np.zeros(len(order), bool)
    for k in range(len(order)):
        if not suppressed[k]:
            suppressed[k + 1 :] |= overlapping[k, k + 1 :]
    return order[torch.from_numpy(~suppressed)]


def roi_align(features, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    """RoIAlign one RoI at a time, as the product of a weight matrix per axis with the map."""
    results = [features.new_zeros(0, features.shape[1], pooled_height, pooled_width)]
    for roi in rois:
        x1, y1, x2, y2 = (roi[1:] * spatial_scale - (0.5 if aligned else 0.0)).tolist()
        rows = _weights(y1, y2, pooled_height, features.shape[2], sampling_ratio, aligned)
        columns = _weights(x1, x2, pooled_width, features.shape[3], sampling_ratio, aligned)
        results.append((rows @ features[int(roi[0])] @ columns.T)[None])
    return torch.cat(results)


def _weights(low, high, bins, cells, sampling_ratio, aligned):
    length = high - low if aligned else max(high - low, 1.0)
    points = sampling_ratio if sampling_ratio > 0 else max(math.ceil(length / bins), 1)
    at = low + (torch.arange(bins)[:, None] + (torch.arange(points) + 0.5) / points) * (length / bins)
    weight = ((at >= -1.0) & (at <= cells)).float() / points
    at = at.clamp(0, cells - 1)
    first = at.long()
    weights = torch.zeros(bins, cells)
    weights.scatter_add_(1, first, weight * (1 - (at - first)))
    return weights.scatter_add_(1, (first + 1).clamp(max=cells - 1), weight * (at - first))


def python_roi_align():
    """torchvision's Python version, uncompiled."""
    return importlib.import_module("torchvision.ops.roi_align")._roi_align.__wrapped__


def _register():
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
        " int sampling_ratio, bool aligned) -> Tensor"
    )
    library.impl("nms", nms, "CPU")
    library.impl("roi_align", roi_align, "CPU")
    pytest.importorskip("torchvision")
    for name in ("torchvision.extension", "torchvision.ops.roi_align"):
        importlib.import_module(name)._has_ops = lambda: True
    return library


_LIBRARY = _register()  # its operators live as long as it does
