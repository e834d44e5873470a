"""Layouts as annotation tools write them are recognised by their files, read, and made a config to search with."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scripts import ROOT, run
from test_data_sets import bdd_tree, coco_tree, voc_tree, voc_xml

import config_file
from cse_jax.ranges import validate
from detectors.data.datasets import open_dataset, read_built
from detectors.data.layouts import recognise
from detectors.data.on_disk import LayoutError, build_detection_set
from detectors.data.records import BadRecords
from detectors.data.yolo import YoloData
from detectors.models import build_detector

BOX = (10, 12, 40, 48)  # corners, pixels
POLYGON = [10, 12, 40, 12, 40, 48, 10, 48]
SIZE = (60, 80)
COUNT = 10


def picture(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


def coco_file(path: pathlib.Path, names) -> None:
    images = [{"id": i, "file_name": name, "height": 60, "width": 80} for i, name in enumerate(names, 1)]
    x1, y1, x2, y2 = BOX
    objects = [
        {"id": i, "image_id": i, "category_id": 2, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [POLYGON]}
        for i in range(1, len(images) + 1)
    ]
    content = {"images": images, "annotations": objects, "categories": [{"id": 2, "name": "cat"}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def yolo_line(polygon=False) -> str:
    x1, y1, x2, y2 = BOX
    box = [(x1 + x2) / 160, (y1 + y2) / 120, (x2 - x1) / 80, (y2 - y1) / 60]
    numbers = [n / side for n, side in zip(POLYGON, (80, 60) * 4, strict=True)] if polygon else box
    return " ".join(map(str, (0, *numbers)))


def xml(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x1, y1, x2, y2 = BOX
    path.write_text(voc_xml((0, 0), [("cat", "Unspecified", (x1 + 1, y1 + 1, x2, y2))]))


def names(suffix=".png", first=0):
    return [f"my image {i}{suffix}" for i in range(first, first + COUNT)]


def roboflow_coco(root):
    for split in ("train", "valid", "test"):
        coco_file(root / split / "_annotations.coco.json", names())
        for name in names():
            picture(root / split / name)


def cvat_coco(root):
    for split in ("train", "val"):
        coco_file(root / "annotations" / f"instances_{split}.json", names())
        for name in names():
            picture(root / "images" / split / name)


def label_studio_coco(root):
    coco_file(root / "result.json", [f"images\\{name}" for name in names()])
    for name in names():
        picture(root / "images" / name)


def roboflow_yolo(root):
    text = "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\n"
    for split in ("train", "valid"):
        for name in names(".jpg"):
            picture(root / split / "images" / name)
            label = root / split / "labels" / name.replace(".jpg", ".txt")
            label.parent.mkdir(exist_ok=True)
            label.write_text(yolo_line() + "\n")
    (root / "data.yaml").write_text(text)


def ultralytics(root):
    """With polygons, and categories by number."""
    for split in ("train", "val"):
        for name in names():
            picture(root / "images" / split / name)
            label = root / "labels" / split / name.replace(".png", ".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(yolo_line(polygon=True))
    (root / "set.yaml").write_text("path: ../datasets/set\ntrain: images/train\nval: images/val\nnames: {0: cat}\n")


def supervision_yolo(root):
    """Its data.yaml names categories only."""
    label_studio_yolo(root)
    (root / "classes.txt").unlink()
    (root / "data.yaml").write_text("nc: 1\nnames: [cat]\n")


def label_studio_yolo(root):
    for name in names(".jpg"):
        picture(root / "images" / name)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / name.replace(".jpg", ".txt")).write_text(yolo_line())
    (root / "classes.txt").write_text("cat\n")


def label_img_yolo(root):
    for name in names():
        picture(root / name)
        (root / name.replace(".png", ".txt")).write_text(yolo_line())
    (root / "classes.txt").write_text("cat\n")


def label_img_voc(root):
    for name in names(".JPG"):
        picture(root / "images" / name)
        xml(root / "annotations" / name.replace(".JPG", ".xml"))


def roboflow_voc(root):
    for split in ("train", "valid"):
        for name in names():
            picture(root / split / name)
            xml(root / split / name.replace(".png", ".xml"))


def voc_with_lists(root):
    for name in names():
        picture(root / "JPEGImages" / name)
        xml(root / "Annotations" / name.replace(".png", ".xml"))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("".join(f"{pathlib.Path(name).stem}\n" for name in names()[:7]))
    (lists / "test.txt").write_text("\n".join(names()[7:]))


LAYOUTS = {  # what it is called, images to train and test on
    roboflow_coco: ("COCO's format (train/_annotations.coco.json, test/_annotations.coco.json", 10, 10),
    cvat_coco: ("COCO's format (annotations/instances_train.json, annotations/instances_val.json", 10, 10),
    label_studio_coco: ("COCO's format (result.json; no splits: 20% of the images, always the same", 8, 2),
    roboflow_yolo: ("YOLO's layout (data.yaml, trained on train, tested on val)", 10, 10),
    ultralytics: ("YOLO's layout (set.yaml, trained on train, tested on val)", 10, 10),
    label_studio_yolo: ("YOLO's layout (names of categories in a text file, no splits: 20%", 8, 2),
    supervision_yolo: ("YOLO's layout (data.yaml, no splits: 20%", 8, 2),
    label_img_yolo: ("YOLO's layout (names of categories in a text file, no splits: 20%", 8, 2),
    label_img_voc: ("XML files of VOC's format in annotations/ (no splits: 20%", 8, 2),
    roboflow_voc: ("XML files of VOC's format (trained on train, tested on valid)", 10, 10),
    voc_with_lists: ("Pascal VOC's layout (lists in ImageSets/Main, trained on trainval, tested on test)", 7, 3),
}


@pytest.mark.parametrize("make", [label_img_yolo, label_studio_yolo, roboflow_yolo])
def test_labels_are_found_below_any_root(tmp_path, monkeypatch, make):
    """Also below a folder of the name ``images``, and where some lie beside their images."""
    root = tmp_path / "images" / "mine"
    root.mkdir(parents=True)
    make(root)
    moved = sorted((root / "labels").glob("*.txt"))[:3]
    for label in moved:
        label.rename(root / "images" / label.name)
    monkeypatch.chdir(tmp_path / "images")
    for place in (root, pathlib.Path("..", "images", "mine")):
        config = recognise(place).config
        read = list(config.read("train", config.categories(), BadRecords()))
        assert len(read) == COUNT and all(image.labels.tolist() == [0] for image in read)


@pytest.mark.parametrize("make", LAYOUTS)
def test_layouts_of_tools_are_recognised_and_read(tmp_path, make):
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    config_file = tmp_path / "search.py"
    command = [f"--root={root}", f"--search_config={config_file}"]
    code, output = run("data", *command, data_dir=tmp_path / "built")
    said, train, test = LAYOUTS[make]
    assert code == 0 and said in output, output
    assert f"train: {train} images" in output and f"test: {test} images" in output, output
    assert output.count("bad records: none") == 2 and f"--config={config_file}" in output, output
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    config = recognise(root).config
    config.data_dir = str(tmp_path / "built")
    split = read_built(build_detection_set(config), "test")
    assert split.categories == ("cat",)
    for annotation in split.annotations:
        np.testing.assert_allclose(annotation.boxes, [BOX], atol=1e-4)
    trained = read_built(build_detection_set(config), "train")
    if config.test_share:
        assert not set(trained.names) & set(split.names)
    assert bool(split.annotations[0].masks[0]) == ("coco" in make.__name__ or make is ultralytics)


def test_the_configs_that_are_written_search_and_train(tmp_path, monkeypatch):
    root = tmp_path / "my set"
    root.mkdir()
    label_img_voc(root)
    path = tmp_path / "search.py"
    flags = [f"--root={root}", f"--search_config={path}", "--config.outside=True", "--config.flip=0.25"]
    assert run("data", *flags, data_dir=tmp_path / "built")[0] == 0
    monkeypatch.setenv("CSE_JAX_DATA_DIR", str(tmp_path / "built"))
    written, training = config_file.load(str(path)), config_file.load(str(tmp_path / "search_train.py"))
    assert written.name == "my_set" and written.detector.classes == training.detector.classes == 1
    assert written.schedule == config_file.load(str(ROOT / "configs/search/fcos_bccd.py")).schedule
    for data in (written.data, training.data):
        assert data.outside and data.flip == 0.25 and data.select_images == 1
    assert training.length(7)[0] > 2_000 and (written.data.short_side, training.data.short_side) == (120, 800)
    validate(training)
    nnx.eval_shape(lambda: build_detector(training.detector)[1](nnx.Rngs(0)))
    dataset = open_dataset(written.data)
    assert [len(source) for source in (dataset.train, dataset.select, dataset.test)] == [7, 1, 2]
    output = run("data", *flags, "--config.train=trainval", data_dir=tmp_path / "built")[1]
    assert "--config.train does not go with --root" in output
    path.write_text("mine")
    output = run("data", f"--root={root}", f"--search_config={path}", data_dir=tmp_path / "built")[1]
    assert "was left as it is" in output and path.read_text() == "mine"


def test_layouts_of_the_authors_are_recognised(tmp_path):
    coco = recognise(coco_tree(tmp_path / "coco")).config
    assert (coco.annotations, coco.images) == ("annotations/instances_{split}2017.json", "{split}2017")
    assert recognise(voc_tree(tmp_path / "voc")).said == "Pascal VOC's layout"
    assert recognise(bdd_tree(tmp_path / "bdd", old=False)).said == "BDD100K's layout"


def test_a_folder_of_nothing_known_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(LayoutError, match="not known.*it holds notes.txt"):
        recognise(tmp_path)
    code, output = run("data", f"--root={tmp_path}")
    assert code == 1 and "Traceback" not in output and "The layout of " in output
    assert "give either --root or --config" in run("data", "--root=/x", "--config=configs/data/voc.py")[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 0.5 0.5 0.1 0.1", "category 1 is not among the 1, which count from 0"),
        ("cat 0.5 0.5 0.1 0.1", "is not numbers"),
        ("0 40 30 10 10", "has numbers outside 0..1"),
        ("0 0.5 0.5 0.1", "has 3 numbers after the category"),
        ("0 nan 0.5 0.1 0.1", "has numbers outside 0..1"),
        ("0.5 0.5 0.5 0.1 0.1", "does not begin with the number of a category"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, said):
    label_img_yolo(tmp_path)
    (tmp_path / "my image 3.txt").write_text(f"{yolo_line()}\n\n{line}\n")
    config = recognise(tmp_path).config
    report = BadRecords()
    assert len(list(config.read("test", config.categories(), report))) == COUNT - 1
    (case,) = report.cases["annotation that cannot be read"]
    assert case.startswith("my image 3.txt, line 3: ") and said in case


def test_a_bad_line_of_a_list_of_images_is_named(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    label_img_yolo(root)
    picture(tmp_path / "beyond.png")
    lines = [*names(), "../beyond.png", "gone/a.png", "\0", 300 * "a" + ".png"]
    (root / "list.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("train: list.txt\nval: list.txt\nnames: [cat]\n")
    config = dataclasses.replace(recognise(root).config, data_dir=str(tmp_path / "built"))
    built = read_built(build_detection_set(config), "test")
    assert len(built.annotations) == COUNT
    assert built.report.counts == {"image outside the root, not read": 1, "missing file": 3}
    config.outside = True
    assert len(read_built(build_detection_set(config), "test").annotations) == COUNT + 1


def test_missing_entries_of_data_yaml_are_named(tmp_path):
    roboflow_yolo(tmp_path)
    for text, said in [
        ("train: train/images\nnames: [cat]", "has no images of val"),
        ("train: train/images\nval: gone\nnames: [cat]", "names gone, which is not below"),
        ("train: train/images\nval: valid/images", "has no names of categories"),
        ("train: [1", "can't be read"),
        ("- 1", "has no entries"),
    ]:
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(LayoutError, match=said):
            open_dataset(YoloData(str(tmp_path), data_dir=str(tmp_path / "built")))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.one_of(st.text(max_size=30), st.lists(st.floats(), max_size=9).map(lambda n: " ".join(map(str, [0, *n])))))
def test_any_line_is_read_or_named(tmp_path, line):
    picture(tmp_path / "a.png")
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "a.txt").write_text(line, errors="replace")
    config = YoloData(str(tmp_path), file="")
    list(config.read("test", config.categories(), BadRecords()))
