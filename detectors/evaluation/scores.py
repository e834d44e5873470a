"""All scores of a detector on a split, as a table to print and as JSON."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from detectors.evaluation.coco import Found, GroundTruth, Metrics, evaluate, evaluate_masks
from detectors.evaluation.voc import VocMetrics, evaluate_voc

_COLUMNS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
}


class Scores(NamedTuple):
    """Scores by the rules that apply; None for those that do not."""

    boxes: Metrics | None
    masks: Metrics | None
    voc: VocMetrics | None
    objects: dict[str, int]  # of each category, without crowds


def score(
    found: Found,
    truth: GroundTruth,
    categories: Sequence[str],
    *,
    boxes: bool = True,
    masks: bool = False,
    voc: bool = False,
) -> Scores:
    """Scores detections.

    Args:
      found: detections.
      truth: objects, in the same pixels.
      categories: names of the labels.
      boxes: whether boxes are scored by the COCO rules.
      masks: whether masks are.
      voc: whether boxes are scored by the rules of Pascal VOC.

    Raises:
      InputError: as ``evaluate``, ``evaluate_masks`` and ``evaluate_voc``.
    """
    objects = np.bincount(truth.labels[~truth.crowd], minlength=len(categories)).tolist()
    return Scores(
        evaluate(found, truth, categories) if boxes else None,
        evaluate_masks(found, truth, categories) if masks else None,
        evaluate_voc(found, truth, categories) if voc else None,
        dict(zip(categories, objects, strict=True)),
    )


def table(scores: Scores) -> str:
    """The scores as text, in percent: those of all categories, then of each; ``-`` where no object defines one."""
    by_coco = {"boxes": scores.boxes, "masks": scores.masks}
    by_coco = {name: metrics for name, metrics in by_coco.items() if metrics is not None}
    lines = ["".join(f"{name:>8}" for name in ("", *_COLUMNS))]
    for name, metrics in by_coco.items():
        lines.append(f"{name:>8}" + "".join(_percent(getattr(metrics, field)) for field in _COLUMNS.values()))
    each = {f"{name} AP": metrics.per_category for name, metrics in by_coco.items()}
    if scores.voc is not None:
        lines.append(f"VOC mAP at IoU 0.5:{_percent(scores.voc.map_07)} (07),{_percent(scores.voc.map_area)} (area)")
        each |= {"VOC07": scores.voc.per_category_07, "VOC area": scores.voc.per_category_area}
    width = max(len("category"), *(len(name) for name in scores.objects))
    lines += ["", f"{'category':<{width}} {'objects':>9}" + "".join(f"{name:>10}" for name in each)]
    for name, objects in scores.objects.items():
        lines.append(f"{name:<{width}} {objects:>9}" + "".join(_percent(values[name], 10) for values in each.values()))
    return "\n".join(lines)


def in_a_line(scores: Scores) -> str:
    """The scores of all categories together, in 0..1."""
    shown = {"": scores.boxes, "mask ": scores.masks}
    parts = [
        f"{before}{name} {getattr(metrics, field):.4f}"
        for before, metrics in shown.items()
        if metrics is not None
        for name, field in _COLUMNS.items()
    ]
    if scores.voc is not None:
        parts += [f"VOC mAP {scores.voc.map_07:.4f} (07), {scores.voc.map_area:.4f} (area)"]
    return ", ".join(parts)


def as_json(scores: Scores) -> dict[str, Any]:
    """The scores in 0..1, without those that do not apply; None where no object defines one."""
    parts = {name: part._asdict() for name, part in scores._asdict().items() if part is not None and name != "objects"}
    parts["objects"] = scores.objects
    return jax.tree.map(lambda value: value if math.isfinite(value) else None, parts)


def _percent(value: float, width: int = 8) -> str:
    return f"{'-' if math.isnan(value) else format(100 * value, '.2f'):>{width}}"
