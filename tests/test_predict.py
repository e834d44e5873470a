"""Prediction as a user does it: shapes, pixels of the originals, pictures, and images that can't be read."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from hotcoco import mask as rle
from PIL import Image, ImageDraw
from scripts import run
from test_evaluate import leave_training

from detectors.data.drawing import draw_objects
from detectors.data.pipeline import layout_for
from detectors.data.records import Annotation
from detectors.data.settings import BatchConfig
from detectors.evaluation import inference
from detectors.evaluation.photos import (
    PhotoError,
    find_objects,
    image_files,
    passed_over,
    read_photo,
    size_of,
)
from detectors.models.fcos import fcos_tiny
from detectors.models.mask_rcnn import mask_rcnn_tiny
from detectors.models.torchvision_settings import maskrcnn_resnet50_fpn
from detectors.ops.masks import paste_masks
from detectors.structures import Detections
from detectors.training.run_config import TrainRun

CONFIG = BatchConfig(short_side=64, long_side=96)


def photo(path, size=(60, 90), box=None, **options):
    """A black image with a white box."""
    image = Image.new("RGB", size[::-1])
    if box:
        ImageDraw.Draw(image).rectangle(tuple(np.array(box) - [0, 0, 1, 1]), fill="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def finds_white(image, image_size):
    """Detects the bounds of what is bright, with a mask, and something improbable."""
    y, x = np.nonzero(image[0, ..., 0] > 100)
    boxes = np.zeros((1, 2, 4), np.float32)
    boxes[0, 0] = (x.min(), y.min(), x.max() + 1, y.max() + 1)
    boxes[0, 1] = (0, 0, 5, 5)
    scores, labels = np.array([[0.8, 0.1]], np.float32), np.array([[1, 0]])
    return Detections(boxes, scores, labels, np.ones((1, 2), bool), masks=np.ones((1, 2, 4, 4), np.float32))


@pytest.mark.parametrize("size", [(120, 200), (200, 120), (30, 40)])
def test_objects_are_in_pixels_of_the_original(tmp_path, size):
    path = photo(tmp_path / "a.png", size, box=(8, 4, 28, 24))
    layout = layout_for([size], CONFIG)
    found = find_objects(finds_white, read_photo(path), layout, CONFIG, least=0.5)
    np.testing.assert_allclose(found.objects.boxes, [[8, 4, 28, 24]], atol=2.5)
    assert found.scores.tolist() == [pytest.approx(0.8)] and found.objects.labels.tolist() == [1]
    assert found.objects.size == size and len(found.objects.masks) == 1


def test_masks_are_put_into_whole_pixels_where_torchvision_s_settings_say_so(tmp_path):
    image = read_photo(photo(tmp_path / "a.png", (120, 200), box=(8, 4, 29, 25)))
    rest = (layout_for([(120, 200)], CONFIG), CONFIG)
    for config in (mask_rcnn_tiny(2), maskrcnn_resnet50_fpn(2)):
        whole = inference.whole_pixels(config)
        found = find_objects(finds_white, image, *rest, least=0.5, whole_pixels=whole).objects
        mask = rle.decode({"size": [120, 200], "counts": found.masks[0]})
        pasted = [
            paste_masks(np.ones((1, 4, 4)), found.boxes, (120, 200), whole_pixels=w)[0] >= 0.5 for w in (False, True)
        ]
        np.testing.assert_array_equal(mask, pasted[whole])
        assert (pasted[0] != pasted[1]).any()
    assert whole and not inference.whole_pixels(fcos_tiny(2))


def test_two_orientations_are_two_shapes_at_most():
    sizes = [(60, 90), (90, 60), (1000, 1100), (50, 50), (600, 2000)]
    layout, seen = layout_for(sizes, CONFIG), set()

    def predict(image, image_size):
        seen.add(image.shape)
        return Detections(np.zeros((1, 1, 4)), np.zeros((1, 1)), np.zeros((1, 1), int), np.zeros((1, 1), bool))

    for size in sizes:
        find_objects(predict, np.zeros((*size, 3), np.uint8), layout, CONFIG, least=0.5)
    assert seen == {(1, 64, 96, 3), (1, 96, 64, 3)}
    unsized = dataclasses.replace(CONFIG, short_side=0, long_side=0)
    assert layout_for([(40, 90), (90, 40)], unsized)[:1] == ((96, 96),)


def test_a_camera_that_was_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = photo(tmp_path / "a.jpg", (40, 90), exif=exif)
    assert size_of(path) == (90, 40) and read_photo(path).shape == (90, 40, 3)


def test_files_of_folders_and_their_flaws(tmp_path):
    a, b = photo(tmp_path / "x" / "b.jpg"), photo(tmp_path / "x" / "a.PNG")
    (tmp_path / "x" / "notes.txt").write_text("")
    assert list(image_files([str(tmp_path / "x"), str(a), "gone.jpg"])) == [b, a, pathlib.Path("gone.jpg")]
    deep = photo(tmp_path / "x" / "y" / "c.gif")
    assert list(image_files([str(tmp_path / "x")], recursive=True)) == [b, a, deep]
    assert passed_over([str(tmp_path / "x")]) == (
        "1 sub-folders (--recursive looks into them) and files that are no images by their names (.txt)"
    )
    assert passed_over([str(tmp_path / "x" / "y"), str(a)], recursive=True) == ""
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(a.read_bytes()[:500])
    for path, said in [(tmp_path / "gone.jpg", "No such file"), (tmp_path / "x" / "notes.txt", "identify")]:
        with pytest.raises(PhotoError, match=f"{path.name}: .*{said}"):
            size_of(path)
    with pytest.raises(PhotoError, match=r"torn.jpg: .*[Tt]runcated"):
        read_photo(torn)


@pytest.mark.parametrize("size", [(40, 60), (480, 640), (1200, 1600)])
def test_names_stay_within_the_image_and_apart(size):
    """Every name's plate is there with its own colour, whole, wherever its box touches the border."""
    height, width = size
    edge = np.array([[0, 0, 9, 9], [width - 9, 0, width, 9], [0, height - 9, 9, height], [-20, -9, width + 9, height]])
    boxes = np.concatenate([edge, edge[:1]]).astype(np.float32)  # the last as the first
    objects = Annotation(0, size, boxes, np.arange(5))
    drawn = draw_objects(np.full((*size, 3), 128, np.uint8), objects, tuple("abcde"), scores=np.full(5, 0.5))
    assert drawn.size == (width, height)
    pixels = np.asarray(drawn).reshape(-1, 3).tolist()
    colours = {tuple(pixel) for pixel in pixels}
    if height > 100:
        wanted = {(0xE6, 0x19, 0x4B), (0x3C, 0xB4, 0x4B), (0xFF, 0xE1, 0x19), (0x43, 0x63, 0xD8), (0xF5, 0x82, 0x31)}
        assert wanted <= colours


def test_masks_are_translucent():
    image = np.zeros((32, 32, 3), np.uint8)
    inside = np.zeros((32, 32), np.uint8, order="F")
    inside[8:24, 8:24] = 1
    runs = bytes(rle.encode(inside)["counts"])
    objects = Annotation(0, (32, 32), np.array([[8, 8, 24, 24]], np.float32), np.zeros(1, int), masks=(runs,))
    drawn = np.asarray(draw_objects(image, objects, ("",)))
    np.testing.assert_allclose(drawn[21, 12], 0.45 * np.array([0xE6, 0x19, 0x4B]), atol=1)
    assert not drawn[30, 30].any()


# --- the script ---


@pytest.mark.slow
def test_the_script_draws_what_it_can_read(tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out"
    leave_training(folder, TrainRun(detector=dataclasses.replace(fcos_tiny(10), score_threshold=0.0)))
    a = photo(tmp_path / "in" / "scene.png", (96, 96), box=(10, 10, 50, 50))
    photo(tmp_path / "other" / "scene.jpg", (60, 90))
    torn = tmp_path / "torn.png"
    torn.write_bytes(a.read_bytes()[:100])
    options = [f"--workdir={folder}", f"--out={out}", "--score=0", "--config.detector.score_threshold=0"]
    code, output = run("predict", *options, a, tmp_path / "other", torn, tmp_path / "gone.png")
    assert code == 1 and "torn.png: " in output and "gone.png: No such file" in output, output
    assert "2 images could not be read" in output and "Traceback" not in output and "on 2 images" in output
    assert {path.name for path in out.iterdir()} == {"scene.png", "scene-2.png", "predictions.json"}
    listed = json.loads((out / "predictions.json").read_text())
    assert [(row["drawn"], row["height"], row["width"]) for row in listed] == [
        ("scene.png", 96, 96),
        ("scene-2.png", 60, 90),
    ]
    found = [found for row in listed for found in row["objects"]]
    assert found and all(0 <= one["score"] <= 1 and len(one["box"]) == 4 and one["category"] for one in found)
    with Image.open(out / "scene-2.png") as drawn:
        assert drawn.size == (90, 60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the images, or folders of them"),
        (["--score=2", "a.jpg"], "--score"),
        (["gone.jpg"], "there is no image to look at in gone.jpg"),
    ],
)
def test_bad_input_is_named(arguments, said):
    code, output = run("predict", *arguments)
    assert code != 0 and said in output and "Traceback" not in output, output
