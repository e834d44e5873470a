"""The embedded data set: what it shows, that it is reproducible, and that it survives interruption and bad disks."""

import dataclasses
import io
import itertools
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from hotcoco import mask as rle
from PIL import Image

from detectors.data import digit_scenes, scene_rendering
from detectors.data.datasets import DataConfig, open_dataset
from detectors.data.digit_scenes import SPLITS, DigitScenesConfig, build_digit_scenes, split_glyphs
from detectors.data.pipeline import make_batch
from detectors.data.scene_rendering import SceneConfig, render_scene
from detectors.evaluation.coco import Found, evaluate, evaluate_masks, ground_truth

SMALL = DigitScenesConfig(train_images=12, select_images=5, test_images=4, seed=3)
PRELUDE = "import sys\nfrom detectors.data.digit_scenes import *\n"


def run_python(code: str, *arguments) -> subprocess.Popen:
    root = pathlib.Path(digit_scenes.__file__).parents[2]
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(builder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pathlib.Path(builder.data_path).glob("*.array_record*")}


@pytest.fixture(scope="module")
def glyphs():
    return split_glyphs(0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_digit_scenes(SMALL, tmp_path_factory.mktemp("data"))


def test_glyphs_are_divided_between_the_splits(glyphs):
    pixels = {split: {glyph.tobytes() for glyph in images} for split, (images, _) in glyphs.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not pixels[one] & pixels[other]
    assert sum(map(len, pixels.values())) == 1797
    for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        counts = np.bincount(glyphs[split][1], minlength=10)
        np.testing.assert_allclose(counts / 179.7, share, atol=0.025)


def test_scenes_keep_their_settings(glyphs):
    config = SceneConfig()
    counts, labels = [], []
    for index in range(150):
        scene = render_scene(np.random.default_rng(index), *glyphs["train"], config)
        assert scene.image.shape == (96, 96, 3)
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert (scene.boxes >= 0).all() and (scene.boxes <= 96).all()
        assert (sides[:, 0] >= 3).all()
        assert (np.abs(sides[:, 1].clip(config.min_height, config.max_height) - sides[:, 1]) <= 2).all()
        for a, b in itertools.combinations(scene.boxes, 2):
            shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
            assert shared <= config.max_overlap * min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
        counts.append(len(scene.boxes))
        labels.extend(scene.labels)
    assert min(counts) == 1 and max(counts) == 8
    assert set(labels) == set(range(10))


@pytest.mark.parametrize("settings", [{"image_size": 32, "min_height": 8, "max_height": 21}, {"max_height": 64}])
def test_scenes_of_other_sizes(glyphs, settings):
    config = SceneConfig(**settings, clutter=30)
    config.check()
    for index in range(30):
        scene = render_scene(np.random.default_rng(index), *glyphs["select"], config)
        assert scene.image.shape == (config.image_size, config.image_size, 3)
        assert (scene.boxes >= 0).all() and (scene.boxes <= config.image_size).all()


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_tight_around_the_ink(glyphs, seed, monkeypatch):
    config = SceneConfig(max_objects=1, noise=0.0, clutter=0)
    scene = render_scene(np.random.default_rng(seed), *glyphs["test"], config)
    monkeypatch.setattr(scene_rendering, "_paint", lambda *_: None)
    ground = render_scene(np.random.default_rng(seed), *glyphs["test"], config).image
    painted = np.abs(scene.image.astype(float) - ground).max(-1)
    x1, y1, x2, y2 = scene.boxes[0].astype(int)
    outside = painted.copy()
    outside[y1:y2, x1:x2] = 0
    assert outside.max() < 0.5 * painted.max()
    for edge in (painted[y1, x1:x2], painted[y2 - 1, x1:x2], painted[y1:y2, x1], painted[y1:y2, x2 - 1]):
        assert edge.max() > 0.15 * painted.max()
    assert painted.max() >= config.contrast


def tight_box(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_masks_fill_their_boxes_where_nothing_covers_them(glyphs):
    covered = 0
    for index in range(100):
        scene = render_scene(np.random.default_rng(index), *glyphs["train"], SceneConfig())
        assert scene.masks.shape == (len(scene.boxes), 96, 96)
        assert (scene.masks.sum(0) <= 1).all()
        for place, (mask, box) in enumerate(zip(scene.masks, scene.boxes, strict=True)):
            tight, later = np.array(tight_box(mask)), scene.boxes[place + 1 :]
            assert (tight[:2] >= box[:2]).all() and (tight[2:] <= box[2:]).all()
            if ((later[:, :2] < box[2:]) & (later[:, 2:] > box[:2])).all(1).any():
                covered += (tight != box).any()
            else:
                np.testing.assert_array_equal(tight, box)
    assert covered


def test_later_digits_take_pixels_from_earlier_ones(glyphs, monkeypatch):
    """Of two digits in colours that no ground has, each shows its own where its ink is full."""
    config = SceneConfig(max_objects=2, max_overlap=0.6, noise=0.0, clutter=0)
    colours = np.array([[255, 0, 0], [0, 255, 0]], np.float32)
    cut = 0
    for index in range(60):
        shown = iter(colours)
        monkeypatch.setattr(scene_rendering, "_ink_colour", lambda *_, shown=shown: next(shown))
        scene = render_scene(np.random.default_rng(index), *glyphs["train"], config)
        for place in range(len(scene.masks)):
            painted = (scene.image == colours[place]).all(-1)
            assert painted.any()
            assert (scene.masks[:, painted].argmax(0) == place).all() and (scene.masks[:, painted].sum(0) == 1).all()
        cut += tight_box(scene.masks[0]) != scene.boxes[0].tolist()
    assert cut


def test_records_hold_what_was_rendered(built, glyphs):
    images, labels = split_glyphs(SMALL.seed)["select"]
    for index, record in enumerate(built.as_data_source(split="select")):
        scene = render_scene(np.random.default_rng([SMALL.seed, 1, index]), images, labels, SMALL.scene)
        np.testing.assert_array_equal(record["image"], scene.image)
        np.testing.assert_array_equal(np.reshape(record["objects"]["box"], (-1, 4)), scene.boxes)
        np.testing.assert_array_equal(record["objects"]["label"], scene.labels)
        masks = [rle.decode({"size": [96, 96], "counts": runs}) for runs in record["objects"]["mask"]]
        np.testing.assert_array_equal(masks, scene.masks)
        assert record["image_id"] == SMALL.train_images + index


def test_batches_have_masks_if_they_are_asked_for(built, glyphs):
    config = DataConfig(digit_scenes=SMALL, data_dir=str(pathlib.Path(built.data_path).parents[2]))
    without = open_dataset(config).select
    assert without.annotations[0].masks is None and make_batch([without[0]], without.layout).masks is None
    images, labels = split_glyphs(SMALL.seed)["select"]
    scene = render_scene(np.random.default_rng([SMALL.seed, 1, 0]), images, labels, SMALL.scene)
    for stride in (1, 2):
        source = open_dataset(dataclasses.replace(config, mask_stride=stride)).select
        masks = make_batch([source[0]], source.layout).masks[0]
        share = scene.masks.reshape(-1, 96 // stride, stride, 96 // stride, stride).mean((2, 4))
        np.testing.assert_array_equal(masks[: len(share)], share >= 0.5)
        assert masks.any((1, 2)).sum() == len(share)


def test_boxes_and_masks_that_are_found_score_one(built):
    config = DataConfig(digit_scenes=SMALL, data_dir=str(pathlib.Path(built.data_path).parents[2]), mask_stride=1)
    source = open_dataset(config).train
    truth = ground_truth(source.annotations)
    found = Found(truth.image_of, truth.boxes, np.ones(len(truth.labels)), truth.labels, truth.masks)
    for metrics in (evaluate(found, truth, source.categories), evaluate_masks(found, truth, source.categories)):
        assert metrics.ap == pytest.approx(1)


def test_same_seed_same_bytes(built, tmp_path):
    again = build_digit_scenes(SMALL, tmp_path)
    assert contents(again) == contents(built) and len(contents(built)) == 3
    other = build_digit_scenes(dataclasses.replace(SMALL, seed=4), tmp_path)
    assert contents(other)["digit_scenes-train.array_record-00000-of-00001"] not in contents(built).values()
    assert other.data_path != again.data_path


def test_every_setting_and_the_version_are_in_the_path(built):
    scenes = [
        dataclasses.replace(SMALL.scene, **{field.name: getattr(SMALL.scene, field.name) + 1})
        for field in dataclasses.fields(SceneConfig)
    ]
    configs = [dataclasses.replace(SMALL, scene=scene) for scene in scenes]
    configs += [
        dataclasses.replace(SMALL, **{name: getattr(SMALL, name) + 1})
        for name in ("train_images", "select_images", "test_images", "seed")
    ]
    assert len({config.name for config in [SMALL, *configs]}) == len(configs) + 1
    assert pathlib.Path(built.data_path).parts[-2:] == (SMALL.name, str(digit_scenes.DigitScenes.VERSION))


def test_a_second_call_does_not_build(built, monkeypatch):
    monkeypatch.setattr(digit_scenes, "render_scene", lambda *_: pytest.fail("rendered again"))
    again = build_digit_scenes(SMALL, pathlib.Path(built.data_path).parents[2])
    assert len(again.as_data_source(split="train")) == SMALL.train_images


def test_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CSE_JAX_DATA_DIR", str(tmp_path / "here"))
    assert digit_scenes.default_data_dir() == tmp_path / "here"


def test_builds_and_reads_without_tensorflow_network_or_noise(tmp_path):
    process = run_python(
        """
import socket
def refuse(*arguments, **options): raise AssertionError("network access")
socket.socket.connect = socket.getaddrinfo = refuse
builder = build_digit_scenes(DigitScenesConfig(4, 2, 2), sys.argv[1])
print(len(builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})[0]["image"]) > 0)
print("tensorflow" in sys.modules)
""",
        tmp_path,
    )
    out, err = process.communicate(timeout=60)
    assert (out.split(), err) == (["True", "False"], "")


def test_failed_build_leaves_nothing_half_valid(tmp_path, monkeypatch):
    drawn = iter(range(7))

    def interrupted(*arguments):
        if next(drawn) == 6:
            raise KeyboardInterrupt
        return render_scene(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(digit_scenes, "render_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_digit_scenes(SMALL, tmp_path)
    assert not list(tmp_path.rglob(str(digit_scenes.DigitScenes.VERSION)))
    assert len(build_digit_scenes(SMALL, tmp_path).as_data_source(split="train")) == SMALL.train_images


def test_killed_build_is_cleared_and_built_again(built, tmp_path):
    code = "build_digit_scenes(DigitScenesConfig(3000, 5, 4, seed=3), sys.argv[1])"
    process = run_python(code, tmp_path)
    while not list(tmp_path.rglob("incomplete.*")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (leftover,) = tmp_path.rglob("incomplete.*")
    # Renaming makes it the leftover of the small data set, which is quicker to build.
    target = tmp_path / "digit_scenes" / SMALL.name
    target.mkdir()
    shutil.move(leftover, target / leftover.name)
    assert contents(build_digit_scenes(SMALL, tmp_path)) == contents(built)
    assert not list(tmp_path.rglob("incomplete.*"))


def test_processes_that_build_at_once_agree(built, tmp_path):
    code = """
builder = build_digit_scenes(DigitScenesConfig(12, 5, 4, seed=3), sys.argv[1])
print(len(builder.as_data_source(split="train")))
"""
    processes = [run_python(code, tmp_path) for _ in range(2)]
    assert [process.communicate(timeout=60) for process in processes] == [("12\n", "")] * 2
    assert contents(build_digit_scenes(SMALL, tmp_path)) == contents(built)


def test_unwritable_folder_is_named_with_the_remedy(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OSError, match=rf"digit scenes in {blocked}.*CSE_JAX_DATA_DIR"):
        build_digit_scenes(SMALL, blocked / "data")


def test_full_disk_is_reported_and_leaves_nothing(tmp_path):
    process = run_python(
        """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    build_digit_scenes(DigitScenesConfig(12, 5, 4), sys.argv[1])
except OSError as error:
    print(error)
""",
        tmp_path,
    )
    out, err = process.communicate(timeout=60)
    assert str(tmp_path) in out and "CSE_JAX_DATA_DIR" in out, (out, err)
    assert not list(tmp_path.rglob("*.array_record*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_height": 80}, "max_height=80 does not fit image_size=96"),
        ({"min_height": 50}, "min_height=50 must not exceed max_height=46"),
        ({"contrast": 200.0}, r"scene\.contrast is 200\.0"),
    ],
)
def test_impossible_scenes_are_refused(tmp_path, change, message):
    config = DigitScenesConfig(scene=SceneConfig(**change))
    with pytest.raises(ValueError, match=message):
        build_digit_scenes(config, tmp_path)
    with pytest.raises(ValueError, match="data.digit_scenes.select_images is 0"):
        build_digit_scenes(DigitScenesConfig(select_images=0), tmp_path)


def test_png_is_lossless(glyphs):
    image = render_scene(np.random.default_rng(0), *glyphs["train"], SceneConfig()).image
    decoded = np.asarray(Image.open(io.BytesIO(digit_scenes._encode_png(image))))
    np.testing.assert_array_equal(decoded, image)
