"""BDD100K's layout: one JSON file of labels per split, and folders of images.

root/images/100k/{train,val}/
root/labels/det_20/det_{train,val}.json, or the older root/labels/bdd100k_labels_images_{train,val}.json
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from detectors.data.annotated import AnnotatedImage
from detectors.data.on_disk import DiskData, LayoutError, columns
from detectors.data.records import BadRecord, BadRecords

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
        try:
            rows = json.loads(path.read_bytes())
            rows = rows["frames"] if isinstance(rows, dict) else rows
        except (ValueError, KeyError) as error:
            raise LayoutError(f"{path} is not a file of BDD100K labels: {error}") from error
        for image_id, row in enumerate(rows, start=1):
            try:
                yield _read_row(row, folder, image_id, categories)
            except BadRecord as bad:
                report.add(bad.reason, bad.detail)


def _read_row(row: object, folder: pathlib.Path, image_id: int, categories: tuple[str, ...]) -> AnnotatedImage:
    """Reads one image's labels. Lanes and drivable areas have no box and do not count as objects."""
    name = row.get("name") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(name, str):
        raise BadRecord("annotation that cannot be read", f"row {image_id} has no name")
    try:
        objects = [label for label in row.get("labels") or [] if label.get("box2d")]
        own = [str(o["category"]) for o in objects]
        boxes = np.array([[o["box2d"][e] for e in ("x1", "y1", "x2", "y2")] for o in objects], np.float64)
        crowd = [category in IGNORED or _is_crowd(o) for category, o in zip(own, objects, strict=True)]
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        detail = f"{name} ({type(error).__name__}: {error})"
        raise BadRecord("annotation that cannot be read", detail) from error
    ours = [RENAMED.get(category, IGNORED.get(category, category)) for category in own]
    unknown = sorted(set(ours) - set(categories))
    if unknown:
        raise BadRecord("category that is not declared", f"{name}: {', '.join(unknown)}")
    labels = [categories.index(category) for category in ours]
    return AnnotatedImage(folder / name, image_id, None, **columns(boxes.reshape(-1, 4), labels, crowd=crowd))


def _is_crowd(label: dict) -> bool:
    return bool((label.get("attributes") or {}).get("crowd"))
