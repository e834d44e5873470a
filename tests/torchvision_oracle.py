"""torchvision's detectors as an oracle, on a torch without torchvision's compiled operators.

Importing this registers the operators that the detectors need, written in Python, and then imports torchvision; without
either package, the tests that import this are skipped.  RoIAlign follows the compiled rule: torchvision's own Python
version (``torchvision.ops.roi_align._roi_align``) clamps points that lie more than a cell outside of a map, which the
compiled one counts as 0.
"""

import functools
import importlib
import math

import numpy as np
from extras import need

torch = need("torch")
torch.set_num_threads(1)  # two processes run tests, and threads would wait for each other


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
    """RoIAlign one RoI at a time, as the product of all its bins' weights with the map."""
    results = [features.new_zeros(0, features.shape[1], pooled_height, pooled_width)]
    for roi in rois:
        x1, y1, x2, y2 = (roi[1:] * spatial_scale - (0.5 if aligned else 0.0)).tolist()
        rows = _weights(y1, y2, pooled_height, features.shape[2], sampling_ratio, aligned)
        columns = _weights(x1, x2, pooled_width, features.shape[3], sampling_ratio, aligned)
        weights = (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)
        pooled = features[int(roi[0])].flatten(1) @ weights.T
        results.append(pooled.reshape(1, -1, pooled_height, pooled_width))
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
    library.impl("roi_align", roi_align, "CompositeImplicitAutograd")
    need("torchvision")
    for name in ("torchvision.extension", "torchvision.ops.roi_align"):
        importlib.import_module(name)._has_ops = lambda: True
    return library


_LIBRARY = _register()  # its operators live as long as it does


torchvision = importlib.import_module("torchvision")
detection = importlib.import_module("torchvision.models.detection")

CLASSES = 5
SIZES = dict(min_size=128, max_size=160)
DEPTHS = (1, 1, 1, 1)  # of the detectors' backbones: whole networks are compared by their features
PER_LEVEL, PROPOSALS = 300, 100
# Samples per image: more than there are, so that nothing is left to chance.
EVERY_ANCHOR, EVERY_ROI, POSITIVES = 20_000, 208, 0.25
# Layers with the spread and the middle that each of their outputs is given, so that random weights detect something.
HEADS = {
    "rpn.head.cls_logits": (2.0, 0.0),
    "rpn.head.bbox_pred": (0.3, 0.0),
    "roi_heads.box_predictor.cls_score": (2.0, 0.0),
    "roi_heads.box_predictor.bbox_pred": (1.0, 0.0),
    "roi_heads.mask_predictor.mask_fcn_logits": (2.0, 0.0),
    "head.classification_head.cls_logits": (1.5, -4.5),
    "head.regression_head.bbox_reg": (1.0, 2.0),
    "head.regression_head.bbox_ctrness": (1.0, 0.0),
}


def arrays(module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def shake(network, images, *, eps: float = 1e-5) -> None:
    """Random affine parts for every batch norm, and statistics of some images, as a trained network has them.

    Without the statistics features hardly vary over an image, and with strong residual branches rounding grows from
    block to block: either way, detections would hang on the last digits.
    """
    norms = {name: layer for name, layer in network.named_modules() if isinstance(layer, torch.nn.BatchNorm2d)}
    for name, layer in norms.items():
        layer.weight.uniform_(*((0.1, 0.3) if name.endswith("bn3") else (0.4, 0.9)))
        layer.bias.uniform_(-0.2, 0.2)
        layer.momentum = 1.0
    network.train()(images)
    network.eval()
    for layer in norms.values():
        layer.eps = eps


def pictures(sizes):
    """Blurred blobs with noise, (3, h, w) in 0..1."""
    generator = torch.Generator().manual_seed(len(sizes) + sizes[0][0])
    images = []
    for size in sizes:
        blobs = torch.rand(1, 3, 6, 7, generator=generator)
        smooth = torch.nn.functional.interpolate(blobs, size=size, mode="bicubic")[0]
        images.append((smooth + 0.1 * torch.randn(3, *size, generator=generator)).clamp(0, 1))
    return images


@functools.cache
def theirs(name: str):
    """torchvision's detector, less deep, with random weights and heads that give detections of all classes."""
    torch.manual_seed(3)
    options = dict(
        rpn_pre_nms_top_n_train=2 * PER_LEVEL,
        rpn_pre_nms_top_n_test=PER_LEVEL,
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        rpn_batch_size_per_image=EVERY_ANCHOR,
        box_batch_size_per_image=EVERY_ROI,
        box_positive_fraction=POSITIVES,
        box_detections_per_img=30,
    )
    if name.startswith("fcos"):
        options = dict(detections_per_img=400)
    build = getattr(detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=CLASSES + 1, **SIZES, **options).eval()
    images = pictures([(100, 130), (200, 245)])
    body = model.backbone.body
    for stage, depth in enumerate(DEPTHS, start=1):
        body[f"layer{stage}"] = body[f"layer{stage}"][:depth]
    # torchvision sets eps to 0 for the COCO weights of its R-CNNs.
    shake(model.backbone, model.transform(images)[0].tensors, eps=1e-5 if name.startswith("fcos") else 0.0)
    for layer_name, layer in model.named_modules():
        if layer_name in HEADS:
            spread, middle = HEADS[layer_name]
            outputs = []
            handle = layer.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output))
            with torch.no_grad():
                model(images)
                handle.remove()
                values = torch.cat([output.transpose(0, 1).flatten(1) for output in outputs], dim=1)
                factor = spread / values.std(1)
                layer.weight *= factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
                layer.bias -= values.mean(1)
                layer.bias *= factor
                layer.bias += middle
    if name.startswith("fcos"):
        # Class 0 is the background, which training drives out; our detector has no output for it.
        model.head.classification_head.cls_logits.bias.data[0] = -30.0
    return model
