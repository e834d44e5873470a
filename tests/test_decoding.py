"""Pixels: the same in training, evaluation, prediction and drawing, however an image is stored."""

import io
import itertools
import json
import os

import numpy as np
import pytest
from PIL import Image

from detectors.data.coco import CocoData
from detectors.data.datasets import open_dataset, read_built
from detectors.data.decoding import ImageError, decode_rgb, read_encoded, upright_size
from detectors.data.on_disk import build_detection_set
from detectors.data.pipeline import eval_batches, train_batches
from detectors.evaluation.photos import PhotoError, read_photo, size_of

GREY = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) * 10
COLOUR = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(COLOUR), "png", exif=exif)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(levels) -> np.ndarray:
    return np.repeat(np.rint(levels).astype(np.uint8)[..., None], 3, axis=-1)


PALETTE = Image.fromarray(COLOUR).quantize(16)
FILES = {  # the file and its pixels
    "turned.png": (turned(6), np.rot90(COLOUR, -1)),
    "mirrored.png": (turned(2), COLOUR[:, ::-1]),
    "upside_down.png": (turned(3), COLOUR[::-1, ::-1]),
    "sixteen.png": (encoded(Image.fromarray(GREY), "png"), grey(GREY / 257)),
    "sixteen.tiff": (encoded(Image.fromarray(GREY), "tiff"), grey(GREY / 257)),
    "whole.tiff": (encoded(Image.fromarray(GREY.astype(np.int32)), "tiff"), grey(GREY / 257)),
    "float.tiff": (encoded(Image.fromarray((GREY / 65535).astype(np.float32)), "tiff"), grey(GREY / 257)),
    "palette.png": (encoded(PALETTE, "png"), np.asarray(PALETTE.convert("RGB"))),
    "alpha.png": (encoded(Image.fromarray(COLOUR).convert("RGBA"), "png"), COLOUR),
    "grey.png": (encoded(Image.fromarray(COLOUR[..., 0]), "png"), grey(COLOUR[..., 0])),
    "animated.gif": (
        encoded(PALETTE, "gif", save_all=True, append_images=[PALETTE.rotate(90)]),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "colour.avif": (encoded(Image.new("RGB", (96, 64), "red"), "avif"), np.full((64, 96, 3), (254, 0, 0))),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_upright_rgb(name):
    content, pixels = FILES[name]
    np.testing.assert_allclose(decode_rgb(content), pixels, atol=1)
    assert upright_size(content) == pixels.shape[:2]


def test_training_evaluation_and_prediction_see_the_same_pixels(tmp_path):
    """And the size that is listed is that of the upright image."""
    images, objects = [], []
    (tmp_path / "images").mkdir()
    for number, (name, (content, pixels)) in enumerate(FILES.items(), 1):
        (tmp_path / "images" / name).write_bytes(content)
        height, width = pixels.shape[:2]
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        objects.append({"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 40, 50]})
    (tmp_path / "truth.json").write_text(
        json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]})
    )
    config = CocoData(
        str(tmp_path), annotations="truth.json", images="images", data_dir=str(tmp_path / "built"), flip=0.0,
        short_side=0, long_side=0,
    )  # fmt: skip
    dataset, split = open_dataset(config), read_built(build_detection_set(config), "test")
    assert len(dataset.test) == len(FILES) and not dataset.bad_records["test"]
    seen = {}
    batches = itertools.chain(
        itertools.islice(train_batches(dataset.train, batch_size=1, seed=0), len(FILES)), eval_batches(dataset.test, 4)
    )
    for batch in batches:
        for image, size, image_id in zip(batch.image, batch.image_size.astype(int), batch.image_id, strict=True):
            seen.setdefault(int(image_id), []).append(image[: size[0], : size[1]])
    for number, name in enumerate(FILES, 1):
        photo = read_photo(tmp_path / "images" / name)
        assert size_of(tmp_path / "images" / name) == photo.shape[:2] and len(seen[number]) == 2
        for pixels in (*seen[number], split.image(number - 1)):
            np.testing.assert_array_equal(pixels, photo)


def test_an_image_listed_as_it_is_stored_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("turned.png", "grey.png"):
        (tmp_path / "images" / name).write_bytes(FILES[name][0])
    listed = [{"id": 1, "file_name": "turned.png", "height": 64, "width": 96}, {"id": 2, "file_name": "grey.png"}]
    row = {"id": 1, "image_id": 2, "category_id": 1, "bbox": [1, 1, 9, 9]}
    content = {"images": listed, "annotations": [row], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    config = CocoData(str(tmp_path), annotations="truth.json", images="images", data_dir=str(tmp_path / "built"))
    assert "turned by its EXIF orientation" in str(open_dataset(config).bad_records["test"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encoded(Image.fromarray((GREY * 9.0).astype(np.float32)), "tiff"), "of unknown range"),
        (encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "tiff"), "of unknown range"),
        (FILES["grey.png"][0][:300], None),
        (b"", "cannot identify"),
        (b"DDS " + b"\x7c\0\0\0" + b"\xff" * 120, None),
        (FILES["colour.avif"][0][:200], None),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\0\0\0\0\xff\xc0\0\2\xff\xda\0\2", None),
    ],
)
def test_files_that_hold_no_image_are_refused(content, said):
    with pytest.raises(ImageError, match=said):
        decode_rgb(content)


def test_a_full_memory_is_no_fault_of_the_image(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(MemoryError):
        decode_rgb(FILES["grey.png"][0])


def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(ImageError, match="not a regular file"):
            read_encoded(path)
        with pytest.raises(PhotoError, match="not a regular file"):
            size_of(path)
