"""BDD100K's layout: one JSON file of labels per split, and folders of images.

root/images/100k/{train,val}/
root/labels/det_20/det_{train,val}.json, or the older root/labels/bdd100k_labels_images_{train,val}.json
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import msgspec
import numpy as np

from detectors.data.annotated import AnnotatedImage
from detectors.data.json_rows import Flag, RowError, read_table, rows
from detectors.data.on_disk import DiskData, columns
from detectors.data.records import LISTED_TWICE, BadRecord, BadRecords

BDD_CATEGORIES = (
    "pedestrian",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
    "traffic light",
    "traffic sign",
)
RENAMED = {"person": "pedestrian", "motor": "motorcycle", "bike": "bicycle", "van": "car", "caravan": "car"}
IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}  # treated as crowds of these
_LABELS = ("labels/det_20/det_{split}.json", "labels/bdd100k_labels_images_{split}.json")


@dataclasses.dataclass
class Bdd100kData(DiskData):
    """BDD100K detection: 10 categories of street scenes, 1280x720.

    Attributes:
      train, test: names of the splits.
    """

    train: str = "train"
    test: str = "val"

    kind = "bdd100k"
    title = "BDD100K"
    source = "https://bdd-data.berkeley.edu (100K Images and Detection 2020 Labels)"

    def expected(self) -> list[str]:
        return [
            part
            for split in (self.train, self.test)
            for part in (f"images/100k/{split}", " or ".join(form.format(split=split) for form in _LABELS))
        ]

    def annotation_files(self, role: str) -> list[pathlib.Path]:
        paths = [self.folder() / form.format(split=getattr(self, role)) for form in _LABELS]
        return [next((path for path in paths if path.is_file()), paths[0])]

    def image_folders(self, role: str) -> list[pathlib.Path]:
        return [self.folder() / "images" / "100k" / getattr(self, role)]

    def categories(self) -> tuple[str, ...]:
        return BDD_CATEGORIES

    def read(self, role: str, categories: tuple[str, ...], report: BadRecords) -> Iterator[AnnotatedImage]:
        (path,), (folder,) = self.annotation_files(role), self.image_folders(role)
        content = read_table(path, _Frames | list[msgspec.Raw], wanted="a file of BDD100K labels, a list of images")
        parts = content.frames if isinstance(content, _Frames) else content
        seen = set()
        for image_id, row in enumerate(rows(parts, _Image), start=1):
            try:
                if isinstance(row, RowError):
                    name = row.row.get("name", "") if isinstance(row.row, dict) else ""
                    raise BadRecord("annotation that cannot be read", f"row {image_id} {name}: {row}")
                if row.name in seen:
                    raise BadRecord(LISTED_TWICE, f"{path.name}: {row.name}")
                seen.add(row.name)
                yield self._read_row(row, folder, image_id, categories)
            except BadRecord as bad:
                report.add(bad.reason, bad.detail)

    def _read_row(self, row: "_Image", folder: pathlib.Path, image_id: int, categories: tuple[str, ...]):
        """Reads one image's labels. Lanes and drivable areas have no box and do not count as objects."""
        objects = [label for label in row.labels or [] if label.box2d is not None]
        own = [label.category for label in objects]
        corners = [(box.x1, box.y1, box.x2, box.y2) for box in (label.box2d for label in objects) if box]
        crowd = [o.category in IGNORED or bool(o.attributes and o.attributes.crowd) for o in objects]
        ours = [RENAMED.get(category, IGNORED.get(category, category)) for category in own]
        unknown = sorted(set(ours) - set(categories))
        if unknown:
            raise BadRecord("category that is not declared", f"{row.name}: {', '.join(unknown)}")
        boxes = np.array(corners, np.float64).reshape(-1, 4)
        described = columns(boxes, [categories.index(category) for category in ours], crowd=crowd)
        return AnnotatedImage(self.image_path(folder, row.name), image_id, None, **described)


class _Box(msgspec.Struct):
    x1: float
    y1: float
    x2: float
    y2: float


class _Attributes(msgspec.Struct):
    crowd: Flag = None


class _Label(msgspec.Struct):
    category: str
    box2d: _Box | None = None
    attributes: _Attributes | None = None


class _Image(msgspec.Struct):
    name: str
    labels: list[_Label] | None = None


class _Frames(msgspec.Struct):
    frames: list[msgspec.Raw]
