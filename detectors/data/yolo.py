"""YOLO's layout: a text file of boxes or polygons per image, and a ``data.yaml`` that names folders and categories.

    root/data.yaml    root/images/{train,val}/    root/labels/{train,val}/        Ultralytics, CVAT
    root/data.yaml    root/train/{images,labels}/    root/valid/{images,labels}/    Roboflow
    root/classes.txt    root/images/    root/labels/                              Label Studio
    root/classes.txt    root/*.jpg    root/*.txt                                  labelImg

A line of a label file is ``category x y width height`` of a box's centre, or ``category x1 y1 x2 y2 ...`` of a polygon,
in parts of the image's width and height.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import yaml

from detectors.data.annotated import AnnotatedImage
from detectors.data.decoding import SUFFIXES, ImageError, read_encoded, upright_size
from detectors.data.json_rows import read_bytes, shown
from detectors.data.masks import run_lengths
from detectors.data.on_disk import DiskData, LayoutError, columns, named_path
from detectors.data.records import BadRecord, BadRecords

NAMES = ("classes.txt", "obj.names")  # files with the name of a category in each line
_BEYOND = 0.05  # parts of the image by which a box may reach beyond it


@dataclasses.dataclass
class YoloData(DiskData):
    """A data set in YOLO's layout.

    Attributes:
      file: names the folders and categories, under root; without it, the images are all those under root, and the
        categories are in ``classes.txt`` or ``obj.names``.
      train, test: entries of ``file``; empty for all images under root.
    """

    file: str = "data.yaml"
    train: str = "train"
    test: str = "val"

    kind = "yolo"
    title = "YOLO's layout"
    source = "the tool that you label images with, which exports it as YOLO or Ultralytics"

    def expected(self) -> list[str]:
        return [self.file, "the images that it names"] if self.file else [f"{' or '.join(NAMES)}", "images"]

    def annotation_files(self, role: str) -> list[pathlib.Path]:
        choices = [self.folder() / self.file] if self.file else self._names_files()
        file = next((path for path in choices if path.is_file()), choices[0])
        if not file.is_file():
            return [file]
        labels = (label_file(image, self.folder()) for image in self._readable(role))
        return [file, *(label for label in labels if os.path.isfile(label))]

    def image_folders(self, role: str) -> list[pathlib.Path]:
        folders = {image.parent for image in self._readable(role)}
        return sorted(folder for folder in folders if os.path.isdir(folder))

    def categories(self) -> tuple[str, ...]:
        if self.file:
            names = self.settings().get("names")
            names = [names[key] for key in sorted(names)] if isinstance(names, dict) else names
            if not isinstance(names, list) or not names:
                raise LayoutError(f"{self.folder() / self.file} has no names of categories (names: [...])")
        else:
            (path,) = [path for path in self._names_files() if path.is_file()][:1]
            names = [line.strip() for line in read_bytes(path).decode(errors="replace").splitlines() if line.strip()]
        names = [str(name) for name in names]
        return tuple(f"{name} ({n})" if names.count(name) > 1 else name for n, name in enumerate(names))

    def read(self, role: str, categories: tuple[str, ...], report: BadRecords) -> Iterator[AnnotatedImage]:
        for image_id, image in enumerate(self.images_of(role), start=1):
            try:
                label = label_file(self.image_path(self.folder(), str(image)), self.folder())
                yield _read_image(image, label, image_id, categories)
            except BadRecord as bad:
                report.add(bad.reason, bad.detail)

    def _names_files(self) -> list[pathlib.Path]:
        return [folder / name for folder in (self.folder(), self.folder() / "labels") for name in NAMES]

    def settings(self) -> dict:
        """The entries of ``file``."""
        path = self.folder() / self.file
        try:
            settings = yaml.safe_load(read_bytes(path))
        except (yaml.YAMLError, ValueError, OSError) as error:
            raise LayoutError(f"{path} can't be read: {' '.join(str(error).split())}") from error
        if not isinstance(settings, dict):
            raise LayoutError(f"{path} has no entries; it must name train, val and names")
        return settings

    def images_of(self, role: str) -> list[pathlib.Path]:
        """The images of a split, sorted; lists may name some that are missing, or that may not be read."""
        key = getattr(self, role)
        if not self.file or not key:
            return _within(self.folder())
        settings = self.settings()
        named = settings.get(key)
        places = [place for place in (named if isinstance(named, list) else [named]) if isinstance(place, str)]
        if not places:
            raise LayoutError(
                f"{self.folder() / self.file} has no images of {key} ({key}: {shown(named)}); its entries are "
                f"{', '.join(map(str, settings))}"
            )
        return sorted({image for place in places for image in self._at(place, settings.get("path"))})

    def _readable(self, role: str) -> list[pathlib.Path]:
        """The images of a split but for those that may not be read, which ``read`` reports."""
        return [image for image in self.images_of(role) if self.may_read(image)]

    def _at(self, place: str, base: object) -> list[pathlib.Path]:
        """The images of a folder or list of images. Exports name them from folders that only their author has."""
        inside = pathlib.PurePath(*(part for part in pathlib.PurePath(place).parts if part not in ("..", "/")))
        choices = [self.folder() / inside]
        if isinstance(base, str):
            choices += [self.folder() / base / place, self.folder() / pathlib.PurePath(base).name / place]
        choices = [pathlib.Path(os.path.normpath(choice)) for choice in choices]
        choices = [choice for choice in choices if self.may_read(choice)]
        for choice in choices:
            if choice.is_dir():
                return _within(choice)
            if choice.is_file():
                lines = [line.strip() for line in read_bytes(choice).decode(errors="replace").splitlines()]
                return [self._listed(line) for line in lines if line]
        raise LayoutError(
            f"{self.folder() / self.file} names {place}, which is not below {self.folder()}: correct it, or set "
            "--config.outside=True"
        )

    def _listed(self, line: str) -> pathlib.Path:
        """An image of a list; lists may begin with a folder above the root, such as CVAT's ``data/``."""
        path, parts = named_path(self.folder(), line), pathlib.PurePath(line).parts
        return path if os.path.exists(path) or len(parts) < 2 else named_path(self.folder(), os.path.join(*parts[1:]))


def label_file(image: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """The label file of an image: in the folder ``labels`` beside its ``images``, else beside the image.

    Args:
      image: of the data set.
      root: of the data set, whose own name and those of the folders above it say nothing.
    """
    above = len(root.parts) if image.is_relative_to(root) else 0
    parts = image.parts
    for index in range(len(parts) - 2, above - 1, -1):
        if parts[index] == "images":
            label = pathlib.Path(*parts[:index], "labels", *parts[index + 1 :]).with_suffix(".txt")
            return label if os.path.exists(label) else image.with_suffix(".txt")
    return image.with_suffix(".txt")


def _within(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _read_image(image: pathlib.Path, path: pathlib.Path, image_id: int, categories: tuple[str, ...]) -> AnnotatedImage:
    """Reads one image's labels; an image without a label file shows no object."""
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines() if os.path.exists(path) else []
    except OSError as error:
        raise BadRecord("annotation that cannot be read", f"{path} ({error.strerror})") from error
    try:
        size = upright_size(read_encoded(image))
    except ImageError:  # which is said where the image is decoded
        return AnnotatedImage(image, image_id, None, **columns(np.zeros((0, 4)), []))
    boxes, labels, masks = [], [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label, box, mask = _read_line(line, size, len(categories))
        except ValueError as error:
            raise BadRecord("annotation that cannot be read", f"{path.name}, line {number}: {error}") from error
        boxes.append(box)
        labels.append(label)
        masks.append(mask)
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return AnnotatedImage(image, image_id, size, **columns(array, labels, masks=masks))


def _read_line(line: str, size: tuple[int, int], classes: int) -> tuple[int, list[float], bytes]:
    """The label, corners in pixels and mask of an object; raises ValueError for what is no object."""
    try:
        label, *numbers = [float(word) for word in line.split()]
    except ValueError as error:
        raise ValueError(f"{shown(line)} is not numbers") from error
    if not math.isfinite(label) or label != int(label):
        raise ValueError(f"{shown(line)} does not begin with the number of a category")
    if not 0 <= label < classes:
        raise ValueError(f"category {label:g} is not among the {classes}, which count from 0")
    if any(not -_BEYOND <= number <= 1 + _BEYOND for number in numbers):
        raise ValueError(f"{shown(line)} has numbers outside 0..1; they are parts of the image's width and height")
    height, width = size
    if len(numbers) == 4:
        x, y, w, h = (number * side for number, side in zip(numbers, (width, height, width, height), strict=True))
        return int(label), [x - w / 2, y - h / 2, x + w / 2, y + h / 2], b""
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{shown(line)} has {len(numbers)} numbers after the category, not those of a box or polygon")
    points = np.array(numbers).reshape(-1, 2) * (width, height)
    corners = [*points.min(0).tolist(), *points.max(0).tolist()]
    return int(label), corners, run_lengths(json.dumps([points.ravel().tolist()]).encode(), size)
