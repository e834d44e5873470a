"""Average precision by the COCO rules, computed by hotcoco.

Every annotated image is scored, whether a detector found something on it or not.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import hotcoco
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from detectors.data.pipeline import Source, eval_batches
from detectors.data.records import Annotation
from detectors.structures import Batch, Detections


class GroundTruth(NamedTuple):
    """All objects of a data set in columns. An image without objects is in ``image_ids`` only."""

    image_ids: Int[np.ndarray, " images"]
    image_of: Int[np.ndarray, " n"]  # the image's id of each object
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    area: Float[np.ndarray, " n"]  # decides about small, medium and large; of the mask where there is one
    crowd: Bool[np.ndarray, " n"]  # crowds are neither found nor missed


class Found(NamedTuple):
    """All detections on a data set in columns."""

    image_of: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]


class Metrics(NamedTuple):
    """Average precision in 0..1; NaN where no ground truth defines it.

    Objects are small under 32^2 square pixels and large over 96^2.
    """

    ap: float  # mean over the IoU thresholds .50:.05:.95
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    per_category: dict[str, float]  # ap of each category


def evaluate(found: Found, truth: GroundTruth, categories: Sequence[str]) -> Metrics:
    """Scores detections against the ground truth, at most 100 detections an image.

    Raises:
      ValueError: a detection's box or score is not finite, or it is on an image that is not in the ground truth.
    """
    if not len(truth.labels):
        nan = float("nan")
        return Metrics(nan, nan, nan, nan, nan, nan, dict.fromkeys(categories, nan))
    _check(found, truth)
    # Categories are matched by id; names may repeat.
    reference = hotcoco.COCO.from_arrays(
        [{"id": int(image_id)} for image_id in truth.image_ids],
        [{"id": label, "name": str(label)} for label in range(len(categories))],
        truth.image_of,
        truth.labels,
        _xywh(truth.boxes),
        area=truth.area.astype(np.float64),
        iscrowd=truth.crowd.astype(np.int64),
    )
    columns = (found.image_of[:, None], _xywh(found.boxes), found.scores[:, None], found.labels[:, None])
    results = reference.load_res(np.concatenate(columns, axis=1, dtype=np.float64))
    evaluator = hotcoco.COCOeval(reference, results, "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summary_lines()  # computes the figures; summarize() would print them
    figures = evaluator.get_results(per_class=True)
    defined = {key: value if value >= 0 else float("nan") for key, value in figures.items()}  # COCO says -1
    return Metrics(
        *(defined[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
        per_category={name: defined.get(f"AP/{label}", float("nan")) for label, name in enumerate(categories)},
    )


def evaluate_detector(
    predict: Callable[[Float[Array, "b h w 3"], Float[Array, "b 2"]], Detections], source: Source, *, batch_size: int
) -> Metrics:
    """Runs a detector over all images of a source and scores it.

    Args:
      predict: from images and image sizes to detections with a leading ``b``; called with one shape only.
      source: the images and their ground truth.
      batch_size: images per call.
    """
    parts = [
        collect(jax.device_get(predict(batch.image, batch.image_size)), batch)
        for batch in eval_batches(source, batch_size)
    ]
    found = Found(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return evaluate(found, ground_truth(source.annotations), source.categories)


def collect(detections: Detections, batch: Batch) -> Found:
    """The valid detections on a batch's real images, in columns."""
    row, column = np.nonzero(np.asarray(detections.valid) & np.asarray(batch.real)[:, None])
    return Found(
        np.asarray(batch.image_id)[row],
        np.asarray(detections.boxes)[row, column],
        np.asarray(detections.scores)[row, column],
        np.asarray(detections.labels)[row, column],
    )


def ground_truth(annotations: Sequence[Annotation]) -> GroundTruth:
    """The objects of annotated images in columns; an object's area is its box's."""
    boxes = np.concatenate([annotation.boxes for annotation in annotations]).astype(np.float64)
    counts = [len(annotation.labels) for annotation in annotations]
    image_ids = np.array([annotation.image_id for annotation in annotations], np.int64)
    return GroundTruth(
        image_ids=image_ids,
        image_of=np.repeat(image_ids, counts),
        boxes=boxes,
        labels=np.concatenate([annotation.labels for annotation in annotations]).astype(np.int64),
        area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        crowd=np.zeros(len(boxes), bool),
    )


def _check(found: Found, truth: GroundTruth) -> None:
    finite = np.isfinite(found.scores) & np.isfinite(found.boxes).all(1)
    if not finite.all():
        raise ValueError(
            f"{np.sum(~finite)} of {len(finite)} detections are not finite, the first on image"
            f" {found.image_of[np.argmin(finite)]}: the training that made this detector has diverged."
        )
    unknown = np.setdiff1d(found.image_of, truth.image_ids)
    if unknown.size:
        raise ValueError(f"Detections on image {unknown[0]}, which is not in the ground truth.")


def _xywh(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
