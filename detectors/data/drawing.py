"""Draws an image with its objects, for people to look at."""

from collections.abc import Sequence

import numpy as np
from hotcoco import mask as rle
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from detectors.data.records import Annotation

COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#ffffff")
MASK_OPACITY = 0.45
_FONT = 11  # pixels of a name's letters on images of up to _USUAL_SIDE; it grows with larger ones
_USUAL_SIDE = 640


def draw_objects(
    image: UInt8[np.ndarray, "h w 3"],
    annotation: Annotation,
    categories: Sequence[str],
    *,
    scores: Float[np.ndarray, " n"] | None = None,
) -> Image.Image:
    """The image with boxes, names and masks of all its objects. Names mark crowds and difficult objects.

    Args:
      image: of the annotation's size.
      annotation: its objects.
      categories: names of the labels.
      scores: in 0..1, drawn beside the names.
    """
    scale = max(1.0, max(image.shape[:2]) / _USUAL_SIDE)
    width, font = round(2 * scale), ImageFont.load_default(size=_FONT * scale)
    canvas = np.array(image, np.float32)
    for index, runs in enumerate(annotation.masks or ()):
        if runs:
            inside = rle.decode({"size": list(annotation.size), "counts": runs}).astype(bool)
            colour = np.array(_rgb(_colour(int(annotation.labels[index]))), np.float32)
            canvas[inside] += MASK_OPACITY * (colour - canvas[inside])
    drawn = Image.fromarray(canvas.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    # Large objects first, and all names after all boxes, so that those of small ones stay readable.
    order = np.argsort(-(annotation.boxes[:, 2:] - annotation.boxes[:, :2]).prod(1), kind="stable").tolist()
    for index in order:
        x1, y1, x2, y2 = _in_image(annotation.boxes[index], drawn.size)
        pen.rectangle((x1, y1, x2, y2), outline=_colour(int(annotation.labels[index])), width=width)
    taken: list[tuple[float, float, float, float]] = []
    for index in order[::-1]:  # small ones have the first choice of a place
        colour, name = _colour(int(annotation.labels[index])), _named(annotation, index, categories, scores)
        left, top, right, bottom = pen.textbbox((0, 0), name, font=font)
        plate = (right + 2 * width, bottom + width)
        place = _place(_in_image(annotation.boxes[index], drawn.size), plate, drawn.size, taken)
        taken.append((*place, place[0] + plate[0], place[1] + plate[1]))
        pen.rectangle(taken[-1], fill=colour)
        pen.text((place[0] + width, place[1]), name, fill="black" if _bright(colour) else "white", font=font)
    return drawn


def _named(
    annotation: Annotation, index: int, categories: Sequence[str], scores: Float[np.ndarray, " n"] | None
) -> str:
    name = categories[int(annotation.labels[index])]
    for flag in ("crowd", "difficult"):
        flags = getattr(annotation, flag)
        name += f" ({flag})" if flags is not None and flags[index] else ""
    return name if scores is None else f"{name} {scores[index]:.2f}"


def _in_image(box: Float[np.ndarray, "4"], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The outermost pixels of a box, clipped to an image of (width, height)."""
    x1, y1 = (min(max(float(edge), 0.0), side - 1.0) for edge, side in zip(box[:2], size, strict=True))
    x2, y2 = (min(max(float(edge) - 1.0, 0.0), side - 1.0) for edge, side in zip(box[2:], size, strict=True))
    return x1, y1, max(x1, x2), max(y1, y2)


def _place(
    box: tuple[float, float, float, float], plate: tuple[float, float], size: tuple[int, int], taken: list
) -> tuple[float, float]:
    """The first free place for a name within the image: over its box, inside it, beside it or under it."""
    x1, y1, x2, y2 = box
    wide, high = plate
    right, lowest = max(size[0] - wide - 1, 0), max(size[1] - high - 1, 0)
    choices = [(x1, y1 - high), (x1, y1), (x1, y2 - high), (x1, y2)]
    choices += [(x2 - wide, y) for y in (y1 - high, y1, y2 - high, y2)]
    choices += [(x1, y1 + lines * high) for lines in (1, 2, 3)]
    choices = [(min(max(x, 0), right), y) for x, y in choices if 0 <= y <= lowest]
    for x, y in choices:
        mine = (x, y, x + plate[0], y + plate[1])
        if not any(_overlap(mine, other) for other in taken):
            return x, y
    return choices[0] if choices else (min(max(x1, 0), right), min(max(y1, 0), lowest))


def _overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _colour(label: int) -> str:
    return COLOURS[label % len(COLOURS)]


def _bright(colour: str) -> bool:
    red, green, blue = _rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
