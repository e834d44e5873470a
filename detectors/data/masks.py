"""Masks as COCO's compressed run lengths: of what COCO's format gives, polygons or runs, checked; and of pixels."""

import msgspec
import numpy as np
from hotcoco import mask as rle
from jaxtyping import Bool

from cse_jax.errors import UserError
from detectors.data.json_rows import Side, shown


class MaskError(UserError, ValueError):
    """A mask that cannot be read; the message says why."""


class _Runs(msgspec.Struct):
    size: tuple[Side, Side]
    counts: str | list[int]


_FORMS = (list[float], list[list[float]], list[list[tuple[float, float]]], _Runs)


def run_lengths(segmentation: msgspec.Raw | bytes, size: tuple[int, int]) -> bytes:
    """A mask as COCO's compressed run lengths, rasterised as in COCO's own evaluation; empty if there is none.

    Args:
      segmentation: JSON. Polygons ``[[x1, y1, x2, y2, ...], ...]`` in pixels, or run lengths ``{"size", "counts"}``.
        One polygon without the outer list and points as pairs are read too.
      size: (height, width) of the image.

    Raises:
      MaskError: it is neither, a polygon has fewer than three points or lies far outside the image, or run lengths are
        of an image of another size.
    """
    if bytes(segmentation).strip() in (b"", b"null", b"[]", b'""'):
        return b""
    form = _decoded(segmentation)
    if isinstance(form, _Runs):
        return _compressed(form, size)
    polygons = _polygons(form)
    if not polygons:
        return b""
    limit = max(size)
    for polygon in polygons:
        if len(polygon) % 2 or len(polygon) < 6:
            raise MaskError(
                f"a polygon of {len(polygon)} numbers, {shown(polygon)}; it needs x and y of 3 points or more"
            )
        points = np.array(polygon)
        if not np.isfinite(points).all() or points.min() < -limit or points.max() > 2 * limit:
            raise MaskError(f"a polygon far outside its image of {size[1]}x{size[0]}, {shown(polygon)}")
    return bytes(rle.merge(rle.frPyObjects(polygons, *size))["counts"])


def encoded(mask: Bool[np.ndarray, "h w"]) -> bytes:
    """The pixels of a mask as COCO's compressed run lengths."""
    return bytes(rle.encode(np.asfortranarray(mask, np.uint8))["counts"])


def _decoded(segmentation: msgspec.Raw | bytes):
    for form in _FORMS:
        try:
            return msgspec.json.decode(segmentation, type=form, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    raise MaskError(f"neither polygons nor run lengths: {shown(segmentation)}")


def _polygons(form: list) -> list[list[float]]:
    """Polygons as lists of x1, y1, x2, y2, ...; one polygon may come without the outer list, and points as pairs."""
    if not form or not isinstance(form[0], list):
        return [_flat(form)] if form else []
    if all(len(part) == 2 for part in form):
        return [_flat(form)] if not isinstance(form[0][0], tuple) else [_flat(part) for part in form]
    return [_flat(part) for part in form]


def _flat(polygon: list) -> list[float]:
    return [number for part in polygon for number in (part if isinstance(part, list | tuple) else (part,))]


def _compressed(runs: _Runs, size: tuple[int, int]) -> bytes:
    if runs.size != size:
        raise MaskError(f"run lengths of size {list(runs.size)} for an image of size {list(size)} (height, width)")
    height, width = size
    if isinstance(runs.counts, list):
        if min(runs.counts, default=-1) < 0 or sum(runs.counts) != height * width:
            raise MaskError(f"run lengths that do not add up to {width}x{height} pixels, {shown(runs.counts)}")
        given: dict = {"size": [height, width], "counts": runs.counts}
        return bytes(rle.frPyObjects(given, height, width)["counts"])
    counts = runs.counts.encode()
    try:
        rle.area({"size": [height, width], "counts": counts})
    except ValueError as error:
        raise MaskError(f"run lengths that are damaged ({error}), {shown(runs.counts)}") from error
    return counts
