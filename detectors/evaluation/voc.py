"""Mean average precision by the rules of Pascal VOC: one IoU threshold, difficult objects ignored.

Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010. Boxes have exclusive far edges here,
which gives the IoU of VOC's inclusive pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from detectors.evaluation.coco import Found, GroundTruth, NotFinite


class VocMetrics(NamedTuple):
    """Average precision in 0..1; NaN where no ground truth defines it. The means are over the defined categories."""

    map_07: float  # mean of the best precision at recalls 0, .1, ..., 1: VOC 2007
    map_area: float  # area under the monotone precision-recall curve: VOC 2010 and later
    per_category_07: dict[str, float]
    per_category_area: dict[str, float]


def evaluate_voc(found: Found, truth: GroundTruth, categories: Sequence[str], *, threshold: float = 0.5) -> VocMetrics:
    """Scores boxes by the rules of VOC.

    A detection is right if the object of its category that it overlaps most has an IoU of ``threshold`` or more and
    was not found by one with a higher score. If that object is difficult or a crowd, the detection does not count.

    Args:
      found: detections, any number an image.
      truth: objects, in the same pixels.
      categories: names of the labels.
      threshold: least IoU.

    Raises:
      NotFinite: a detection's box or score is not finite.
    """
    if not (np.isfinite(found.scores).all() and np.isfinite(found.boxes).all()):
        raise NotFinite("Detections are not finite: the training that made this detector has diverged.")
    ignored = truth.crowd if truth.difficult is None else truth.crowd | truth.difficult
    eleven, area = {}, {}
    for label, name in enumerate(categories):
        of_label = truth.labels == label
        objects = int((of_label & ~ignored).sum())
        if not objects:
            eleven[name] = area[name] = float("nan")
            continue
        right = _judge(found, truth, label, ignored, threshold)
        recall = np.cumsum(right) / objects
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        eleven[name], area[name] = eleven_point_ap(recall, precision), area_ap(recall, precision)
    return VocMetrics(_mean(eleven), _mean(area), eleven, area)


def eleven_point_ap(recall: Float[np.ndarray, " n"], precision: Float[np.ndarray, " n"]) -> float:
    """VOC 2007's average precision: the mean over recalls 0, .1, ..., 1 of the best precision at each or more."""
    best = [precision[recall >= least].max(initial=0.0) for least in np.linspace(0, 1, 11)]
    return float(np.mean(best))


def area_ap(recall: Float[np.ndarray, " n"], precision: Float[np.ndarray, " n"]) -> float:
    """VOC 2010's average precision: the area under the curve of the best precision at each recall or more."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _judge(
    found: Found, truth: GroundTruth, label: int, ignored: Bool[np.ndarray, " n"], threshold: float
) -> Bool[np.ndarray, " judged"]:
    """Whether each detection of a category is right, best score first, without those that do not count."""
    mine = np.flatnonzero(found.labels == label)
    mine = mine[np.argsort(-found.scores[mine], kind="stable")]
    on_image: dict[int, list[int]] = {}
    for index in np.flatnonzero(truth.labels == label).tolist():
        on_image.setdefault(int(truth.image_of[index]), []).append(index)
    taken: set[int] = set()
    right = []
    for index in mine:
        candidates = on_image.get(int(found.image_of[index]), [])
        overlap = _iou(found.boxes[index], truth.boxes[candidates])
        best = int(np.argmax(overlap)) if candidates else -1
        if best < 0 or overlap[best] < threshold:
            right.append(False)
        elif not ignored[candidates[best]]:
            right.append(candidates[best] not in taken)
            taken.add(candidates[best])
    return np.array(right, bool)


def _iou(box: Float[np.ndarray, "4"], boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    box, boxes = np.asarray(box, np.float64), np.asarray(boxes, np.float64)
    shared = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)


def _mean(values: dict[str, float]) -> float:
    defined = [value for value in values.values() if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
