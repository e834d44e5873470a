"""The one decoder of images, for training, evaluation, prediction and drawing.

Images are turned as their camera says (EXIF), so boxes and listed sizes are those of the upright image. Grey levels of
16 bits are scaled from 0..65535, floats from 0..1; the first frame of an animation counts.
"""

import contextlib
import io
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from cse_jax.errors import UserError
from detectors.data.json_rows import read_bytes

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff")  # of images
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class ImageError(UserError, ValueError):
    """An image that cannot be read; the message says why."""


def image_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The image files of a folder by their names without suffix."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def read_encoded(path: pathlib.Path) -> bytes:
    """The bytes of an image file.

    Raises:
      ImageError: it is missing, not a regular file, or cannot be read.
    """
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ImageError(getattr(error, "strerror", None) or str(error)) from error


def decode_rgb(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image in PNG, JPEG or another format that Pillow reads, upright.

    Raises:
      ImageError: the bytes are not a complete image, or its grey levels have no known range.
    """
    with _opened(encoded) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            return _grey(np.asarray(upright) / 257)
        if upright.mode in ("I", "F"):
            return _grey(_unbounded(np.asarray(upright)))
        return np.asarray(upright.convert("RGB"))


def upright_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) of an image when it is upright, from its header only.

    Raises:
      ImageError: it is not an image.
    """
    with _opened(encoded) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        return (width, height) if turned else (height, width)


def mode_of(encoded: bytes) -> str:
    """Pillow's name of how the pixels are stored: L, RGB, P, I;16, ..."""
    with _opened(encoded) as image:
        return image.mode


@contextlib.contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            yield image
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's formats raise nearly anything on damaged or unusual files
        raise ImageError(str(error) or type(error).__name__) from error


def _unbounded(levels: np.ndarray) -> np.ndarray:
    """Levels in 0..255 of pixels whose type does not bound them."""
    low, high = float(levels.min()), float(levels.max())
    if levels.dtype.kind == "f" and low >= 0 and high <= 1:
        return levels * 255
    if levels.dtype.kind == "i" and low >= 0 and 255 < high <= 65535:
        return levels / 257
    raise ImageError(f"grey levels from {low:g} to {high:g} of unknown range; save it with 8 or 16 bits")


def _grey(levels: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(np.rint(levels).astype(np.uint8)[..., None], 3, axis=-1)
