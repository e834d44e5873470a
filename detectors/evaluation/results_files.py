"""COCO's files of results: detections written for other programs, and read with their ground truth to be scored."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from cse_jax.errors import UserError
from cse_jax.workdir import write_whole
from detectors.data.annotated import AnnotatedImage, with_usable_boxes
from detectors.data.coco_files import described, read_coco
from detectors.data.json_rows import RowError, Whole, read_table, rows, shown
from detectors.data.masks import MaskError, run_lengths
from detectors.data.records import Annotation, BadRecords
from detectors.evaluation.coco import Found, GroundTruth, ground_truth

IOU_TYPES = ("bbox", "segm")
_WANTED = "a results file of COCO's format, a list of entries with image_id, category_id, bbox and score"


class ResultsError(UserError, ValueError):
    """Results or their ground truth that cannot be used; the message names entry, value and remedy."""


class Reference(NamedTuple):
    """The ground truth of an annotation file. Labels count its categories in the order of their ids."""

    path: pathlib.Path
    truth: GroundTruth
    categories: tuple[str, ...]
    label_of: dict[int, int]  # by category id
    sizes: dict[int, tuple[int, int] | None]  # (height, width) by image id, where the file says it
    left_out: set[Any]  # ids of images with a bad record, which are not scored
    bad_records: BadRecords


class ResultRow(msgspec.Struct, gc=False):
    """An entry of a results file; ``bbox`` is x, y, width, height in pixels."""

    image_id: Whole
    category_id: Whole
    score: float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: msgspec.Raw = msgspec.Raw()


def write_results(path: pathlib.Path, found: Found, category_ids: Sequence[int]) -> None:
    """Writes detections as COCO's results: image_id, category_id, bbox (x, y, width, height), score, segmentation.

    Args:
      path: of the file.
      found: the detections.
      category_ids: the category id of each label.
    """
    boxes = np.asarray(found.boxes, np.float32)
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    entries = []
    for row, (image_id, label, score) in enumerate(zip(found.image_of, found.labels, found.scores, strict=True)):
        entry = {
            "image_id": int(image_id),
            "category_id": int(category_ids[int(label)]),
            "bbox": [_short(value) for value in boxes[row]],
            "score": _short(score),
        }
        if found.masks is not None:
            mask = found.masks[row]
            entry["segmentation"] = {"size": list(mask["size"]), "counts": bytes(mask["counts"]).decode("ascii")}
        entries.append(json.dumps(entry))
    write_whole(path, "[" + ",\n".join(entries) + "]")


def read_reference(path: pathlib.Path, *, masks: bool) -> Reference:
    """Reads the ground truth of an annotation file in COCO's format, by the rules that a data set is read with.

    Args:
      path: such as ``instances_val2017.json``.
      masks: whether to read the objects' masks, which all must have.

    Raises:
      FileError: it is no such file.
      ResultsError: it has no image, or an object has no mask.
    """
    report = BadRecords()
    content = read_coco(path, report)
    label_of = {number: label for label, number in enumerate(content.categories)}
    annotations = []
    for image_id, row in content.images.items():
        columns = described(row, content.objects.get(image_id, []), row.size, label_of, report, masks=masks)
        named = AnnotatedImage(pathlib.Path(row.file_name or str(row)), image_id, row.size, **columns)
        image = with_usable_boxes(named, report)
        annotations.append(Annotation(image_id, image.size or (1, 1), *image[3:]))
    if not annotations:
        raise ResultsError(f"{path} has no image that can be used\n{report}".rstrip())
    truth = ground_truth(annotations)
    if masks and len(truth.labels) and truth.masks is None:
        without = sum(not runs for annotation in annotations for runs in annotation.masks or ())
        raise ResultsError(
            f"{path}: {without} of {len(truth.labels)} objects have no segmentation that can be read; correct them, or "
            f"score boxes with --iou_type=bbox\n{report}".rstrip()
        )
    sizes = {image_id: row.size for image_id, row in content.images.items()}
    return Reference(path, truth, tuple(content.categories.values()), label_of, sizes, content.left_out, report)


def read_results(path: pathlib.Path, reference: Reference, *, iou_type: str = "bbox") -> Found:
    """Reads COCO's results. Detections on images that the reference leaves out are left out as well.

    Args:
      path: a JSON list of entries with image_id, category_id, score, and bbox or segmentation.
      reference: the ground truth that they are for.
      iou_type: ``bbox`` for boxes, or ``segm`` for masks, whose areas then tell small, medium and large ones apart.

    Raises:
      FileError: it is no such file.
      ResultsError: an entry lacks something or is of an unknown image or category.
    """
    parts = read_table(path, list[msgspec.Raw], wanted=_WANTED)
    images, labels, columns, runs = [], [], [], []
    for index, (part, row) in enumerate(zip(parts, rows(parts, ResultRow), strict=True)):
        try:
            if isinstance(row, RowError):
                raise row
            if row.image_id in reference.left_out:
                continue
            columns.append((row.score, *_corners(row, reference, boxes=iou_type == "bbox")))
            if iou_type == "segm":
                runs.append(_mask(row.segmentation, reference.sizes[row.image_id]))
        except (ResultsError, RowError, MaskError) as error:
            raise ResultsError(f"{path}: entry {index} can't be used: {error}. It is {shown(part)}") from error
        images.append(row.image_id)
        labels.append(reference.label_of[row.category_id])
    table = np.array(columns, np.float64).reshape(-1, 5)
    return Found(
        image_of=np.array(images, np.int64),
        boxes=table[:, 1:],
        scores=table[:, 0],
        labels=np.array(labels, np.int64),
        masks=runs if iou_type == "segm" else None,
    )


def _corners(row: ResultRow, reference: Reference, *, boxes: bool) -> tuple[float, float, float, float]:
    """The corners of a result, after a check of all that it says."""
    if row.image_id not in reference.sizes:
        raise ResultsError(
            f"image_id {row.image_id} is not among the {len(reference.sizes)} images of {reference.path.name}; give the"
            " --annotations that the results are for"
        )
    if row.category_id not in reference.label_of:
        raise ResultsError(
            f"category_id {row.category_id} is not among the categories of {reference.path.name} "
            f"({min(reference.label_of)} to {max(reference.label_of)}); write the ids of that file, not labels from 0"
        )
    if boxes and row.bbox is None:
        raise ResultsError("it has no field bbox")
    x, y, width, height = row.bbox if boxes and row.bbox else (0.0, 0.0, 0.0, 0.0)
    corners = x, y, x + width, y + height
    if not all(map(math.isfinite, (row.score, *corners))) or min(width, height) < 0:
        raise ResultsError("score and bbox must be finite, and width and height not below 0")
    return corners


def _mask(segmentation: msgspec.Raw, size: tuple[int, int] | None) -> dict:
    """A mask as compressed run lengths."""
    if size is None:
        raise ResultsError("the annotations do not say its image's height and width, which masks need")
    runs = run_lengths(segmentation, size)
    if not runs:
        raise ResultsError("it has no segmentation; --iou_type=bbox needs none")
    return {"size": list(size), "counts": runs}


def _short(value: np.float32) -> float:
    """The shortest decimal number that rounds to this float32."""
    return float(str(np.float32(value)))
