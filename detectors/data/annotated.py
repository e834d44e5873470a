"""Images as the files of a data set describe them, their check, and the columns in which annotations are kept.

Readers of the data sets' own layouts yield ``AnnotatedImage``; ``check`` decides which parts of it can be used.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from detectors.data.decoding import ImageError, decode_rgb, read_encoded
from detectors.data.records import Annotation, BadRecord, BadRecords

BORDER = 1.0  # pixels by which a box may reach beyond the image without being reported


class AnnotatedImage(NamedTuple):
    """One image of a data set. Boxes are ``(x1, y1, x2, y2)`` in pixels with exclusive far edges."""

    path: pathlib.Path
    image_id: int
    size: tuple[int, int] | None  # (height, width) as annotated; None where a data set does not say it
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    area: Float[np.ndarray, " n"]  # square pixels, NaN where it is not annotated
    crowd: Bool[np.ndarray, " n"]
    difficult: Bool[np.ndarray, " n"]
    masks: tuple[bytes, ...]  # one per object, empty where there is none


def check(image: AnnotatedImage, report: BadRecords) -> tuple[bytes, AnnotatedImage]:
    """Reads and decodes an image and drops its unusable boxes.

    Args:
      image: as annotated.
      report: receives the reason for each dropped box.

    Returns:
      The file's bytes, and the image with its true size and its good boxes.

    Raises:
      BadRecord: the file is missing or not an image, or has another size than annotated.
    """
    try:
        encoded = read_encoded(image.path)
    except ImageError as error:
        raise BadRecord("missing file", f"{image.path} ({error})") from error
    try:
        height, width = decode_rgb(encoded).shape[:2]
    except ImageError as error:
        raise BadRecord("image that cannot be decoded", f"{image.path.name} ({error})") from error
    if image.size is not None and image.size != (height, width):
        turned = ", as stored: it is turned by its EXIF orientation" if image.size == (width, height) else ""
        raise BadRecord(
            "image of another size than annotated",
            f"{image.path.name} is {width}x{height}, annotated {image.size[1]}x{image.size[0]}{turned}",
        )
    return encoded, with_usable_boxes(image._replace(size=(height, width)), report)


def with_usable_boxes(image: AnnotatedImage, report: BadRecords) -> AnnotatedImage:
    """The image without the boxes that are not finite, have no area or, where its size is known, lie outside it."""
    kept = []
    height, width = image.size or (np.inf, np.inf)
    limit = np.array([width, height])
    known = f"{image.path.name} ({width}x{height})" if image.size else image.path.name
    for index, box in enumerate(image.boxes):
        where = f"{known}, box {tuple(float(edge) for edge in box)}"
        if not np.isfinite(box).all():
            report.add("box dropped, not finite", where)
        elif (box[2:] <= box[:2]).any():
            report.add("box dropped, without area", where)
        elif (box[:2] >= limit).any() or (box[2:] <= 0).any():
            report.add("box dropped, outside the image", where)
        else:
            kept.append(index)
            if (box[:2] < -BORDER).any() or (box[2:] > limit + BORDER).any():
                report.add("box beyond the border, clipped in training", where)
    columns = {name: getattr(image, name)[kept] for name in ("boxes", "labels", "area", "crowd", "difficult")}
    return image._replace(masks=tuple(image.masks[index] for index in kept), **columns)


def save_annotations(path: pathlib.Path, images: Iterable[AnnotatedImage]) -> None:
    """Writes the annotations of checked images in columns; see ``load_annotations``."""
    images = list(images)
    masks = [mask for image in images for mask in image.masks]

    def joined(name: str, empty: np.ndarray) -> np.ndarray:
        return np.concatenate([empty, *(getattr(image, name) for image in images)], dtype=empty.dtype)

    np.savez(
        path,
        names=np.array([image.path.name for image in images]),
        image_ids=np.array([image.image_id for image in images], np.int64),
        sizes=np.array([image.size for image in images], np.int32).reshape(-1, 2),
        counts=np.array([len(image.labels) for image in images], np.int32),
        boxes=joined("boxes", np.zeros((0, 4))),
        labels=joined("labels", np.zeros(0, np.int32)),
        area=joined("area", np.zeros(0)),
        crowd=joined("crowd", np.zeros(0, bool)),
        difficult=joined("difficult", np.zeros(0, bool)),
        mask_bytes=np.frombuffer(b"".join(masks), np.uint8),
        mask_lengths=np.array([len(mask) for mask in masks], np.int32),
    )


def load_annotations(path: pathlib.Path, *, masks: bool) -> tuple[list[Annotation], list[str]]:
    """The annotations of a split in the order of its records, and the images' file names.

    Args:
      path: written by ``save_annotations``.
      masks: whether to load the objects' masks as well (about 150 bytes an object).
    """
    with np.load(path) as columns:
        ends = np.cumsum(columns["counts"])[:-1]
        parts = [np.split(columns[name], ends) for name in ("boxes", "labels", "area", "crowd", "difficult")]
        ids, sizes, names = columns["image_ids"].tolist(), columns["sizes"].tolist(), columns["names"].tolist()
        runs: list[tuple[bytes, ...] | None] = [None] * len(ids)
        if masks:
            last = np.cumsum(columns["mask_lengths"]).tolist()
            blob, start = columns["mask_bytes"].tobytes(), [0, *last[:-1]]
            encoded = [blob[low:high] for low, high in zip(start, last, strict=False)]
            edges = [0, *np.cumsum(columns["counts"]).tolist()]
            runs = [tuple(encoded[low:high]) for low, high in zip(edges, edges[1:], strict=False)]
    rows = zip(ids, map(tuple, sizes), *parts, runs, strict=True)
    return [Annotation(*row) for row in rows], names


def save_report(path: pathlib.Path, report: BadRecords) -> None:
    """Writes what was dropped when a split was built; see ``load_report``."""
    path.write_text(json.dumps(report.to_json(), indent=1))


def load_report(path: pathlib.Path, shown: int = 3) -> BadRecords:
    """What was dropped when a split was built, with up to ``shown`` cases of each reason."""
    return BadRecords.from_json(json.loads(path.read_text()), shown)
