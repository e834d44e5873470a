"""Data sets on disk: what is read from COCO, VOC and BDD100K layouts, what is dropped, and the batches made of it."""

import dataclasses
import itertools
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from hotcoco import mask as rle
from PIL import Image
from scripts import run

from detectors.data.bdd100k import Bdd100kData
from detectors.data.coco import CocoData
from detectors.data.datasets import open_dataset, read_built
from detectors.data.json_rows import FileError
from detectors.data.masks import MaskError, run_lengths
from detectors.data.on_disk import DetectionSet, LayoutError, build_detection_set
from detectors.data.pipeline import Example, eval_batches, flipped, make_batch, train_batches
from detectors.data.resizing import fitted_size, mask_grid, resized
from detectors.data.voc import VocData
from detectors.evaluation.coco import Found, evaluate, evaluate_masks, ground_truth
from detectors.evaluation.voc import evaluate_voc

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = {"short_side": 64, "long_side": 96}


def write_image(path: pathlib.Path, size=(60, 80), seed=0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def coco_tree(root: pathlib.Path) -> pathlib.Path:
    """Two good images (one with a polygon, a crowd and a bad box), one empty, and five that cannot be used."""

    def image(number, size=(60, 80)):
        return {"id": number, "file_name": f"{number}.jpg", "height": size[0], "width": size[1]}

    def thing(number, image_id, bbox, category=7, **more):
        area = bbox[-2] * bbox[-1]
        return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox, "area": area, **more}

    crowd = {"size": [60, 80], "counts": [0, 60 * 40, 60 * 40]}
    bitten = [[10, 10, 30, 10, 30, 20, 20, 20, 20, 40, 10, 40]]
    objects = [
        thing(1, 1, [10, 10, 20, 30], segmentation=bitten, iscrowd=0),
        thing(2, 1, [0, 0, 40, 60], category=3, segmentation=crowd, iscrowd=1),
        thing(3, 1, [5, 5, 0, 9], iscrowd=0),
        thing(4, 2, [-0.5, 4, 30, 20], segmentation=[[0, 4, 29.5, 4, 29.5, 24, 0, 24]], iscrowd=0, area=77.5),
        thing(5, 4, [1, 1, 9, 9]),
        thing(6, 5, [1, 1, 9, 9]),
        thing(7, 6, [1, 1, 9, 9]),
        thing(8, 7, [1, 1, 9, 9], category=99),
        thing(9, 8, [1, 1, 9]),
    ]
    content = {
        "images": [image(1), image(2, (90, 60)), *(image(number) for number in range(3, 9))],
        "annotations": objects,
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    for split in ("train", "val"):
        folder = root / f"{split}2017"
        for row in content["images"]:
            write_image(folder / row["file_name"], (row["height"], row["width"]), row["id"])
        (folder / "4.jpg").unlink()
        (folder / "5.jpg").write_bytes((folder / "5.jpg").read_bytes()[:500])
        write_image(folder / "6.jpg", (80, 60))
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def voc_xml(size, objects) -> str:
    rows = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, hard, box in objects
    )
    return f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{rows}</annotation>"


def voc_tree(root: pathlib.Path) -> pathlib.Path:
    hard_and_easy = [("cow", 1, (3, 4, 30, 40)), ("person", 0, (1, 1, 80, 60)), ("person", 0, (9, 9, 9, 20))]
    lists = {"VOC2007": {"trainval": ["a", "unknown"], "test": ["b"]}, "VOC2012": {"trainval": ["c", "gone", "torn"]}}
    for year, sets in lists.items():
        for part in ("Annotations", "ImageSets/Main"):
            (root / year / part).mkdir(parents=True)
        for name, stems in sets.items():
            (root / year / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems) + "\n")
            for stem in stems:
                write_image(root / year / "JPEGImages" / f"{stem}.jpg")
                content = voc_xml((60, 80), [("yeti", 0, (1, 1, 9, 9))] if stem == "unknown" else hard_and_easy)
                path = root / year / "Annotations" / f"{stem}.xml"
                path.write_text(content[:100] if stem == "torn" else content)
    (root / "VOC2012" / "Annotations" / "gone.xml").unlink()
    return root


def bdd_tree(root: pathlib.Path, *, old: bool) -> pathlib.Path:
    person, extra = ("person", "motor") if old else ("pedestrian", "motorcycle")

    def label(category, x1, x2, **attributes):
        return {"category": category, "box2d": {"x1": x1, "y1": 5.5, "x2": x2, "y2": 30.0}, "attributes": attributes}

    lane = {"category": "lane", "poly2d": [{"vertices": [[0, 0], [1, 1]]}], "box2d": None}
    rows = [
        {"name": "a.jpg", "labels": [label(person, 1, 20.25), label(extra, 30, 50), lane]},
        {"name": "b.jpg", "labels": [label("car", 1, 20, crowd=True), label("trailer", 5, 9), label("bus", 7, 7)]},
        {"name": "c.jpg"} if old else {"name": "c.jpg", "labels": None},
        {"name": "gone.jpg", "labels": [label("car", 1, 20)]},
        {"name": "d.jpg", "labels": [label("yeti", 1, 20)]},
        {"name": "e.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]},
    ]
    for split in ("train", "val"):
        for row in rows:
            write_image(root / "images" / "100k" / split / row["name"], (45, 80))
        (root / "images" / "100k" / split / "gone.jpg").unlink()
        name = f"bdd100k_labels_images_{split}.json" if old else f"det_20/det_{split}.json"
        path = root / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = coco_tree(tmp_path_factory.mktemp("coco"))
    return CocoData(str(root), data_dir=str(tmp_path_factory.mktemp("built")), mask_stride=4, **SMALL)


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = voc_tree(tmp_path_factory.mktemp("voc"))
    return VocData(str(root), data_dir=str(tmp_path_factory.mktemp("built")), **SMALL)


# --- what is read and what is dropped ---


def test_coco_is_read_and_bad_records_are_named(coco):
    split = read_built(build_detection_set(coco), "train", shown_bad=10)
    assert split.categories == ("dog", "cat")  # by id
    assert split.names == ["1.jpg", "2.jpg", "3.jpg"]
    first, second, empty = split.annotations
    np.testing.assert_array_equal(first.boxes, [(10, 10, 30, 40), (0, 0, 40, 60)])
    np.testing.assert_array_equal(first.labels, [1, 0])
    np.testing.assert_array_equal(first.crowd, [False, True])
    np.testing.assert_array_equal(first.trained, [True, False])
    assert (first.image_id, first.size, second.size, len(empty.labels)) == (1, (60, 80), (90, 60), 0)
    np.testing.assert_array_equal(second.boxes, [(-0.5, 4, 29.5, 24)])
    assert second.area.tolist() == [77.5]
    masks = [rle.decode({"size": [60, 80], "counts": runs}) for runs in first.masks]
    assert masks[0].sum() == 20 * 10 + 10 * 20 and masks[0][30, 15] and not masks[0][30, 25]
    assert masks[1][:, :40].all() and not masks[1][:, 40:].any()
    cases = {reason: cases for reason, cases in split.report.cases.items()}
    assert {reason: count for reason, count in split.report.counts.items()} == dict.fromkeys(cases, 1)
    named = {
        "box dropped, without area": "1.jpg (80x60), box (5.0, 5.0, 5.0, 14.0)",
        "missing file": "4.jpg",
        "image that cannot be decoded": "5.jpg",
        "image of another size than annotated": "6.jpg is 60x80, annotated 80x60",
        "category that is not declared": "annotation 8: category_id 99; image 7 (7.jpg) is left out",
        "annotation that cannot be read": "annotation 9: bbox is [1, 1, 9]: expected a list of length 4, got 3; image",
    }
    assert set(cases) == set(named)
    for reason, detail in named.items():
        assert detail in cases[reason][0]


def test_records_hold_what_the_columns_hold(coco):
    builder = build_detection_set(coco)
    assert builder.name == "coco" and builder.info.splits["train"].num_examples == 3
    split = read_built(builder, "test")
    for index, record in enumerate(builder.as_data_source(split="test")):
        annotation = split.annotations[index]
        assert (record["image_id"], record["file_name"].decode()) == (annotation.image_id, split.names[index])
        np.testing.assert_array_equal(record["image"], split.image(index))
        np.testing.assert_array_equal(np.reshape(record["objects"]["box"], (-1, 4)), annotation.boxes)
        np.testing.assert_array_equal(record["objects"]["crowd"], annotation.crowd)
        assert list(record["objects"]["mask"]) == list(annotation.masks)
    stored = Image.open(pathlib.Path(coco.root) / "val2017" / "1.jpg")
    np.testing.assert_array_equal(split.image(0), np.asarray(stored))


def test_voc_is_read_and_bad_records_are_named(voc):
    builder = build_detection_set(voc)
    split = read_built(builder, "train", shown_bad=10)
    assert split.names == ["a.jpg", "c.jpg"] and read_built(builder, "test").names == ["b.jpg"]
    annotation = split.annotations[0]
    np.testing.assert_array_equal(annotation.boxes, [(2, 3, 30, 40), (0, 0, 80, 60)])
    np.testing.assert_array_equal(annotation.difficult, [True, False])
    assert [split.categories[label] for label in annotation.labels] == ["cow", "person"]
    assert len({a.image_id for a in split.annotations}) == 2
    cases = split.report.cases
    assert split.report.counts["box dropped, without area"] == 2
    assert cases["category that is not declared"] == ["unknown.xml: yeti"]
    assert "gone.xml" in cases["missing file"][0]
    assert "torn.xml" in cases["annotation that cannot be read"][0]


@pytest.mark.parametrize("old", [True, False])
def test_bdd100k_is_read_from_both_layouts(tmp_path, old):
    config = Bdd100kData(str(bdd_tree(tmp_path / "bdd", old=old)), data_dir=str(tmp_path), **SMALL)
    split = read_built(build_detection_set(config), "train")
    assert split.names == ["a.jpg", "b.jpg", "c.jpg"]
    people, crowds, empty = split.annotations
    np.testing.assert_array_equal(people.boxes, [(1, 5.5, 20.25, 30), (30, 5.5, 50, 30)])
    assert [split.categories[label] for label in people.labels] == ["pedestrian", "motorcycle"]
    assert [split.categories[label] for label in crowds.labels] == ["car", "truck"]
    assert crowds.crowd.all() and not people.crowd.any() and not len(empty.labels)
    assert split.report.counts == {
        "box dropped, without area": 1,
        "missing file": 1,
        "category that is not declared": 1,
        "annotation that cannot be read": 1,
    }
    dataset = open_dataset(config)
    assert [len(s) for s in (dataset.train, dataset.test)] == [1, 3]


def test_images_that_are_listed_twice_are_taken_once(tmp_path):
    voc, bdd = voc_tree(tmp_path / "voc"), bdd_tree(tmp_path / "bdd", old=False)
    with (voc / "VOC2007" / "ImageSets" / "Main" / "test.txt").open("a") as file:
        file.write("b\n")
    labels = bdd / "labels" / "det_20" / "det_val.json"
    rows = json.loads(labels.read_text())
    labels.write_text(json.dumps([rows[0], *rows]))
    for config in (VocData(str(voc), data_dir=str(tmp_path)), Bdd100kData(str(bdd), data_dir=str(tmp_path))):
        split = read_built(build_detection_set(config), "test")
        assert split.report.counts["image that is listed twice, taken once"] == 1
        assert len(set(split.names)) == len(split.names) == (1 if isinstance(config, VocData) else 3)


def test_rows_that_make_no_sense_are_reported(tmp_path):
    root = coco_tree(tmp_path / "coco")
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 50, "file_name": "3.jpg"})
    content["annotations"] += [{"id": 60, "image_id": 404, "category_id": 7, "bbox": [1, 1, 5, 5]}, {"id": 61}]
    content["annotations"].append({"id": 62, "image_id": 2, "category_id": 7, "bbox": None})
    path.write_text(json.dumps(content))
    split = read_built(build_detection_set(CocoData(str(root), data_dir=str(tmp_path))), "train", shown_bad=10)
    assert split.names == ["1.jpg", "3.jpg", "3.jpg"]  # sizes need not be listed
    cases = split.report.cases
    assert cases["objects of an image that is not listed"] == ["instances_train2017.json: image 404"]
    unreadable = " ".join(cases["annotation that cannot be read"])
    assert "annotation 61: it has no field image_id" in unreadable
    assert "annotation 62: bbox is null: expected a list, got null; image 2 (2.jpg) is left out" in unreadable


def test_nothing_usable_is_an_error(tmp_path):
    root = coco_tree(tmp_path / "coco")
    for path in (root / "train2017").glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(LayoutError, match="No image of train in .* can be used:(.|\n)*cannot be decoded"):
        build_detection_set(CocoData(str(root), data_dir=str(tmp_path / "built")))
    assert not list((tmp_path / "built" / "coco").glob(f"*/{DetectionSet.VERSION}"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CocoData(), r"No folder of COCO is given: set --config.root .*instances_train2017.json.*cocodataset.org"),
        (VocData("/nowhere"), r"/nowhere does not exist. Pascal VOC is expected.*VOC2012/JPEGImages.*host.robots"),
        (
            Bdd100kData("/nowhere"),
            r"/nowhere does not exist. .*det_20/det_train.json or labels/bdd100k_labels.*bdd-data",
        ),
    ],
)
def test_a_missing_root_says_what_is_expected_and_where_to_get_it(config, message):
    with pytest.raises(LayoutError, match=message):
        open_dataset(config)


def test_an_incomplete_root_names_what_is_missing(tmp_path):
    root = coco_tree(tmp_path / "coco")
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(LayoutError, match="instances_val2017.json does not exist. COCO is expected"):
        build_detection_set(CocoData(str(root), data_dir=str(tmp_path)))
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    with pytest.raises(FileError, match="instances_val2017.json is not an annotation file.*it has no field images"):
        build_detection_set(CocoData(str(root), data_dir=str(tmp_path)))


def test_built_once_and_again_when_the_root_changes(tmp_path, monkeypatch):
    config = CocoData(str(coco_tree(tmp_path / "coco")), data_dir=str(tmp_path / "built"))
    first = build_detection_set(config)
    with monkeypatch.context() as patch:
        patch.setattr(CocoData, "read", lambda *_: pytest.fail("read again"))
        assert build_detection_set(dataclasses.replace(config, flip=0.0)).data_path == first.data_path
    path = pathlib.Path(config.root) / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][:1]
    path.write_text(json.dumps(content))
    second = build_detection_set(config)
    assert second.data_path != first.data_path
    assert read_built(second, "train").names == ["1.jpg"]
    swapped = build_detection_set(dataclasses.replace(config, test="train"))
    assert swapped.data_path != second.data_path


# --- batches ---


def test_sizes_keep_the_ratio_within_both_limits():
    assert fitted_size((480, 640), (800, 1333)) == (800, 1067)
    assert fitted_size((640, 480), (800, 1333)) == (1067, 800)
    assert fitted_size((400, 1200), (800, 1333)) == (444, 1333)
    assert fitted_size((720, 1280), (800, 1333)) == (750, 1333)
    with pytest.raises(ValueError, match="short_side=900 and long_side=600 must be"):
        CocoData(short_side=900, long_side=600).check()


def test_batches_have_two_shapes_and_one_orientation_each(coco):
    dataset = open_dataset(coco)
    assert dataset.train.layout.size == (64, 96)
    batches = list(itertools.islice(train_batches(dataset.train, batch_size=2, seed=0), 20))
    for batch in batches:
        stands = {1: False, 2: True}[int(batch.image_id[0])]
        assert batch.image.shape[1:3] == ((96, 64) if stands else (64, 96))
        assert (batch.image_id == batch.image_id[0]).all()
        np.testing.assert_array_equal(batch.image_size, [(96, 64) if stands else (64, 85)] * 2)
    assert sum(batch.image.shape[1] == 96 for batch in batches) == 10  # one image of each


def test_a_batch_holds_resized_scaled_and_padded_examples(coco):
    dataset = open_dataset(coco)
    batch = make_batch([dataset.test[0]], dataset.test.layout, 2)
    original = np.asarray(Image.open(pathlib.Path(coco.root) / "val2017" / "1.jpg"))
    np.testing.assert_array_equal(batch.image[0, :, :85], resized(original, (64, 85)))
    assert not batch.image[0, :, 85:].any() and not batch.image[1].any()
    np.testing.assert_allclose(
        batch.boxes[0, 0], np.array([10, 10, 30, 40]) * [85 / 80, 64 / 60, 85 / 80, 64 / 60], rtol=1e-6
    )
    assert batch.valid.sum() == 1 and batch.labels[0, 0] == 1  # the crowd is left out
    assert batch.masks.shape == (2, 100, 16, 24) and batch.masks.dtype == bool
    scaled = batch.masks[0, 0].repeat(4, 0).repeat(4, 1)
    mask = rle.decode({"size": [60, 80], "counts": dataset.test.annotations[0].masks[0]})
    exact = resized(np.repeat(mask[..., None] * np.uint8(255), 3, -1), (64, 85))[..., 0] > 127
    assert (scaled[:, :85] != exact).mean() < 0.03 and exact.mean() > 0.05
    assert not batch.masks[0, 1:].any() and not batch.masks[1].any()


def test_boxes_across_the_border_are_clipped_in_batches_only(coco):
    test = open_dataset(coco).test
    assert test.annotations[1].boxes[0, 0] == -0.5
    assert make_batch([test[1]], test.layout).boxes[0, 0, 0] == 0.0


def test_flips_mirror_masks_and_boxes(coco):
    test = open_dataset(coco).test
    layout = test.layout._replace(size=(60, 80), mask_stride=1)
    example = Example(test.images[0], test.annotations[0])._replace(image=np.zeros((60, 80, 3), np.uint8))
    plain, mirrored = (make_batch([e], layout) for e in (example, flipped(example)))
    np.testing.assert_array_equal(mirrored.masks[0, 0], plain.masks[0, 0][:, ::-1])
    assert not np.array_equal(mirrored.masks[0, 0], plain.masks[0, 0])
    for batch in (plain, mirrored):
        rows, columns = np.nonzero(batch.masks[0, 0])
        np.testing.assert_array_equal(batch.boxes[0, 0], (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    np.testing.assert_array_equal(make_batch([flipped(flipped(example))], layout).masks, plain.masks)


@pytest.mark.parametrize("target", [(60, 80), (120, 160), (100, 133), (31, 41)])
def test_mask_cells_are_set_where_the_mask_covers_half(target):
    """Against the share of each cell that the mask covers, from a picture 8 times as fine."""
    rng = np.random.default_rng(0)
    corners = rng.uniform([0, 0], [80, 60], (7, 2))
    hull = corners[np.argsort(np.arctan2(*(corners - corners.mean(0)).T))]
    runs = run_lengths(json.dumps([hull.ravel().tolist()]).encode(), (60, 80))
    grid = mask_grid(runs, (60, 80), target, 4)
    assert grid.shape == (-(-target[0] // 4), -(-target[1] // 4))
    fine = rle.decode({"size": [60, 80], "counts": runs})
    y = (np.arange(grid.shape[0] * 32) + 0.5) / 8 * 60 / target[0]
    x = (np.arange(grid.shape[1] * 32) + 0.5) / 8 * 80 / target[1]
    padded = np.pad(fine, ((0, 40), (0, 40)))
    shares = padded[np.ix_(y.astype(int), x.astype(int))].reshape(grid.shape[0], 32, grid.shape[1], 32).mean((1, 3))
    sure = np.abs(shares - 0.5) > 0.2  # original pixels count whole
    np.testing.assert_array_equal(grid[sure], shares[sure] > 0.5)
    assert 0.1 < grid.mean() < 0.9


@pytest.mark.parametrize(
    "damaged", [[[1, 2, 3]], [["a"]], "text", {"size": [60, 80]}, {"size": [80, 60], "counts": [0, 4800]}]
)
def test_damaged_masks_are_refused(damaged):
    with pytest.raises(MaskError):
        run_lengths(json.dumps(damaged).encode(), (60, 80))


def test_masks_that_are_missing_are_an_error(coco):
    source = open_dataset(dataclasses.replace(coco, mask_stride=0)).train
    assert next(train_batches(source, batch_size=1, seed=0)).masks is None
    with pytest.raises(ValueError, match="Image 1 has a box without mask: set data.mask_stride to 0"):
        make_batch([source[0]], source.layout._replace(mask_stride=4))


def test_training_leaves_out_what_evaluation_keeps(coco, voc):
    dataset = open_dataset(coco)
    assert [a.image_id for a in dataset.train.annotations] == [1, 2]
    assert [a.image_id for a in dataset.test.annotations] == [1, 2, 3]
    truth = ground_truth(dataset.test.annotations)
    assert truth.crowd.sum() == 1 and len(truth.masks) == 3 and truth.area.tolist()[-1] == 77.5
    everything = Found(truth.image_of, truth.boxes, np.ones(3), truth.labels, truth.masks)
    assert evaluate(everything, truth, dataset.categories).ap == pytest.approx(1)
    assert evaluate_masks(everything, truth, dataset.categories).ap == pytest.approx(1)
    voc_test = open_dataset(voc).test
    assert make_batch([voc_test[0]], voc_test.layout).valid.sum() == 1
    assert ground_truth(voc_test.annotations).difficult.tolist() == [True, False]


def test_every_image_is_evaluated_once(coco):
    source = open_dataset(coco).test
    batches = list(eval_batches(source, 4))
    assert [batch.image.shape for batch in batches] == [(4, 64, 96, 3), (4, 96, 64, 3)]
    assert [batch.image_id[batch.real].tolist() for batch in batches] == [[1, 3], [2]]


def test_held_out_images_are_not_trained_on(voc):
    config = dataclasses.replace(voc, select_images=1)
    dataset = open_dataset(config)
    assert len(dataset.train) == len(dataset.select) == 1
    assert {dataset.train.annotations[0].image_id, dataset.select.annotations[0].image_id} == {1, 3}
    whole = open_dataset(voc)
    assert whole.select is whole.test
    with pytest.raises(ValueError, match="data.select_images=2 must leave images to train on, of 2"):
        open_dataset(dataclasses.replace(voc, select_images=2))


def test_the_padding_is_checked_before_training(tmp_path):
    bdd = Bdd100kData(str(bdd_tree(tmp_path / "bdd", old=False)), data_dir=str(tmp_path / "built"), **SMALL)
    dataset = open_dataset(dataclasses.replace(bdd, max_boxes=1))
    with pytest.raises(ValueError, match="has 2 boxes, more than max_boxes=1: train with --config.data.max_boxes=2"):
        train_batches(dataset.train, batch_size=1, seed=0)


def test_cells_of_masks_must_fill_the_batch(coco):
    with pytest.raises(ValueError, match="data: mask_stride=5 must divide 32"):
        open_dataset(dataclasses.replace(coco, mask_stride=5))


@pytest.mark.parametrize("cache", [True, False])
def test_iteration_is_deterministic_and_restores(coco, cache):
    source = open_dataset(dataclasses.replace(coco, cache=cache)).train
    run = list(itertools.islice(train_batches(source, batch_size=2, seed=3, flip=0.5), 8))
    again = train_batches(source, batch_size=2, seed=3, flip=0.5)
    for batch in run[:5]:
        assert_same(next(again), batch)
    state = again.get_state()
    restored = train_batches(source, batch_size=2, seed=3, flip=0.5)
    restored.set_state(state)
    assert_same(next(restored), run[5])
    assert_same(next(train_batches(source, batch_size=2, seed=3, flip=0.5, start_step=6)), run[6])


def test_processes_have_equal_shares_of_a_batch(coco):
    source = open_dataset(coco).train
    options = dict(batch_size=4, seed=3, flip=0.5, start_step=2)
    whole = train_batches(source, **options)
    shares = [train_batches(source, **options, share=(process, 2)) for process in range(2)]
    for _ in range(3):
        together = [np.concatenate(pair) for pair in zip(*(next(share)[:6] for share in shares), strict=True)]
        for one, other in zip(next(whole)[:6], together, strict=True):
            np.testing.assert_array_equal(one, other)


def assert_same(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(coco):
    """In a program of its own: processes are started afresh from its main module."""
    program = f"""
import itertools, sys
import numpy as np
from detectors.data.coco import CocoData
from detectors.data.datasets import open_dataset
from detectors.data.pipeline import train_batches

if __name__ == "__main__":
    source = open_dataset(CocoData({coco.root!r}, data_dir={coco.data_dir!r}, mask_stride=4, **{SMALL!r})).train
    plain = list(itertools.islice(train_batches(source, batch_size=2, seed=3, flip=0.5), 6))
    workers = train_batches(source, batch_size=2, seed=3, flip=0.5, workers=2)
    first = [[np.array(a) for a in next(workers)] for _ in range(3)]
    workers.set_state(workers.get_state())
    first += [[np.array(a) for a in next(workers)] for _ in range(3)]
    workers.close()
    assert all(np.array_equal(a, b) for one, other in zip(plain, first) for a, b in zip(one, other))
    assert "tensorflow" not in sys.modules
    print("same")
"""
    path = pathlib.Path(coco.data_dir) / "program.py"
    path.write_text(program)
    result = subprocess.run(
        [sys.executable, path], env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert result.stdout.strip() == "same", result.stderr


# --- launch/data.py ---


def test_launch_data_verifies_and_draws(coco, tmp_path):
    code, output = run(
        "data", f"--config.root={coco.root}", f"--config.data_dir={coco.data_dir}", "--draw=2", f"--out={tmp_path}"
    )
    assert code == 0, output
    assert "train: 3 images, 1 without objects, 3 boxes, 1 most trained boxes in an image, 1 crowds" in output
    assert "categories: dog 1, cat 2" in output
    assert "1 x image of another size than annotated: 6.jpg is 60x80, annotated 80x60" in output
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == 4
    for path in drawn:
        split, stem = path.stem.split("-")
        original = Image.open(pathlib.Path(coco.root) / f"{split.replace('test', 'val')}2017" / f"{stem}.jpg")
        picture = Image.open(path)
        assert picture.size == original.size
        assert np.array_equal(np.asarray(picture), np.asarray(original)) == (stem == "3")  # it has no objects


def test_repaired_images_are_read_again(tmp_path):
    root = coco_tree(tmp_path / "coco")
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][3]["file_name"] = "more/4.jpg"  # missing, in a folder of its own
    path.write_text(json.dumps(content))
    (root / "train2017" / "more").mkdir()
    command = ["data", f"--config.root={root}", f"--config.data_dir={tmp_path / 'built'}"]
    code, output = run(*command)
    assert code == 0 and "train: 3 images" in output and "COCO, built: " in output, output
    code, output = run(*command)
    assert "as it was built before (--rebuild builds it again): " in output and "train: 3 images" in output
    write_image(root / "train2017" / "more" / "4.jpg")
    code, output = run(*command)
    assert "1 images that were bad have changed, such as " in output and "train: 4 images" in output, output
    write_image(root / "train2017" / "5.jpg")  # in place
    assert "train: 5 images" in run(*command)[1]
    write_image(root / "train2017" / "1.jpg", seed=9)
    code, output = run(*command, "--rebuild")
    assert "COCO, built: " in output
    builder = build_detection_set(CocoData(str(root), data_dir=str(tmp_path / "built")))
    stored = np.asarray(Image.open(root / "train2017" / "1.jpg"))
    np.testing.assert_array_equal(read_built(builder, "train").image(0), stored)


def test_launch_data_times_batches(coco, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.torch_loader", None)
    small = [f"--config.{name}={value}" for name, value in SMALL.items()]
    code, output = run(
        "data", f"--config.root={coco.root}", f"--config.data_dir={coco.data_dir}", *small, "--benchmark=1"
    )
    assert code == 0 and re.search(r"\ntraining batches by 2 threads: [1-9]\d* images/s\n", output), output
    assert "torch's DataLoader is not timed: torch is not installed: " in output


def test_launch_data_fails_with_one_line():
    code, output = run("data", "--config=configs/data/voc.py", "--config.root=/nowhere")
    assert code == 1
    assert "The folder /nowhere does not exist." in output and output.count("\n") == 1


# --- real data ---


def test_real_blood_cells(test_data, tmp_path):
    from configs.data.bccd import get_config

    config = dataclasses.replace(get_config(), root=str(test_data / "bccd"), data_dir=str(tmp_path), cache=False)
    dataset = open_dataset(config)
    assert [len(s) for s in (dataset.train, dataset.test)] == [292, 72]
    assert dataset.train.layout.size == (480, 640)
    counts = sum(np.bincount(a.labels, minlength=3) for s in (dataset.train, dataset.test) for a in s.annotations)
    np.testing.assert_array_equal(counts, [4153, 372, 361])
    assert dataset.bad_records["train"].counts == {"box dropped, without area": 2}
    assert sorted(case[:16] for case in dataset.bad_records["train"].cases["box dropped, without area"]) == [
        "BloodImage_00338",
        "BloodImage_00343",
    ]


@pytest.mark.slow
def test_real_coco_with_masks_and_crowds(test_data, tmp_path):
    from configs.data.coco_format import get_config

    config = dataclasses.replace(get_config(), root=str(test_data / "coco_seg"), data_dir=str(tmp_path), mask_stride=8)
    dataset = open_dataset(config)
    assert dataset.train.layout.size == (800, 1344) and len(dataset.categories) == 80
    assert (len(dataset.train), len(dataset.test)) == (340, 206)  # three images of train have no boxes
    truth = ground_truth(dataset.test.annotations)
    assert (len(truth.labels), int(truth.crowd.sum())) == (1786, 21)
    batch = next(train_batches(dataset.train, batch_size=2, seed=0))
    rows = np.argwhere(batch.valid)
    assert len(rows) > 2
    for row, slot in rows:  # masks lie in their boxes, to a cell
        y, x = np.nonzero(batch.masks[row, slot])
        x1, y1, x2, y2 = batch.boxes[row, slot] / 8
        if len(x):
            assert x1 - 1 <= x.min() and x.max() <= x2 and y1 - 1 <= y.min() and y.max() <= y2
    content = json.loads((test_data / "coco_seg" / "annotations" / "instances_val.json").read_text())
    area = {row["id"]: row["area"] for row in content["annotations"]}
    assert truth.area.sum() == pytest.approx(sum(area.values()))
    everything = Found(truth.image_of, truth.boxes, np.ones(1786), truth.labels, truth.masks)
    own = np.flatnonzero(~truth.crowd)
    objects = Found(*(column[own] for column in everything[:4]), masks=[truth.masks[i] for i in own])
    assert evaluate(objects, truth, dataset.categories).ap == pytest.approx(1)
    assert evaluate_masks(objects, truth, dataset.categories).ap == pytest.approx(1)


def test_real_voc_images_and_their_difficult_objects(test_data, tmp_path):
    config = CocoData(
        str(test_data / "voc12_100"),
        annotations="annotations/instances_{split}.json",
        images="images",
        train="all",
        test="all",
        data_dir=str(tmp_path),
        short_side=600,
        long_side=1000,
    )
    dataset = open_dataset(config)
    truth = ground_truth(dataset.test.annotations)
    assert (len(truth.labels), int(truth.difficult.sum())) == (273, 38)
    assert dataset.train.layout.size == (608, 1024)
    easy = np.flatnonzero(~truth.difficult)
    found = Found(truth.image_of[easy], truth.boxes[easy], np.ones(len(easy)), truth.labels[easy])
    metrics = evaluate_voc(found, truth, dataset.categories)
    assert metrics.map_07 == metrics.map_area == pytest.approx(1)
    assert evaluate_voc(found, truth._replace(difficult=None), dataset.categories).map_area < 0.98
    half = Found(*(column[::2] for column in found[:4]))
    assert evaluate_voc(half, truth, dataset.categories).map_area == pytest.approx(_recalls(half, truth))


def _recalls(found: Found, truth) -> float:
    """Mean recall over the categories: the area where all detections are right."""
    easy = truth.labels[~truth.difficult]
    return float(np.mean([np.sum(found.labels == label) / np.sum(easy == label) for label in np.unique(easy)]))
