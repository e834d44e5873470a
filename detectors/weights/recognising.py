"""Says what a file of weights is of, by the names and shapes in it, where it is not what was asked for."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Tensors = Mapping[str, np.ndarray]


class _Kind(NamedTuple):
    what: str
    has: Callable[[Tensors], bool]


def _all_of(*names: str, without: tuple[str, ...] = ()) -> Callable[[Tensors], bool]:
    return lambda tensors: all(name in tensors for name in names) and not any(name in tensors for name in without)


def _some(pattern: str) -> Callable[[Tensors], bool]:
    return lambda tensors: any(re.match(pattern, name) for name in tensors)


_PREDICTOR = "roi_heads.box_predictor.cls_score.weight"
_MASK = "roi_heads.mask_predictor.mask_fcn_logits.weight"
_DENSE = "head.classification_head.cls_logits.weight"
_CENTRENESS = "head.regression_head.bbox_ctrness.weight"

_KINDS = (  # the first that fits
    _Kind(
        "torchvision's fasterrcnn_resnet50_fpn_v2 or maskrcnn_resnet50_fpn_v2",
        _all_of(_PREDICTOR, "roi_heads.box_head.0.0.weight"),
    ),
    _Kind("torchvision's Keypoint R-CNN", _some(r"roi_heads\.keypoint_")),
    _Kind(
        "a Faster or Mask R-CNN with MobileNet", _all_of(_PREDICTOR, without=("backbone.body.layer1.0.conv1.weight",))
    ),
    _Kind("torchvision's Mask R-CNN", _all_of(_PREDICTOR, _MASK)),
    _Kind("torchvision's Faster R-CNN", _all_of(_PREDICTOR)),
    _Kind("torchvision's FCOS", _all_of(_DENSE, _CENTRENESS)),
    _Kind("torchvision's RetinaNet", _all_of(_DENSE)),
    _Kind("torchvision's SSD", _some(r"head\.classification_head\.module_list\.")),
    _Kind("a detector of MMDetection", _some(r"(bbox_head|roi_head|rpn_head)\.")),
    _Kind(
        "a detector of Detectron2",
        _some(r"(proposal_generator|roi_heads\.box_predictor\.bbox_pred|head\.cls_subnet)\b"),
    ),
    _Kind("a transformer", _some(r"(model\.)?(encoder|decoder)\.|(transformer|vit|bert)\.")),
    _Kind("a ResNet with a deep stem (resnet50d and the like)", _all_of("conv1.0.weight", "layer1.0.conv1.weight")),
    _Kind("a ResNet", _all_of("conv1.weight", "layer1.0.conv1.weight")),
)


def recognised(tensors: Tensors) -> str:
    """What the tensors are the weights of; empty if that is not known."""
    what = next((kind.what for kind in _KINDS if kind.has(tensors)), "")
    return _resnet(tensors) if what == "a ResNet" else what


def _resnet(tensors: Tensors) -> str:
    """The depth of a ResNet, by its blocks."""
    blocks = tuple(
        len({match[1] for name in tensors if (match := re.match(rf"layer{stage}\.(\d+)\.", name))})
        for stage in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in tensors
    depths: dict[tuple[int, ...], int] = {
        (2, 2, 2, 2): 18,
        (3, 4, 6, 3): 50 if bottleneck else 34,
        (3, 4, 23, 3): 101,
        (3, 8, 36, 3): 152,
    }
    return f"ResNet-{depths[blocks]}" if blocks in depths else "a ResNet"


def classes(tensors: Tensors) -> int | None:
    """Labels, without the background, of one of torchvision's detectors that are read here."""
    if _PREDICTOR in tensors:
        return len(tensors[_PREDICTOR]) - 1
    if _CENTRENESS in tensors and _DENSE in tensors:
        return len(tensors[_DENSE]) - 1
    return None
