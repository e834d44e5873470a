"""Draws one scene: handwritten digits of several scales and colours on a cluttered background.

All randomness comes from the generator that is passed in, so equal seeds give equal pixels. Boxes are tight
around the ink, in pixels, as ``(x1, y1, x2, y2)`` with the far edge exclusive. A mask is the ink that is seen, so a
digit's box may be larger than its mask where later digits cover it.
"""

import dataclasses
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from cse_jax.errors import InputError
from cse_jax.ranges import Count, Positive, Range

INK_LEVEL = 0.3  # coverage above which a pixel counts as ink, for boxes and masks
PLACEMENT_TRIES = 40
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

Pixels = Annotated[int, Range(least=4, most=4096)]
Overlap = Annotated[float, Range(least=0, below=1)]
Contrast = Annotated[float, Range(above=0, most=120)]  # more does not fit on a grey ground
Noise = Annotated[float, Range(least=0, most=255)]


@dataclasses.dataclass
class SceneConfig:
    """How scenes look. Heights are in pixels, contrast and noise in grey levels of 0..255.

    Less contrast, more noise, more clutter and more overlap make the detection harder.
    """

    image_size: Pixels = 96
    max_objects: Positive = 8
    min_height: Pixels = 20  # of a digit's ink, about
    max_height: Pixels = 46
    max_overlap: Overlap = 0.1  # largest shared area of two boxes, as a share of the smaller one's
    contrast: Contrast = 80.0  # least difference in luminance between ink and the ground below it
    noise: Noise = 6.0  # largest standard deviation of the pixel noise
    clutter: Count = 4  # largest number of lines, blobs and pieces of strokes in an image

    def check(self) -> None:
        """Raises InputError for settings that cannot be drawn."""
        if self.min_height > self.max_height:
            raise InputError(f"min_height={self.min_height} must not exceed max_height={self.max_height}")
        if 1.5 * self.max_height > self.image_size:
            raise InputError(
                f"max_height={self.max_height} does not fit image_size={self.image_size}: keep it below two thirds"
            )


class Scene(NamedTuple):
    """An image with its objects, in the order in which they were drawn (a later one covers an earlier one)."""

    image: UInt8[np.ndarray, "h w 3"]
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"]  # the ink that no later object covers


def render_scene(
    rng: np.random.Generator,
    glyphs: Float[np.ndarray, "g 8 8"],
    glyph_labels: Int[np.ndarray, " g"],
    config: SceneConfig,
) -> Scene:
    """Composes one scene from glyphs whose ink is in 0..1, with 1 to ``config.max_objects`` of them."""
    size = config.image_size
    canvas = _background(rng, size)
    for _ in range(rng.integers(0, config.clutter + 1)):
        _draw_distractor(rng, canvas, glyphs, config)

    boxes, labels, masks = [], [], []
    for _ in range(rng.integers(1, config.max_objects + 1)):
        chosen = rng.integers(len(glyphs))
        height = np.exp(rng.uniform(np.log(config.min_height), np.log(config.max_height)))
        glyph = _trimmed(glyphs[chosen])
        ink = _enlarge(glyph, height / len(glyph), aspect=rng.uniform(0.85, 1.25))
        tight = _ink_box(ink)
        position = _free_position(rng, tight, boxes, size, config.max_overlap)
        if position is None:
            continue
        box = tight + np.tile(position, 2)
        _paint(canvas, ink, position, _ink_colour(rng, canvas, box, config.contrast))
        covered = _covered(ink, position, size)
        for earlier in masks:
            earlier &= ~covered
        boxes.append(box)
        labels.append(glyph_labels[chosen])
        masks.append(covered)

    canvas += rng.uniform(0.0, config.noise) * rng.standard_normal(canvas.shape, np.float32)
    return Scene(
        image=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int32),
        masks=np.array(masks, bool).reshape(-1, size, size),
    )


def _background(rng: np.random.Generator, size: int) -> Float[np.ndarray, "s s 3"]:
    """A smooth colour gradient around a random base colour."""
    base = rng.uniform(40, 215) + rng.uniform(-30, 30, 3)
    grid = base + rng.uniform(-35, 35, (3, 3, 1)) + rng.uniform(-12, 12, (3, 3, 3))
    coarse = Image.fromarray(np.clip(np.rint(grid), 0, 255).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32).copy()


def _draw_distractor(rng, canvas, glyphs, config: SceneConfig) -> None:
    """Adds a line, a blob or a piece of a stroke, none of which is an object."""
    kind = int(rng.integers(3))
    if kind == 2:
        # Three of a glyph's eight rows show a stroke but no digit.
        row, column = rng.integers(0, 6, 2)
        piece = glyphs[rng.integers(len(glyphs))][row : row + 3, column : column + 3]
        if piece.max() < 0.5:
            return
        ink = _enlarge(_trimmed(piece), rng.uniform(config.min_height, config.max_height) / 8, aspect=1.0)
        position = rng.integers(0, config.image_size - np.array(ink.shape[::-1]) + 1)
    else:
        ink, position = _shape(rng, config.image_size, is_line=kind == 0)
        if not ink.size:
            return
    box = np.concatenate([position, position + ink.shape[::-1]])
    _paint(canvas, ink, position, _ink_colour(rng, canvas, box, 0.5 * config.contrast))


def _shape(rng, size: int, is_line: bool) -> tuple[Float[np.ndarray, "h w"], Int[np.ndarray, "2"]]:
    """Coverage and position of a line or an ellipse; empty if it lies beyond the border."""
    stencil = Image.new("L", (size, size))
    draw = ImageDraw.Draw(stencil)
    x1, y1, x2, y2 = (int(v) for v in rng.integers(-size // 8, size + size // 8, 4))
    if is_line:
        draw.line((x1, y1, x2, y2), fill=255, width=int(rng.integers(1, 3)))
    else:
        rx, ry = (int(v) for v in rng.integers(size // 24, size // 7, 2))
        draw.ellipse((x1 - rx, y1 - ry, x1 + rx, y1 + ry), fill=int(rng.integers(80, 200)))
    bounds = stencil.getbbox() or (0, 0, 0, 0)
    return np.asarray(stencil.crop(bounds), np.float32) / 255, np.array(bounds[:2])


def _trimmed(glyph: Float[np.ndarray, "r c"]) -> Float[np.ndarray, "h w"]:
    """The glyph without the rows and columns around it that hold no ink."""
    rows, columns = np.flatnonzero(glyph.max(1) > INK_LEVEL), np.flatnonzero(glyph.max(0) > INK_LEVEL)
    return glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _enlarge(glyph: Float[np.ndarray, "r c"], cell: float, aspect: float) -> Float[np.ndarray, "h w"]:
    """Ink coverage 0..1 of a glyph whose cells become smooth, ``cell`` pixels high and ``aspect`` times as wide."""
    rows, columns = np.add(glyph.shape, 2)
    framed = np.zeros((rows, columns), np.float32)
    framed[1:-1, 1:-1] = glyph
    smooth = _resize(framed, round(rows * cell), round(columns * cell * aspect))
    return np.clip((smooth - 0.2) / 0.5, 0.0, 1.0)


def _ink_box(ink: Float[np.ndarray, "h w"]) -> Int[np.ndarray, "4"]:
    rows, columns = np.flatnonzero(ink.max(1) > INK_LEVEL), np.flatnonzero(ink.max(0) > INK_LEVEL)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _covered(ink: Float[np.ndarray, "h w"], position: Int[np.ndarray, "2"], size: int) -> Bool[np.ndarray, "s s"]:
    """Marks the pixels of a scene that ink at a position covers; none of them lies beyond the border."""
    rows, columns = np.nonzero(ink > INK_LEVEL)
    covered = np.zeros((size, size), bool)
    covered[rows + position[1], columns + position[0]] = True
    return covered


def _free_position(rng, tight, boxes: list, size: int, max_overlap: float) -> Int[np.ndarray, "2"] | None:
    """An offset that puts the tight box inside the image and overlaps no box too much; None if none is found."""
    extent = tight[2:] - tight[:2]
    if (extent > size).any():
        return None
    corners = rng.integers(0, size - extent + 1, (PLACEMENT_TRIES, 2))
    free = np.ones(PLACEMENT_TRIES, bool)
    for x1, y1, x2, y2 in boxes:
        near = np.maximum(corners, (x1, y1))
        shared = np.maximum(np.minimum(corners + extent, (x2, y2)) - near, 0).prod(1)
        free &= shared <= max_overlap * min(extent.prod(), (x2 - x1) * (y2 - y1))
    return corners[np.argmax(free)] - tight[:2] if free.any() else None


def _ink_colour(rng, canvas, box, contrast: float) -> Float[np.ndarray, "3"]:
    """A colour at least ``contrast`` lighter or darker than the ground under the box."""
    x1, y1, x2, y2 = np.maximum(box, 0)
    ground = float(canvas[y1:y2:2, x1:x2:2].mean((0, 1)) @ LUMINANCE)
    lighter, darker = 255 - ground - contrast, ground - contrast
    go_lighter = rng.random() < 0.5 if min(lighter, darker) > 0 else lighter > darker
    shift = contrast + rng.random() * max(lighter if go_lighter else darker, 0)
    tint = rng.uniform(-45, 45, 3)
    return ground + (shift if go_lighter else -shift) + tint - tint @ LUMINANCE


def _paint(canvas, ink, position, colour) -> None:
    """Blends the colour into the canvas where the ink is; ink beyond the border is cut off."""
    (x, y), (h, w) = position, ink.shape
    top, left = max(-y, 0), max(-x, 0)
    patch = canvas[max(y, 0) : y + h, max(x, 0) : x + w]
    cover = ink[top : top + patch.shape[0], left : left + patch.shape[1], None]
    patch += cover * (np.clip(colour, 0, 255) - patch)


def _resize(values, height: int, width: int) -> Float[np.ndarray, "h w"]:
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
