"""Draws an image with its objects, for people to look at."""

from collections.abc import Sequence

import numpy as np
from hotcoco import mask as rle
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from detectors.data.records import Annotation

COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#ffffff")
MASK_OPACITY = 0.45


def draw_objects(image: UInt8[np.ndarray, "h w 3"], annotation: Annotation, categories: Sequence[str]) -> Image.Image:
    """The image with boxes, names and masks of all its objects. Crowds and difficult objects say so.

    Args:
      image: of the annotation's size.
      annotation: its objects.
      categories: names of the labels.
    """
    canvas = np.array(image, np.float32)
    for index, runs in enumerate(annotation.masks or ()):
        if runs:
            inside = rle.decode({"size": list(annotation.size), "counts": runs}).astype(bool)
            colour = np.array(Image.new("RGB", (1, 1), _colour(annotation.labels[index])), np.float32)[0, 0]
            canvas[inside] += MASK_OPACITY * (colour - canvas[inside])
    drawn = Image.fromarray(canvas.astype(np.uint8))
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=11)
    # Large objects first, so that names of small ones stay readable.
    order = np.argsort(-(annotation.boxes[:, 2:] - annotation.boxes[:, :2]).prod(1), kind="stable")
    for index in order:
        colour, name = _colour(annotation.labels[index]), categories[annotation.labels[index]]
        for flag in ("crowd", "difficult"):
            flags = getattr(annotation, flag)
            name += f" ({flag})" if flags is not None and flags[index] else ""
        x1, y1, x2, y2 = (float(edge) for edge in annotation.boxes[index])
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=2)
        left, top, right, bottom = pen.textbbox((0, 0), name, font=font)
        x = min(max(x1, 0), max(drawn.width - right - 3, 0))
        y = y1 - bottom - 2 if y1 > bottom + 2 else max(y1, 0)  # above the box if there is room
        pen.rectangle((x, y, x + right + 3, y + bottom + 2), fill=colour)
        pen.text((x + 2, y), name, fill="black" if sum(_rgb(colour)) > 380 else "white", font=font)
    return drawn


def _colour(label: int) -> str:
    return COLOURS[int(label) % len(COLOURS)]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
