"""Annotation files of COCO's format, as a data set or as the ground truth of results: one reading for both."""

import collections
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from detectors.data.json_rows import FileError, Flag, RowError, Side, Whole, read_table, rows, shown
from detectors.data.masks import MaskError, run_lengths
from detectors.data.records import LISTED_TWICE, BadRecords

_WANTED = "an annotation file of COCO's format (instances_....json), with lists of images, annotations and categories"


class ImageRow(msgspec.Struct, gc=False):
    """An image of an annotation file; sides in pixels."""

    id: Whole
    file_name: str | None = None
    height: Side | None = None
    width: Side | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), where the file says both."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def __str__(self) -> str:
        return f"image {self.id}" + (f" ({self.file_name})" if self.file_name else "")


class ObjectRow(msgspec.Struct, gc=False):
    """An object of an annotation file; ``bbox`` is x, y, width, height in pixels."""

    image_id: Whole
    category_id: Whole
    bbox: tuple[float, float, float, float]
    id: Any = None
    area: float | None = None
    iscrowd: Flag = None
    difficult: Flag = None
    ignore: Flag = None
    segmentation: msgspec.Raw = msgspec.Raw()


class CategoryRow(msgspec.Struct):
    """A category of an annotation file."""

    id: Whole
    name: str | None = None


class CocoFile(NamedTuple):
    """What can be used of an annotation file."""

    path: pathlib.Path
    categories: dict[int, str]  # names, which are unique, by id and in the order of the ids
    images: dict[int, ImageRow]  # by id
    objects: dict[int, list[ObjectRow]]  # by the image's id
    left_out: set[Any]  # ids of images with a bad record


class _File(msgspec.Struct, gc=False):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


class _Head(msgspec.Struct, gc=False):
    categories: list[msgspec.Raw]


def read_categories(path: pathlib.Path) -> dict[int, str]:
    """The names of a file's categories by id, in the order of the ids; names that repeat have their id added.

    Raises:
      FileError: it cannot be read, or a category lacks an id of its own.
    """
    return _categories(read_table(path, _Head, wanted=_WANTED).categories, path)


def read_coco(path: pathlib.Path, report: BadRecords) -> CocoFile:
    """Reads an annotation file.

    A bad annotation takes its image with it: without the object, the image would teach a detector that there is none,
    and punish it for finding it.

    Args:
      path: of the file.
      report: receives what cannot be used.

    Raises:
      FileError: it is no such file.
    """
    content = read_table(path, _File, wanted=_WANTED)
    categories = _categories(content.categories, path)
    images: dict[int, ImageRow] = {}
    left_out: set[Any] = set()
    for index, row in enumerate(rows(content.images, ImageRow)):
        if isinstance(row, RowError):
            report.add("image that cannot be used", f"{path.name}: {_named('image', index, row)}")
            left_out.add(_field(row, "id"))
        elif row.id in images:
            report.add(LISTED_TWICE, f"{path.name}: {row}")
        else:
            images[row.id] = row
    objects: dict[int, list[ObjectRow]] = collections.defaultdict(list)
    unlisted: dict[Any, None] = {}
    for index, row in enumerate(rows(content.annotations, ObjectRow)):
        image_id = _field(row, "image_id") if isinstance(row, RowError) else row.image_id
        if image_id not in images:
            if isinstance(row, RowError):
                report.add("annotation that cannot be read", f"{path.name}: {_named('annotation', index, row)}")
            elif image_id not in left_out:
                unlisted[image_id] = None
        elif isinstance(row, RowError):
            detail = f"{path.name}: {_named('annotation', index, row)}; {images[image_id]} is left out"
            report.add("annotation that cannot be read", detail)
            left_out.add(image_id)
        elif row.category_id not in categories:
            detail = f"{path.name}: annotation {row.id}: category_id {row.category_id}; {images[image_id]} is left out"
            report.add("category that is not declared", detail)
            left_out.add(image_id)
        else:
            objects[image_id].append(row)
    for image_id in unlisted:
        report.add("objects of an image that is not listed", f"{path.name}: image {image_id}")
    for image_id in left_out:
        images.pop(image_id, None)
        objects.pop(image_id, None)
    return CocoFile(path, categories, images, objects, left_out)


def described(
    image: ImageRow,
    objects: Sequence[ObjectRow],
    size: tuple[int, int] | None,
    label_of: dict[int, int],
    report: BadRecords,
    *,
    masks: bool = True,
) -> dict[str, Any]:
    """The columns of an ``AnnotatedImage``, but for its path, id and size.

    Args:
      image: of the file.
      objects: on it.
      size: (height, width) of the image; without it masks are not read.
      label_of: the label of each category id.
      report: receives masks that cannot be read; their objects keep their boxes.
      masks: whether to read the objects' masks.
    """
    corners = [(x, y, x + width, y + height) for x, y, width, height in (o.bbox for o in objects)]
    runs = [b""] * len(objects)
    for index, row in enumerate(objects):
        if not masks or size is None:
            break
        try:
            runs[index] = run_lengths(row.segmentation, size)
        except MaskError as error:
            report.add("mask dropped, its box is kept", f"{image}, annotation {row.id}: {error}")
    return {
        "boxes": np.array(corners, np.float64).reshape(-1, 4),
        "labels": np.array([label_of[o.category_id] for o in objects], np.int32),
        "area": np.array([np.nan if o.area is None else o.area for o in objects], np.float64),
        "crowd": np.array([bool(o.iscrowd) for o in objects], bool),
        "difficult": np.array([bool(o.ignore if o.difficult is None else o.difficult) for o in objects], bool),
        "masks": tuple(runs),
    }


def _categories(parts: list[msgspec.Raw], path: pathlib.Path) -> dict[int, str]:
    found: dict[int, CategoryRow] = {}
    for index, row in enumerate(rows(parts, CategoryRow)):
        if isinstance(row, RowError):
            raise FileError(f"{path}: {_named('category', index, row)}; give each category an id and a name")
        if row.id in found:
            raise FileError(f"{path}: two categories have the id {row.id}; give each category an id of its own")
        found[row.id] = row
    names = {number: found[number].name or f"category {number}" for number in sorted(found)}
    often = collections.Counter(names.values())
    return {number: f"{name} ({number})" if often[name] > 1 else name for number, name in names.items()}


def _field(error: RowError, name: str) -> Any:
    value = error.row.get(name) if isinstance(error.row, dict) else None
    return value if isinstance(value, int) else None


def _named(what: str, index: int, error: RowError) -> str:
    """Which row it is, by its id where there is one, and what is wrong with it."""
    row = error.row if isinstance(error.row, dict) else {}
    return f"{what} {shown(row['id'])}: {error}" if "id" in row else f"{what} number {index + 1}: {error}"
