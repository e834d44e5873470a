"""COCO's layout: one JSON file of boxes, masks and crowds per split, and folders of images.

    root/annotations/instances_train2017.json    root/train2017/
    root/annotations/instances_val2017.json      root/val2017/

Smaller sets in the same format have other file names: ``--config.data.annotations`` and ``--config.data.images``.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np
from hotcoco import mask as rle

from detectors.data.annotated import AnnotatedImage
from detectors.data.on_disk import DiskData, LayoutError, columns
from detectors.data.records import BadRecord, BadRecords


@dataclasses.dataclass
class CocoData(DiskData):
    """COCO 2017, or a data set in its format.

    Attributes:
      annotations: JSON file of a split, under root; ``{split}`` stands for its name.
      images: folder of a split's images, under root.
      train: split trained on.
      test: split evaluated on.
    """

    annotations: str = "annotations/instances_{split}2017.json"
    images: str = "{split}2017"
    train: str = "train"
    test: str = "val"

    kind = "coco"
    title = "COCO"
    source = "https://cocodataset.org/#download (train2017, val2017 and the trainval2017 annotations)"

    def expected(self) -> list[str]:
        return [form.format(split=name) for name in (self.train, self.test) for form in (self.annotations, self.images)]

    def annotation_files(self, role: str) -> list[pathlib.Path]:
        return [self.folder() / self.annotations.format(split=getattr(self, role))]

    def image_folders(self, role: str) -> list[pathlib.Path]:
        return [self.folder() / self.images.format(split=getattr(self, role))]

    def categories(self) -> tuple[str, ...]:
        """The categories in the order of their ids; ids have gaps, labels do not."""
        (path,) = self.annotation_files("train")
        return tuple(category["name"] for category in _categories(_read(path), path))

    def category_ids(self, categories: tuple[str, ...]) -> list[int]:
        """The number that each category has in the annotations."""
        found = {}
        for role in ("test", "train"):  # the file of test is the small one
            (path,) = self.annotation_files(role)
            found |= {row["name"]: row["id"] for row in _categories(_read(path), path, categories)}
            if found.keys() >= set(categories):
                break
        return [found[name] for name in categories]

    def read(self, role: str, categories: tuple[str, ...], report: BadRecords) -> Iterator[AnnotatedImage]:
        (path,), (folder,) = self.annotation_files(role), self.image_folders(role)
        content = _read(path)
        label_of = {row["id"]: categories.index(row["name"]) for row in _categories(content, path, categories)}
        objects = collections.defaultdict(list)
        for row in content["annotations"]:
            objects[row.get("image_id")].append(row)
        images = []
        for row in content["images"]:
            if {"id", "file_name", "height", "width"} <= row.keys():
                images.append(row)
            else:
                report.add("annotation that cannot be read", f"{path.name}: image without id, name or size {row}")
        for image_id in objects.keys() - {row["id"] for row in images}:
            report.add("objects of an image that is not listed", f"{path.name}: image {image_id}")
        for row in images:
            try:
                yield _read_image(row, objects[row["id"]], folder, label_of)
            except BadRecord as bad:
                report.add(bad.reason, bad.detail)


def _read_image(row: dict, objects: list[dict], folder: pathlib.Path, label_of: dict[int, int]) -> AnnotatedImage:
    unknown = sorted({str(o.get("category_id")) for o in objects if o.get("category_id") not in label_of})
    if unknown:
        raise BadRecord("category that is not declared", f"{row['file_name']}: category_id {', '.join(unknown)}")
    try:
        size = (row["height"], row["width"])
        corners = np.array([o["bbox"] for o in objects], np.float64).reshape(-1, 4)
        described = columns(
            np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1),
            [label_of[o["category_id"]] for o in objects],
            area=[float(o.get("area", o["bbox"][2] * o["bbox"][3])) for o in objects],
            crowd=[bool(o.get("iscrowd", 0)) for o in objects],
            difficult=[bool(o.get("difficult", o.get("ignore", 0))) for o in objects],
            masks=[run_lengths(o.get("segmentation"), size) for o in objects],
        )
    except (LookupError, TypeError, ValueError) as error:
        raise BadRecord(
            "annotation that cannot be read", f"{row['file_name']} ({type(error).__name__}: {error})"
        ) from error
    return AnnotatedImage(folder / row["file_name"], row["id"], size, **described)


def run_lengths(segmentation: list | dict | None, size: tuple[int, int]) -> bytes:
    """A mask as COCO's compressed run lengths, rasterised as in COCO's own evaluation; empty if there is none.

    Args:
      segmentation: polygons ``[[x1, y1, x2, y2, ...], ...]`` in pixels, or run lengths ``{"size", "counts"}``.
      size: (height, width) of the image.

    Raises:
      ValueError, TypeError: it is neither, or its run lengths are of an image of another size.
    """
    if not segmentation:
        return b""
    if isinstance(segmentation, dict):
        if tuple(segmentation.get("size", ())) != size:
            raise ValueError(f"run lengths of size {segmentation.get('size')} for an image of size {size}")
        return bytes(rle.frPyObjects(segmentation, *size)["counts"])
    return bytes(rle.merge(rle.frPyObjects(segmentation, *size))["counts"])


def _read(path: pathlib.Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
        missing = {"images", "annotations", "categories"} - content.keys()
    except (ValueError, AttributeError) as error:
        raise LayoutError(f"{path} is not a COCO annotation file: {error}") from error
    if missing:
        raise LayoutError(f"{path} is not a COCO annotation file: it has no {', '.join(sorted(missing))}")
    return content


def _categories(content: dict, path: pathlib.Path, expected: tuple[str, ...] = ()) -> list[dict]:
    rows = sorted(content["categories"], key=lambda row: row["id"])
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names) or (expected and not set(names) <= set(expected)):
        raise LayoutError(f"{path} declares the categories {names}, which must be unique and those of {expected}")
    return rows
