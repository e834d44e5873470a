"""Average precision of boxes and of masks by the COCO rules, computed by hotcoco.

Every annotated image is scored, whether a detector found something on it or not. Boxes are in pixels of the original
images, not of those that the detector saw.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import hotcoco
import jax
import numpy as np
from hotcoco import mask as rle
from jaxtyping import Bool, Float, Int

from cse_jax.errors import InputError
from detectors.data.masks import encoded
from detectors.data.pipeline import Source, eval_batches
from detectors.data.records import Annotation
from detectors.ops.masks import paste_masks
from detectors.structures import AnyArray, Batch, Detections, Images

Predict = Callable[[Images, Float[AnyArray, "b 2"]], Detections]  # images and their sizes


class NotFinite(InputError):
    """A detection's box or score is not finite: the training that made the detector has diverged."""


class GroundTruth(NamedTuple):
    """All objects of a data set in columns. An image without objects is in ``image_ids`` only."""

    image_ids: Int[np.ndarray, " images"]
    image_of: Int[np.ndarray, " n"]  # the image's id of each object
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    area: Float[np.ndarray, " n"] | None  # tells small and large ones apart; None or NaN: that of what is scored
    crowd: Bool[np.ndarray, " n"]  # crowds are neither found nor missed
    difficult: Bool[np.ndarray, " n"] | None = None  # VOC's; the COCO rules do not know them
    masks: Sequence[dict] | None = None  # COCO's compressed run lengths


class Found(NamedTuple):
    """All detections on a data set in columns."""

    image_of: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    masks: Sequence[dict] | None = None  # COCO's compressed run lengths, over the original images


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
    """Scores boxes against the ground truth, at most 100 detections an image.

    Raises:
      NotFinite: a detection's box or score is not finite.
      InputError: a detection is on an image that is not in the ground truth.
    """
    if not len(truth.labels):
        return _undefined(categories)
    return _metrics(_box_evaluator(found, truth, categories), categories)


def matched(found: Found, truth: GroundTruth, categories: Sequence[str]) -> list[dict[str, Any]]:
    """Which boxes find which objects: a row for each image and category, as pycocotools' ``evalImgs``, of any size.

    Raises:
      NotFinite, InputError: as ``evaluate``.
    """
    evaluator = _box_evaluator(found, truth, categories)
    evaluator.evaluate()
    everything = evaluator.params.area_rng[0]
    found_by = [row for row in evaluator.eval_imgs if row and list(row["aRng"]) == list(everything)]
    ids = np.sort(truth.image_ids).tolist()
    return [row | {"image_id": ids[row["image_id"]]} for row in found_by]


def _box_evaluator(found: Found, truth: GroundTruth, categories: Sequence[str]) -> hotcoco.COCOeval:
    _check(found, truth)
    reference = _reference(truth, categories, _areas(truth.boxes))
    places = _places(found.image_of, truth)
    columns = (places[:, None], _xywh(found.boxes), found.scores[:, None], found.labels[:, None])
    results = reference.load_res(np.concatenate(columns, axis=1, dtype=np.float64))
    return hotcoco.COCOeval(reference, results, "bbox")


def evaluate_masks(found: Found, truth: GroundTruth, categories: Sequence[str]) -> Metrics:
    """Scores masks against the ground truth, at most 100 detections an image.

    Raises:
      NotFinite, InputError: as ``evaluate``; or detections or ground truth have no masks.
    """
    if not len(truth.labels):
        return _undefined(categories)
    _check(found, truth)
    masks = _all_masks(found, "detections")
    own_areas = np.asarray(rle.area(list(_all_masks(truth, "ground truth"))), np.float64)
    reference = _reference(truth, categories, own_areas)
    # Without boxes, so that the masks' own areas tell small, medium and large ones apart.
    rows = zip(
        _places(found.image_of, truth).tolist(), found.scores.tolist(), found.labels.tolist(), masks, strict=True
    )
    results = reference.load_res(
        [{"image_id": i, "score": s, "category_id": c, "segmentation": mask} for i, s, c, mask in rows]
    )
    return _metrics(hotcoco.COCOeval(reference, results, "segm"), categories)


def evaluate_detector(predict: Predict, source: Source, *, batch_size: int) -> Metrics:
    """Runs a detector over all images of a source and scores its boxes. Arguments as for ``detect``."""
    found = detect(predict, source, batch_size=batch_size, masks=False)
    return evaluate(found, ground_truth(source.annotations), source.categories)


def detect(
    predict: Predict,
    source: Source,
    *,
    batch_size: int,
    masks: bool = True,
    whole_pixels: bool = False,
    progress: Callable[[int], None] = lambda images: None,
) -> Found:
    """Everything that a detector finds on the images of a source, in pixels of the original images.

    Args:
      predict: from images and image sizes to detections with a leading ``b``.  It is called with one shape only, or
        with two if the source has two.
      source: the images and their ground truth.
      batch_size: images per call.
      masks: whether to keep the detections' masks, where it gives any; encoding them takes longer than finding them.
      whole_pixels: how masks are put into the images (``MaskConfig.whole_pixels``).
      progress: called with the number of images done, after each batch.
    """
    sizes = {annotation.image_id: annotation.size for annotation in source.annotations}
    parts, done = [], 0
    for batch in eval_batches(source, batch_size):
        detections = predict(batch.image, batch.image_size)
        detections = jax.device_get(detections if masks else detections._replace(masks=None))
        parts.append(collect(detections, batch, sizes, whole_pixels=whole_pixels))
        done += int(np.sum(batch.real))
        progress(done)
    return joined(parts)


def joined(parts: Sequence[Found]) -> Found:
    """The detections of all parts; with masks if all parts have them."""
    masks = [part.masks for part in parts if part.masks is not None]
    return Found(
        image_of=np.concatenate([part.image_of for part in parts]),
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        masks=[mask for of_part in masks for mask in of_part] if len(masks) == len(parts) else None,
    )


def collect(
    detections: Detections, batch: Batch, sizes: Mapping[int, tuple[int, int]], *, whole_pixels: bool = False
) -> Found:
    """The valid detections on a batch's real images, in columns.

    Args:
      detections: in pixels of the batch's images.
      batch: the images that the detector saw.
      sizes: (height, width) of each original image by its id; boxes and masks are scaled to it.
      whole_pixels: as for ``detect``.
    """
    row, column = np.nonzero(np.asarray(detections.valid) & np.asarray(batch.real)[:, None])
    image_of = np.asarray(batch.image_id)[row]
    original = np.array([sizes[image_id] for image_id in image_of.tolist()], np.float32).reshape(-1, 2)
    stretch = original / np.asarray(batch.image_size)[row]
    boxes = np.asarray(detections.boxes)[row, column] * np.tile(stretch[:, ::-1], 2)
    masks = None
    if detections.masks is not None:
        small = np.asarray(detections.masks)[row, column]
        masks = [
            _pasted(mask, box, sizes[image_id], whole_pixels)
            for mask, box, image_id in zip(small, boxes, image_of.tolist(), strict=True)
        ]
    return Found(
        image_of, boxes, np.asarray(detections.scores)[row, column], np.asarray(detections.labels)[row, column], masks
    )


def ground_truth(annotations: Sequence[Annotation]) -> GroundTruth:
    """The objects of annotated images in columns; areas are None unless they are annotated."""
    counts = [len(annotation.labels) for annotation in annotations]
    image_ids = np.array([annotation.image_id for annotation in annotations], np.int64)
    masks = None
    if annotations and all(annotation.masks is not None and all(annotation.masks) for annotation in annotations):
        masks = [{"size": list(a.size), "counts": runs} for a in annotations for runs in a.masks or ()]

    def joined(columns) -> np.ndarray:
        return np.concatenate(list(columns))

    area = None
    if any(annotation.area is not None for annotation in annotations):
        area = joined(np.full(len(a.labels), np.nan) if a.area is None else a.area for a in annotations)

    def flags(name: str) -> np.ndarray:
        values = ((getattr(annotation, name), len(annotation.labels)) for annotation in annotations)
        return joined(np.zeros(n, bool) if value is None else value for value, n in values)

    return GroundTruth(
        image_ids=image_ids,
        image_of=np.repeat(image_ids, counts),
        boxes=joined(a.boxes for a in annotations).astype(np.float64),
        labels=joined(a.labels for a in annotations).astype(np.int64),
        area=area,
        crowd=flags("crowd"),
        difficult=flags("difficult"),
        masks=masks,
    )


def _places(image_of: Int[np.ndarray, " n"], truth: GroundTruth) -> Int[np.ndarray, " n"]:
    """The place of each image among the ground truth's, by id: hotcoco keeps ids as floats, exact up to 2^53."""
    return np.searchsorted(np.sort(truth.image_ids), image_of)


def _reference(truth: GroundTruth, categories: Sequence[str], own_areas: Float[np.ndarray, " n"]) -> hotcoco.COCO:
    """What hotcoco compares with; objects whose area is not annotated have their own."""
    places = _places(truth.image_of, truth)
    area = own_areas if truth.area is None else np.where(np.isnan(truth.area), own_areas, truth.area)
    images = [{"id": place} for place in range(len(truth.image_ids))]
    if truth.masks is not None:
        sizes = dict(zip(places.tolist(), (mask["size"] for mask in truth.masks), strict=True))
        for image in images:
            image["height"], image["width"] = sizes.get(image["id"], (1, 1))
    return hotcoco.COCO.from_arrays(
        images,
        # Categories are matched by id; names may repeat.
        [{"id": label, "name": str(label)} for label in range(len(categories))],
        places,
        truth.labels,
        _xywh(truth.boxes),
        area=area.astype(np.float64),
        iscrowd=truth.crowd.astype(np.int64),
        segmentation=None if truth.masks is None else list(truth.masks),
    )


def _metrics(evaluator: hotcoco.COCOeval, categories: Sequence[str]) -> Metrics:
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summary_lines()  # computes the figures; summarize() would print them
    figures = evaluator.get_results(per_class=True)
    defined = {key: value if value >= 0 else float("nan") for key, value in figures.items()}  # COCO says -1
    return Metrics(
        *(defined[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
        per_category={name: defined.get(f"AP/{label}", float("nan")) for label, name in enumerate(categories)},
    )


def _all_masks(objects: Found | GroundTruth, name: str) -> Sequence[dict]:
    """The masks; raises InputError unless each object has one."""
    if objects.masks is None or len(objects.masks) != len(objects.labels):
        raise InputError(f"The {name} have not a mask for each object: open the data with data.mask_stride > 0")
    return objects.masks


def _undefined(categories: Sequence[str]) -> Metrics:
    nan = float("nan")
    return Metrics(nan, nan, nan, nan, nan, nan, dict.fromkeys(categories, nan))


def _pasted(
    mask: Float[np.ndarray, "s s"], box: Float[np.ndarray, "4"], size: tuple[int, int], whole_pixels: bool
) -> dict:
    """One detection's mask over its whole image, as run lengths."""
    inside = paste_masks(mask[None], box[None], size, whole_pixels=whole_pixels)[0] >= 0.5
    return {"size": list(size), "counts": encoded(inside)}


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    boxes = np.asarray(boxes, np.float64)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _check(found: Found, truth: GroundTruth) -> None:
    finite = np.isfinite(found.scores) & np.isfinite(found.boxes).all(1)
    if not finite.all():
        raise NotFinite(
            f"{np.sum(~finite)} of {len(finite)} detections are not finite, the first on image"
            f" {found.image_of[np.argmin(finite)]}: the training that made this detector has diverged."
        )
    unknown = np.setdiff1d(found.image_of, truth.image_ids)
    if unknown.size:
        raise InputError(f"Detections on image {unknown[0]}, which is not in the ground truth.")


def _xywh(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
