"""COCO's files of results: detections written for other programs, and read with their ground truth to be scored."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from hotcoco import mask as rle

from cse_jax.errors import UserError
from cse_jax.workdir import write_whole
from detectors.data.coco import run_lengths
from detectors.evaluation.coco import Found, GroundTruth

IOU_TYPES = ("bbox", "segm")


class ResultsError(UserError, ValueError):
    """A file of annotations or results that cannot be used; the message names entry, value and remedy."""


class Reference(NamedTuple):
    """The ground truth of an annotation file. Labels count its categories in the order of their ids."""

    path: pathlib.Path
    truth: GroundTruth
    categories: tuple[str, ...]
    label_of: dict[int, int]  # by category id
    sizes: dict[int, tuple[int, int] | None]  # (height, width) by image id, where the file says it


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
    """Reads the ground truth of an annotation file in COCO's format.

    Args:
      path: such as ``instances_val2017.json``.
      masks: whether to read the objects' masks, which all must have.

    Raises:
      ResultsError: it cannot be read, or an object lacks something.
    """
    content = _json(path, "--annotations")
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ResultsError(
            f"{path} is no annotation file of COCO: it needs images, annotations and categories; give "
            "--annotations=instances_....json"
        )
    try:
        rows = sorted(content["categories"], key=lambda row: row["id"])
        names = [str(row.get("name", row["id"])) for row in rows]
        names = [
            f"{name} ({row['id']})" if names.count(name) > 1 else name for name, row in zip(names, rows, strict=True)
        ]
        label_of = {row["id"]: label for label, row in enumerate(rows)}
        sizes = {
            row["id"]: (row["height"], row["width"]) if {"height", "width"} <= row.keys() else None
            for row in content["images"]
        }
        if not all(isinstance(number, int) for number in [*label_of, *sizes]):
            raise TypeError("ids must be whole numbers")
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: images and categories need an id each ({_said(error)})") from error
    objects = content["annotations"]
    columns, runs = [], []
    for index, row in enumerate(objects):
        try:
            x, y, width, height = map(float, row["bbox"])
            if row["image_id"] not in sizes:
                raise ValueError(f"image_id {row['image_id']!r} is not among its images")
            area, crowd = float(row.get("area", width * height)), bool(row.get("iscrowd", 0))
            columns.append((row["image_id"], label_of[row["category_id"]], area, crowd, x, y, x + width, y + height))
            if masks:
                runs.append(_mask(row.get("segmentation"), sizes[row["image_id"]]))
        except (KeyError, TypeError, ValueError) as error:
            named = row.get("id", "?") if isinstance(row, Mapping) else "?"
            raise ResultsError(
                f"{path}: annotation {index} (id {named}) can't be used: {_said(error)}; correct it or leave it out"
            ) from error
    table = np.array(columns, np.float64).reshape(-1, 8)
    truth = GroundTruth(
        image_ids=np.array(list(sizes), np.int64),
        image_of=table[:, 0].astype(np.int64),
        boxes=table[:, 4:],
        labels=table[:, 1].astype(np.int64),
        area=table[:, 2],
        crowd=table[:, 3].astype(bool),
        masks=runs if masks else None,
    )
    return Reference(path, truth, tuple(names), label_of, sizes)


def read_results(path: pathlib.Path, reference: Reference, *, iou_type: str = "bbox") -> Found:
    """Reads COCO's results.

    Args:
      path: a JSON list of entries with image_id, category_id, score, and bbox or segmentation.
      reference: the ground truth that they are for.
      iou_type: ``bbox`` for boxes, or ``segm`` for masks, whose areas then tell small, medium and large ones apart.

    Raises:
      ResultsError: it cannot be read, or an entry lacks something or is of an unknown image or category.
    """
    content = _json(path, "--results_file")
    if not isinstance(content, list):
        raise ResultsError(
            f"{path} is no results file of COCO: it must be a list of entries with image_id, category_id, bbox, score"
        )
    columns, runs = [], []
    for index, entry in enumerate(content):
        try:
            columns.append(_entry(entry, reference, boxes=iou_type == "bbox"))
            if iou_type == "segm":
                runs.append(_mask(entry.get("segmentation"), reference.sizes[entry["image_id"]]))
        except (KeyError, TypeError, ValueError) as error:
            raise ResultsError(
                f"{path}: entry {index} can't be used: {_said(error)}. It is {_excerpt(entry)}"
            ) from error
    table = np.array(columns, np.float64).reshape(-1, 7)
    return Found(
        image_of=table[:, 0].astype(np.int64),
        boxes=table[:, 3:],
        scores=table[:, 2],
        labels=table[:, 1].astype(np.int64),
        masks=runs if iou_type == "segm" else None,
    )


def _entry(entry: dict, reference: Reference, *, boxes: bool) -> tuple[float, ...]:
    """Image, label, score and corners of one result."""
    if not isinstance(entry, dict):
        raise TypeError("it must be an object")
    image_id, category_id, score = (entry[name] for name in ("image_id", "category_id", "score"))
    if image_id not in reference.sizes:
        raise ValueError(
            f"image_id {image_id!r} is not among the {len(reference.sizes)} images of {reference.path.name}; give the "
            "--annotations that the results are for"
        )
    if category_id not in reference.label_of:
        raise ValueError(
            f"category_id {category_id!r} is not among the categories of {reference.path.name} "
            f"({min(reference.label_of)} to {max(reference.label_of)}); write the ids of that file, not labels from 0"
        )
    x, y, width, height = map(float, entry["bbox"] if boxes else (0, 0, 0, 0))
    if not all(map(math.isfinite, (float(score), x, y, width, height))) or min(width, height) < 0:
        raise ValueError("score and bbox must be finite, and width and height not below 0")
    return image_id, reference.label_of[category_id], float(score), x, y, x + width, y + height


def _mask(segmentation: list | dict | None, size: tuple[int, int] | None) -> dict:
    """A mask as compressed run lengths."""
    if not segmentation:
        raise ValueError("it has no segmentation; --iou_type=bbox needs none")
    if size is None:
        if not isinstance(segmentation, dict):
            raise ValueError("its image has no height and width in the annotations, which polygons need")
        height, width = segmentation["size"]
        size = (height, width)
    mask = {"size": list(size), "counts": run_lengths(segmentation, size)}
    rle.area(mask)  # raises ValueError for damaged run lengths
    return mask


def _json(path: pathlib.Path, option: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ResultsError(f"{option}={path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{option}={path} is not JSON: {error}") from error


def _said(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}" if isinstance(error.args[0], str) else f"unknown category {error.args[0]}"
    return str(error)


def _excerpt(entry: object) -> str:
    shown = json.dumps(entry)
    return shown if len(shown) <= 120 else shown[:117] + "..."


def _short(value: np.float32) -> float:
    """The shortest decimal number that rounds to this float32."""
    return float(str(np.float32(value)))
