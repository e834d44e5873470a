"""Annotations and results as people's programs write them: odd ones are read or named; both ways of scoring agree."""

import contextlib
import copy
import dataclasses
import io
import json
import os
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scripts import run

from detectors.data.bdd100k import Bdd100kData
from detectors.data.coco import CocoData
from detectors.data.datasets import open_dataset
from detectors.data.json_rows import FileError
from detectors.data.masks import run_lengths
from detectors.data.on_disk import LayoutError
from detectors.data.pipeline import train_batches
from detectors.data.records import BadRecords
from detectors.data.voc import VocData
from detectors.evaluation.coco import evaluate, ground_truth
from detectors.evaluation.results_files import ResultsError, read_reference, read_results

SIZE = (60, 80)


def coco_content(images=6, seed=0) -> dict:
    """A set in COCO's format; the last object is a crowd."""
    rng = np.random.default_rng(seed)
    objects = []
    for number in range(3 * images):
        x, y, w, h = (float(v) for v in np.round(rng.uniform([0, 0, 10, 10], [40, 30, 30, 25]), 2))
        objects.append(
            {
                "id": number + 1,
                "image_id": 1 + number % images,
                "category_id": (3, 7)[number % 2],
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
        )
    objects[-1] |= {"iscrowd": 1, "segmentation": {"size": [60, 80], "counts": [0, 2400, 2400]}}
    listed = [{"id": i + 1, "file_name": f"{i + 1}.png", "height": 60, "width": 80} for i in range(images)]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    return {"images": listed, "annotations": objects, "categories": categories}


def results_of(content: dict, seed=1) -> list[dict]:
    """Detections near the objects, with scores that often tie, and some elsewhere."""
    rng = np.random.default_rng(seed)
    found = []
    for row in content["annotations"]:
        for _ in range(2):
            moved = np.array(row["bbox"]) + rng.normal(0, 1.5, 4)
            score = round(float(rng.uniform()), 1)
            box = [float(v) for v in moved]
            found.append({"image_id": row["image_id"], "category_id": row["category_id"], "bbox": box, "score": score})
    return found


def write_set(root: pathlib.Path, content: dict) -> CocoData:
    (root / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(1, 7):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(root / "images" / f"{number}.png")
    (root / "truth.json").write_text(json.dumps(content))
    return CocoData(str(root), annotations="truth.json", images="images", data_dir=str(root / "built"))


def by_config(config: CocoData, results: pathlib.Path) -> list[float]:
    """AP when the data set is opened and the detections are a detector's."""
    source = open_dataset(config).test
    truth = ground_truth(source.annotations)
    label_of = {number: source.categories.index(name) for number, name in ((3, "dog"), (7, "cat"))}
    kept = [row for row in json.loads(results.read_text()) if row["image_id"] in truth.image_ids.tolist()]
    boxes = np.array([row["bbox"] for row in kept], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    columns = ([row["image_id"] for row in kept], boxes, [row["score"] for row in kept])
    labels = np.array([label_of[row["category_id"]] for row in kept])
    found = read_results(results, read_reference(pathlib.Path(config.root) / "truth.json", masks=False))._replace(
        image_of=np.array(columns[0]), boxes=columns[1], scores=np.array(columns[2]), labels=labels
    )
    return list(evaluate(found, truth, source.categories)[:6])


def by_file(path: pathlib.Path, results: pathlib.Path) -> list[float]:
    """AP of a results file."""
    reference = read_reference(path, masks=False)
    return list(evaluate(read_results(results, reference), reference.truth, reference.categories)[:6])


def by_pycocotools(content: dict, results: list[dict]) -> list[float]:
    oracle = COCO()
    oracle.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        oracle.createIndex()
        evaluator = COCOeval(oracle, oracle.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [value if value >= 0 else float("nan") for value in evaluator.stats[:6].tolist()]


def changed(content: dict, part: str, number: int, **fields) -> dict:
    content = copy.deepcopy(content)
    content[part][number] |= fields
    return content


def without(content: dict, image_id: int) -> dict:
    kept = {part: list(content[part]) for part in content}
    kept["images"] = [row for row in content["images"] if row["id"] != image_id]
    kept["annotations"] = [row for row in content["annotations"] if row["image_id"] != image_id]
    return kept


def with_ids(content: dict, number: int) -> dict:
    """The set with image ids from a number on."""
    content = copy.deepcopy(content)
    for row in content["images"]:
        row["id"] += number
    for row in content["annotations"]:
        row["image_id"] += number
    return content


PLAIN = coco_content()
AS_TEXT = json.loads(json.dumps(PLAIN))
for _row in AS_TEXT["annotations"]:
    _row |= {name: str(_row[name]) for name in ("image_id", "category_id", "iscrowd", "area")}
    _row["bbox"] = [str(value) for value in _row["bbox"]]
for _row in AS_TEXT["images"]:
    _row |= {"id": f"{_row['id']:06d}", "height": 60.0, "width": "80"}
NAN = changed(PLAIN, "annotations", 0, bbox=[float("nan"), 2, 9, 9])
TWICE = PLAIN | {"images": [*PLAIN["images"], PLAIN["images"][1]]}
NULL_BOX = changed(PLAIN, "annotations", 1, bbox=None)
ODD = {  # a set, and the set without what cannot be used, as pycocotools reads it
    "plain": (PLAIN, PLAIN),
    "numbers as text": (AS_TEXT, PLAIN),
    "image listed twice": (TWICE, PLAIN),
    "ignore": (changed(PLAIN, "annotations", 0, ignore=1), PLAIN),
    "difficult": (changed(PLAIN, "annotations", 0, difficult="1"), PLAIN),
    "box of NaN": (NAN, PLAIN | {"annotations": PLAIN["annotations"][1:]}),
    "box of null": (NULL_BOX, without(PLAIN, 2)),
    "ids above 2^31": (with_ids(PLAIN, 2**31), with_ids(PLAIN, 2**31)),
    "ids above 2^53": (with_ids(PLAIN, 2**53), PLAIN),
    "no sizes": (changed(PLAIN, "images", 0, height=None, width=None), PLAIN),
    "images in another order": (PLAIN | {"images": PLAIN["images"][::-1]}, PLAIN),
}


@pytest.mark.parametrize("name", ODD)
def test_both_ways_of_scoring_agree_with_pycocotools(tmp_path, name):
    content, usable = ODD[name]
    config, results = write_set(tmp_path, content), tmp_path / "found.json"
    shift = content["images"][0]["id"] - 1 if name.startswith("ids") else 0
    results.write_text(json.dumps(results_of(with_ids(PLAIN, shift))))
    ids = {row["id"] for row in usable["images"]}
    found = results_of(PLAIN if name == "ids above 2^53" else with_ids(PLAIN, shift))
    expected = by_pycocotools(usable, [row for row in found if row["image_id"] in ids])
    assert 0.1 < expected[0] < 0.9
    np.testing.assert_allclose(by_file(tmp_path / "truth.json", results), expected, atol=1e-9)
    np.testing.assert_allclose(by_config(config, results), expected, atol=1e-9)


def test_batches_hold_ids_of_any_size(tmp_path):
    source = open_dataset(write_set(tmp_path, with_ids(PLAIN, 2**53))).train
    batch = next(train_batches(source, batch_size=6, seed=0))
    assert sorted(batch.image_id.tolist()) == [2**53 + i for i in range(1, 7)]


@pytest.mark.parametrize(
    ("part", "fields", "said"),
    [
        ("annotations", {"bbox": None}, "annotation 3: bbox is null: expected a list, got null; image 3"),
        ("annotations", {"bbox": [1, 2, 3]}, "annotation 3: bbox is [1, 2, 3]: expected a list of length 4"),
        ("annotations", {"image_id": [3]}, "annotation 3: image_id is [3]: expected a whole number, got a list"),
        ("annotations", {"category_id": "cat"}, 'annotation 3: category_id is "cat": expected a whole number'),
        ("annotations", {"iscrowd": "perhaps"}, 'annotation 3: iscrowd is "perhaps": expected true or false'),
        ("annotations", {"area": {}}, "annotation 3: area is {}: expected a number"),
        ("images", {"height": "tall"}, 'image 3: height is "tall": expected a whole number'),
        ("images", {"width": -5}, "image 3: width is -5: expected a whole number >= 1"),
        ("images", {"file_name": 3}, "image 3: file_name is 3: expected text"),
        ("images", {"id": "left.png"}, 'image "left.png": id is "left.png": expected a whole number'),
        ("images", {"id": 2**63}, "id is 9223372036854775808: expected a whole number <="),
    ],
)
def test_bad_rows_are_named_with_id_field_and_value(tmp_path, part, fields, said):
    write_set(tmp_path, changed(PLAIN, part, 2, **fields))
    reference = read_reference(tmp_path / "truth.json", masks=False)
    assert said in str(reference.bad_records)
    left = 6 - len(reference.truth.image_ids)
    assert left == (0 if "image_id" in fields else 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"annotations": None}, "Expected a list, got null, in annotations"),
        ({"categories": [{"name": "cat"}]}, "category number 1: it has no field id"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "two categories have the id 3"),
    ],
)
def test_files_without_a_part_are_named(tmp_path, fields, said):
    config = write_set(tmp_path, PLAIN | fields)
    for reading in (lambda: read_reference(tmp_path / "truth.json", masks=False), lambda: open_dataset(config)):
        with pytest.raises(FileError, match="truth.json.*" + said):
            reading()


def test_a_category_without_a_name_has_its_id_as_name(tmp_path):
    write_set(tmp_path, PLAIN | {"categories": [{"id": 3}, {"id": 7, "name": "cat"}]})
    assert read_reference(tmp_path / "truth.json", masks=False).categories == ("category 3", "cat")


def test_an_image_of_the_annotations_lies_below_the_root(tmp_path):
    secret = tmp_path / "secret.png"
    content = changed(changed(PLAIN, "images", 0, file_name=str(secret)), "images", 1, file_name="../../secret.png")
    config = write_set(tmp_path / "set", content)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(secret)
    report = open_dataset(config).bad_records["test"]
    assert report.counts["image outside the root, not read"] == 2 and "config.outside=True" in str(report)
    allowed = open_dataset(dataclasses.replace(config, outside=True))
    assert len(allowed.test) == 6 and not allowed.bad_records["test"]


def test_what_is_no_regular_file_is_not_read(tmp_path):
    content = changed(PLAIN, "images", 0, file_name="pipe.png")
    config = write_set(tmp_path, content)
    os.mkfifo(tmp_path / "images" / "pipe.png")
    assert "pipe.png (not a regular file)" in str(open_dataset(config).bad_records["test"])
    (tmp_path / "truth.json").unlink()
    os.mkfifo(tmp_path / "truth.json")
    with pytest.raises(FileError, match="not a regular file"):
        read_reference(tmp_path / "truth.json", masks=False)


@pytest.mark.parametrize(
    ("fields", "renamed", "said"),
    [
        ({"file_name": "1.PNG"}, None, "1.png is there: correct upper and lower case"),
        ({"file_name": "1.jpg"}, None, "1.png is there: correct the suffix"),
        ({"file_name": "images/1.png"}, None, "images/1.png is there: correct the folder of the images"),
        ({"file_name": "1.png"}, "photos/1.png", "photos/1.png is there: correct the folder of the images"),
        ({"file_name": "train/x.png"}, None, "images/train does not exist"),
    ],
)
def test_a_missing_image_names_the_likely_cause(tmp_path, fields, renamed, said):
    config = write_set(tmp_path, changed(PLAIN, "images", 0, **fields))
    if renamed:
        (tmp_path / renamed).parent.mkdir()
        (tmp_path / "images" / "1.png").rename(tmp_path / renamed)
    assert said in str(open_dataset(config).bad_records["test"])


def test_many_missing_images_are_counted(tmp_path):
    listed = [{"id": i, "file_name": f"none/{i}.png", "height": 60, "width": 80} for i in range(400)]
    config = write_set(tmp_path, PLAIN | {"images": listed, "annotations": []})
    with pytest.raises(LayoutError, match="400 x missing file") as raised:
        open_dataset(config)
    assert len(str(raised.value)) < 3000 and str(raised.value).count("none/") <= 3 * 2
    write_set(tmp_path, PLAIN | {"images": [*PLAIN["images"], *listed[8:]]})
    arguments = [f"--config.{name}={getattr(config, name)}" for name in ("root", "annotations", "images")]
    code, output = run("data", *arguments, "--list_bad=2", data_dir=tmp_path / "built")
    assert code == 0 and "392 x missing file" in output and output.count(".png") < 20, output


# --- masks ---

SQUARE = [10.0, 10, 30, 10, 30, 30, 10, 30]


@pytest.mark.parametrize(
    "form", [SQUARE, [[10, 10], [30, 10], [30, 30], [10, 30]], [[[10, 10], [30, 10], [30, 30], [10, 30]]]]
)
def test_usual_forms_of_polygons_are_read(form):
    expected = run_lengths(json.dumps([SQUARE]).encode(), SIZE)
    assert run_lengths(json.dumps(form).encode(), SIZE) == expected


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ([[10, 10, 30, 30]], "a polygon of 4 numbers"),
        ([10, 10, 30, 30], "a polygon of 4 numbers"),
        ([[10, 10, 30, 10, 30]], "a polygon of 5 numbers"),
        ([[10, 10, 30, 10, 1e9, 30]], "far outside its image of 80x60"),
        ({"size": [60, 80], "counts": [0, 5]}, "do not add up to 80x60"),
        ({"size": [80, 60], "counts": [0, 4800]}, "for an image of size"),
        ("polygon", "neither polygons nor run lengths"),
    ],
)
def test_a_bad_mask_is_named_and_leaves_its_box(tmp_path, form, said):
    config = write_set(tmp_path, changed(PLAIN, "annotations", 2, segmentation=form))
    dataset = open_dataset(config)
    assert [len(a.labels) for a in dataset.test.annotations] == [3] * 6
    cases = dataset.bad_records["test"].cases["mask dropped, its box is kept"]
    assert cases[0].startswith("image 3 (3.png), annotation 3: ") and said in cases[0]
    with_masks = open_dataset(dataclasses.replace(config, mask_stride=4))
    assert (len(with_masks.train), len(with_masks.test)) == (5, 6)
    assert "image with an object without mask, not trained on" in with_masks.bad_records["train"].counts
    with pytest.raises(ResultsError, match="1 of 18 objects have no segmentation(.|\n)*annotation 3: "):
        read_reference(tmp_path / "truth.json", masks=True)


# --- one field changed at a time ---

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["1", "0", "NaN", "1e400", "../x", "a\0b"]),
    st.lists(st.one_of(st.none(), st.floats(), st.integers(-9, 9), st.lists(st.floats(), max_size=3)), max_size=5),
    st.dictionaries(st.sampled_from(["size", "counts"]), st.integers(-3, 99), max_size=2),
)
QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def mutated(draw, tree):
    """The tree with one value replaced by anything, or gone."""
    tree = copy.deepcopy(tree)
    places = []

    def visit(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(tree)
    node, key = places[draw(st.integers(0, len(places) - 1))]
    if isinstance(node, dict) and draw(st.booleans()):
        del node[key]
    else:
        node[key] = draw(ANYTHING)
    return tree


@QUICK
@given(st.data())
def test_a_changed_annotation_file_is_read_or_named(tmp_path, data):
    content = mutated(data.draw, coco_content(3))
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    with contextlib.suppress(FileError, ResultsError):
        reference = read_reference(path, masks=data.draw(st.booleans()))
        whole = {tuple(box) for box in _boxes(coco_content(3))}
        kept = {tuple(box) for box in np.round(reference.truth.boxes, 6).tolist()}
        if not reference.bad_records and len(content["images"]) == 3:
            assert len(whole - kept) <= 1
    config = CocoData(str(tmp_path), annotations="truth.json", images="images")
    report = BadRecords()
    with contextlib.suppress(FileError, LayoutError):
        list(config.read("test", config.categories(), report))


def _boxes(content):
    boxes = np.array([row["bbox"] for row in content["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    return np.round(boxes, 6).tolist()


@QUICK
@given(st.data())
def test_a_changed_results_file_is_read_or_named(tmp_path, data):
    content = coco_content(2)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    reference = read_reference(tmp_path / "truth.json", masks=False)
    (tmp_path / "found.json").write_text(json.dumps(mutated(data.draw, results_of(content))))
    with contextlib.suppress(FileError, ResultsError):
        found = read_results(tmp_path / "found.json", reference)
        evaluate(found, reference.truth, reference.categories)


@QUICK
@given(st.data())
def test_changed_bdd100k_labels_are_read_or_named(tmp_path, data):
    label = {"category": "car", "box2d": {"x1": 1, "y1": 2, "x2": 9.5, "y2": 8}, "attributes": {"crowd": False}}
    rows = [{"name": "a.jpg", "labels": [label, label]}, {"name": "b.jpg", "labels": None}]
    path = tmp_path / "labels" / "det_20" / "det_val.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mutated(data.draw, rows)))
    config = Bdd100kData(str(tmp_path))
    with contextlib.suppress(FileError):
        list(config.read("test", config.categories(), BadRecords()))


VOC = """<?xml version="1.0" encoding="utf-8"?>
<annotation><size><width>80</width><height>60</height></size><object><name>cow</name><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""


@QUICK
@given(st.data())
def test_changed_voc_files_are_read_or_named(tmp_path, data):
    value = data.draw(st.sampled_from(["utf-8", "80", "60", ">0<", "3", "30", "cow", "<name>", "bndbox", "1.0"]))
    new = data.draw(st.sampled_from(["", "nan", "1e999", "9" * 5000, "-1", "latin-9x", "utf-16", "\0", "&x;", "0"]))
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    (tmp_path / "Annotations" / "a.xml").write_text(VOC.replace(value, new))
    config = VocData(str(tmp_path), train=("val",), test=("val",))
    list(config.read("test", config.categories(), BadRecords()))
