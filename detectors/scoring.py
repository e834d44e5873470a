"""All scores of a detector on a split: boxes, and masks and Pascal VOC's where they apply."""

from collections.abc import Callable, Mapping
from typing import Any

from detectors.data.pipeline import Source
from detectors.evaluation import Found, detect, evaluate, evaluate_masks, ground_truth
from detectors.structures import Detections
from detectors.voc_evaluation import evaluate_voc

_TITLES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
    "mask_ap": "mask AP",
    "voc07": "VOC mAP (07)",
    "voc_area": "VOC mAP (area)",
}


def score_detector(predict: Callable[..., Detections], source: Source, *, batch_size: int, voc: bool) -> dict[str, Any]:
    """Detects on all images of a split and scores; arguments as for ``detect`` and ``score``."""
    return score(detect(predict, source, batch_size=batch_size), source, voc=voc)


def score(found: Found, source: Source, *, voc: bool) -> dict[str, Any]:
    """Scores in 0..1, NaN where no ground truth defines them.

    Args:
      found: detections on the images of ``source``.
      source: a split.
      voc: whether Pascal VOC's mean AP is wanted as well.

    Returns:
      ``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``, ``per_category``; the same with ``mask_``
      before them if detections and ground truth have masks; ``voc07`` and ``voc_area``.
    """
    truth = ground_truth(source.annotations)
    scores = evaluate(found, truth, source.categories)._asdict()
    if found.masks is not None and truth.masks is not None:
        of_masks = evaluate_masks(found, truth, source.categories)._asdict()
        scores |= {f"mask_{name}": value for name, value in of_masks.items()}
    if voc:
        of_voc = evaluate_voc(found, truth, source.categories)
        scores |= {"voc07": of_voc.map_07, "voc_area": of_voc.map_area}
    return scores


def described(scores: Mapping[str, Any]) -> str:
    """The scores in a line."""
    return ", ".join(f"{title} {scores[name]:.4f}" for name, title in _TITLES.items() if name in scores)
