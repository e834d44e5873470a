"""Turns the records of a detection data set into valid examples, and reports what was wrong with the others.

A record is a mapping with ``image`` (encoded bytes), ``image_id`` and ``objects`` (``box``, ``label`` and possibly
``mask`` of each object), as TFDS gives it. A bad record never stops a run: it is counted, reported and left out.
"""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from cse_jax.errors import UserError
from detectors.data.decoding import ImageError, decode_rgb


@runtime_checkable
class Records(Protocol):
    """The records of a split, by number; a list is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Annotation(NamedTuple):
    """The objects of one image. Boxes have an area and are in pixels of the original image.

    Objects that are ``crowd`` (COCO) or ``difficult`` (VOC) are not trained on. COCO's rules neither reward nor punish
    finding the former, VOC's rules both. A field is None where a data set does not have it.
    """

    image_id: int
    size: tuple[int, int]  # (height, width), pixels
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    area: Float[np.ndarray, " n"] | None = None  # square pixels, as annotated; None or NaN: of what is scored
    crowd: Bool[np.ndarray, " n"] | None = None
    difficult: Bool[np.ndarray, " n"] | None = None
    masks: tuple[bytes, ...] | None = None  # run lengths of each object in COCO's compressed form; empty: no mask

    @property
    def trained(self) -> Bool[np.ndarray, " n"]:
        """Marks the objects that a detector is trained to find."""
        ignored = np.zeros(len(self.labels), bool)
        for flags in (self.crowd, self.difficult):
            ignored = ignored if flags is None else ignored | flags
        return ~ignored


LISTED_TWICE = "image that is listed twice, taken once"  # a reason


class BadRecord(UserError, ValueError):
    """A record that cannot be used. ``reason`` says why in general, ``detail`` for this record."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class BadRecords:
    """Counts of what was left out or repaired, by reason, with the first few cases of each."""

    def __init__(self, shown: int = 3):
        self.counts: collections.Counter[str] = collections.Counter()
        self.cases: dict[str, list[str]] = collections.defaultdict(list)
        self._shown = shown

    def first(self, shown: int) -> "BadRecords":
        """The same counts with up to ``shown`` cases of each reason."""
        return BadRecords.from_json(self.to_json(), shown)

    def to_json(self) -> dict[str, list]:
        """For each reason the count and the cases that are kept."""
        return {reason: [count, self.cases[reason]] for reason, count in self.counts.items()}

    @classmethod
    def from_json(cls, reasons: dict[str, list], shown: int = 3) -> "BadRecords":
        """The report that ``to_json`` wrote, with up to ``shown`` cases of each reason."""
        report = cls(shown)
        for reason, (count, cases) in reasons.items():
            report.counts[reason], report.cases[reason] = count, cases[:shown]
        return report

    def add(self, reason: str, detail: str) -> None:
        """Counts a case; the first few are kept with their details."""
        self.counts[reason] += 1
        if len(self.cases[reason]) < self._shown:
            self.cases[reason].append(detail)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        lines = []
        for reason, count in self.counts.most_common():
            more = ["..."] if count > len(self.cases[reason]) else []
            cases = "; ".join([*self.cases[reason], *more])
            lines.append(f"{count} x {reason}" + (f": {cases}" if self.cases[reason] else ""))
        return "\n".join(lines)


def decode_image(encoded: bytes, image_id: int) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image, as ``decode_rgb`` says.

    Raises:
      BadRecord: they cannot be decoded.
    """
    try:
        return decode_rgb(encoded)
    except ImageError as error:
        raise BadRecord("image that cannot be decoded", f"image {image_id} ({error})") from error


def read_annotation(
    record: Mapping, size: tuple[int, int], categories: tuple[str, ...], report: BadRecords, *, masks: bool = False
) -> Annotation:
    """Checks the objects of a record against its image.

    Boxes that are not finite, have no area or lie outside the image are dropped, boxes that reach beyond its border
    are clipped; both are counted in ``report``.

    Args:
      record: see the module's docstring.
      size: (height, width) of the decoded image, pixels.
      categories: the declared names; labels index them.
      report: receives what is dropped or repaired.
      masks: whether to read the objects' masks, where the record has them.

    Raises:
      BadRecord: an object's category is not declared. The whole image is left out, because without the object it
        would teach a detector that there is none.
    """
    image_id = int(record["image_id"])
    boxes = np.asarray(record["objects"]["box"], np.float32).reshape(-1, 4)
    labels = np.asarray(record["objects"]["label"]).reshape(-1).astype(np.int64)
    if len(boxes) != len(labels):
        raise BadRecord("boxes and labels differ in number", f"image {image_id}: {len(boxes)} and {len(labels)}")
    runs = record["objects"].get("mask") if masks else None
    if runs is not None and len(runs) != len(labels):
        raise BadRecord("masks and labels differ in number", f"image {image_id}: {len(runs)} and {len(labels)}")
    undeclared = labels[(labels < 0) | (labels >= len(categories))]
    if undeclared.size:
        raise BadRecord(
            "category that is not declared",
            f"image {image_id} has category {undeclared[0]}, declared are 0..{len(categories) - 1}"
            f" ({', '.join(categories)})",
        )
    height, width = size
    limit = np.array([width, height, width, height], np.float32)
    kept = []
    for index, box in enumerate(boxes):
        where = f"image {image_id} ({width}x{height}), box {tuple(float(edge) for edge in box)}"
        if not np.isfinite(box).all():
            report.add("box dropped, not finite", where)
        elif box[2] <= box[0] or box[3] <= box[1]:
            report.add("box dropped, without area", where)
        elif (box[:2] >= limit[:2]).any() or (box[2:] <= 0).any():
            report.add("box dropped, outside the image", where)
        else:
            kept.append(index)
    clipped = np.clip(boxes[kept], 0, limit)
    for index, box in zip(kept, clipped, strict=True):
        if (box != boxes[index]).any():
            report.add(
                "box clipped to the image",
                f"image {image_id} ({width}x{height}), box {tuple(float(edge) for edge in boxes[index])}",
            )
    chosen = None if runs is None else tuple(bytes(runs[index]) for index in kept)
    return Annotation(image_id, (height, width), clipped, labels[kept].astype(np.int32), masks=chosen)
