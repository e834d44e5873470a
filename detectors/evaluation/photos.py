"""Image files as a detector's input, and its detections in pixels of these files."""

import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from cse_jax.errors import UserError
from detectors.data.decoding import SUFFIXES, ImageError, decode_rgb, read_encoded, upright_size
from detectors.data.pipeline import Example, Layout, make_batch
from detectors.data.records import Annotation
from detectors.data.resizing import image_size
from detectors.data.settings import BatchConfig
from detectors.evaluation.coco import Predict, collect


class PhotoError(UserError, OSError):
    """An image file that cannot be read; the message names it and says why."""


class Finding(NamedTuple):
    """The objects found on one image, best first: boxes and masks in pixels of the upright original."""

    objects: Annotation
    scores: Float[np.ndarray, " n"]


def image_files(paths: Iterable[str], *, recursive: bool = False) -> Iterator[pathlib.Path]:
    """The given files, and those in the given folders that are images by their names, each file once.

    Args:
      paths: files and folders.
      recursive: whether to look into the folders' sub-folders.
    """
    seen = set()
    for path in map(pathlib.Path, paths):
        below = path.rglob("*") if recursive else path.glob("*")
        inside = sorted(p for p in below if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        for file in inside:
            if file.absolute() not in seen:
                seen.add(file.absolute())
                yield file


def passed_over(paths: Iterable[str], *, recursive: bool = False) -> str:
    """What in the given folders ``image_files`` leaves out, in words; empty for nothing."""
    inside = [p for path in map(pathlib.Path, paths) if path.is_dir() for p in path.glob("**/*" if recursive else "*")]
    folders = 0 if recursive else sum(p.is_dir() for p in inside)
    others = sorted({p.suffix.lower() or p.name for p in inside if p.is_file() and p.suffix.lower() not in SUFFIXES})
    parts = [f"{folders} sub-folders (--recursive looks into them)"] if folders else []
    parts += [f"files that are no images by their names ({', '.join(others[:5])})"] if others else []
    return " and ".join(parts)


def size_of(path: pathlib.Path) -> tuple[int, int]:
    """(height, width) of an image turned as its camera says, from the file's header only.

    Raises:
      PhotoError: it is missing, or not an image.
    """
    try:
        return upright_size(read_encoded(path))
    except ImageError as error:
        raise PhotoError(f"{path}: {error}") from error


def read_photo(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image's pixels, as a detector was trained on them.

    Raises:
      PhotoError: it is missing, damaged or not an image.
    """
    try:
        return decode_rgb(read_encoded(path))
    except ImageError as error:
        raise PhotoError(f"{path}: {error}") from error


def find_objects(
    predict: Predict,
    image: UInt8[np.ndarray, "h w 3"],
    layout: Layout,
    config: BatchConfig,
    *,
    least: float,
    whole_pixels: bool = False,
) -> Finding:
    """What a detector finds on one image.

    Args:
      predict: the detector.
      image: of any size.
      layout: of ``layout_for``.
      config: how images were resized in the detector's training.
      least: score below which detections are left out.
      whole_pixels: as for ``detect``.
    """
    size = image_size(image)
    nothing = Annotation(0, size, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    batch = make_batch([Example(config.fitted(image), nothing)], layout._replace(max_boxes=0, mask_stride=0))
    found = jax.device_get(predict(batch.image, batch.image_size))
    found = collect(
        found._replace(valid=found.valid & (found.scores >= least)), batch, {0: size}, whole_pixels=whole_pixels
    )
    order = np.argsort(-found.scores, kind="stable")
    masks = None if found.masks is None else tuple(bytes(found.masks[index]["counts"]) for index in order)
    objects = nothing._replace(boxes=found.boxes[order], labels=found.labels[order], masks=masks)
    return Finding(objects, found.scores[order])
