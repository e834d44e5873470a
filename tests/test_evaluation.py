"""Average precision against pycocotools, and what it says about images without objects or detections."""

import contextlib
import io
import json
import math
import os
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectors.data.pipeline import Layout, Source
from detectors.data.records import Annotation
from detectors.evaluation import Found, GroundTruth, evaluate, evaluate_detector, ground_truth
from detectors.structures import Detections

CATEGORIES = tuple("abcd")
TEST_DATA = pathlib.Path(
    os.environ.get("CSE_JAX_TEST_DATA") or pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
)
REFERENCES = TEST_DATA / "eval_refs"


def xywh(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)


def pycocotools_metrics(found: Found, truth: GroundTruth, categories):
    """The six AP figures and the AP of each category."""
    annotations = [
        {
            "id": i + 1,
            "image_id": int(truth.image_of[i]),
            "category_id": int(truth.labels[i]),
            "bbox": box.tolist(),
            "area": float(truth.area[i]),
            "iscrowd": int(truth.crowd[i]),
        }
        for i, box in enumerate(xywh(truth.boxes))
    ]
    columns = (found.image_of[:, None], xywh(found.boxes), found.scores[:, None], found.labels[:, None])
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [{"id": int(i)} for i in truth.image_ids],
            "categories": [{"id": label, "name": name} for label, name in enumerate(categories)],
            "annotations": annotations,
        }
        reference.createIndex()
        results = reference.loadRes(np.concatenate(columns, axis=1).astype(np.float64))
        evaluator = COCOeval(reference, results, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, 2]
    each = [precision[:, :, label] for label in range(len(categories))]
    return evaluator.stats[:6].tolist(), [float(p[p > -1].mean()) if (p > -1).any() else -1.0 for p in each]


def assert_equal_to_pycocotools(found, truth, categories):
    metrics = evaluate(found, truth, categories)
    overall, each = pycocotools_metrics(found, truth, categories)
    ours = np.nan_to_num([*metrics[:6], *metrics.per_category.values()], nan=-1.0)
    np.testing.assert_array_equal(ours, [*overall, *each])
    assert list(metrics.per_category) == list(categories)
    return metrics


def random_case(seed: int, images=30, objects=90, detections=400, extent=200.0):
    """Objects of all sizes, some of them crowds, and detections of which half are near one."""
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(1000)[:images]
    corner, side = rng.uniform(0, extent, (objects, 2)), np.exp(rng.uniform(1, 5, (objects, 2)))
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32).astype(np.float64)
    # The last images have no object, the last category has none either.
    truth = GroundTruth(
        image_ids,
        rng.choice(image_ids[: max(1, images - 3)], objects),
        boxes,
        rng.integers(0, len(CATEGORIES) - 1, objects),
        np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        rng.random(objects) < 0.1,
    )
    near = rng.integers(0, objects, detections)
    shaken = boxes[near] + rng.normal(0, 0.1, (detections, 4)) * np.tile(side[near], 2)
    shaken[:, 2:] = np.maximum(shaken[:, 2:], shaken[:, :2] + 1)
    image_of = np.where(rng.random(detections) < 0.7, truth.image_of[near], rng.choice(image_ids, detections))
    labels = np.where(rng.random(detections) < 0.8, truth.labels[near], rng.integers(0, 4, detections))
    scores = rng.integers(0, 50, detections) / 50  # with ties
    return Found(image_of, shaken.astype(np.float32), scores.astype(np.float32), labels), truth


def source_of(annotations) -> Source:
    layout = Layout((64, 64), 4, (128.0,) * 3, (60.0,) * 3)
    return Source(annotations, [np.zeros((*a.size, 3), np.uint8) for a in annotations], CATEGORIES, layout)


def annotation(image_id, boxes=(), labels=(), size=(64, 64)):
    return Annotation(image_id, size, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32))


@pytest.mark.parametrize("seed", range(10))
def test_equals_pycocotools_bit_for_bit(seed):
    metrics = assert_equal_to_pycocotools(*random_case(seed), CATEGORIES)
    assert 0 < metrics.ap < 1 and math.isnan(metrics.per_category["d"])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12), st.integers(1, 400), st.floats(1.0, 500.0))
def test_equals_pycocotools_on_small_and_crowded_cases(seed, images, objects, detections, extent):
    assert_equal_to_pycocotools(*random_case(seed, images, objects, detections, extent), CATEGORIES)


@pytest.mark.skipif(not REFERENCES.is_dir(), reason=f"no {REFERENCES}: set CSE_JAX_TEST_DATA")
@pytest.mark.parametrize(
    ("truth_file", "found_file", "expected"),
    [
        ("instances_val2014_100_gt.json", "instances_val2014_fakebbox100_results.json", "fakebbox100_pycocotools"),
        ("sampled_bbox_gts.json", "sampled_bbox_dets_resfmt.json", "sampled_bbox_expected"),
    ],
)
def test_published_reference_evaluations(truth_file, found_file, expected):
    """Nothing is detected on one image of the first: leaving it out would raise AP by 0.0024."""
    reference = json.loads((REFERENCES / truth_file).read_text())
    results = json.loads((REFERENCES / found_file).read_text())
    figures = list(json.loads((REFERENCES / "expected.json").read_text())[expected].values())[:6]
    index = {category["id"]: label for label, category in enumerate(reference["categories"])}

    def column(rows, key):
        return np.array([row[key] for row in rows])

    def boxes(rows):
        corners = column(rows, "bbox").astype(np.float64)
        return np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)

    def labels(rows):
        return np.array([index[row["category_id"]] for row in rows])

    objects = reference["annotations"]
    truth = GroundTruth(
        column(reference["images"], "id"),
        column(objects, "image_id"),
        boxes(objects),
        labels(objects),
        column(objects, "area"),
        np.array([row.get("iscrowd", 0) for row in objects], bool),
    )
    found = Found(column(results, "image_id"), boxes(results), column(results, "score"), labels(results))
    metrics = assert_equal_to_pycocotools(found, truth, [str(label) for label in range(len(index))])
    np.testing.assert_allclose(metrics[:6], figures, atol=1e-6 if "sampled" in expected else 1e-12)


def test_prints_nothing(capfd):
    evaluate(*random_case(0), CATEGORIES)
    assert capfd.readouterr() == ("", "")


def test_no_detections_score_zero():
    _, truth = random_case(1)
    nothing = Found(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    metrics = evaluate(nothing, truth, CATEGORIES)
    assert metrics.ap == metrics.ap50 == metrics.per_category["a"] == 0
    assert math.isnan(metrics.per_category["d"])


def test_without_ground_truth_ap_is_undefined():
    found, _ = random_case(1)
    metrics = evaluate(found, ground_truth([annotation(1), annotation(2)]), CATEGORIES)
    assert all(math.isnan(value) for value in [*metrics[:6], *metrics.per_category.values()])


def test_images_without_detections_count():
    """Finding everything on one of two equal images is half of the recall, not all of it."""
    box = (4, 4, 40, 40)
    source = source_of([annotation(1, [box], [0]), annotation(2, [box], [0]), annotation(3)])

    def predict(image, image_size):
        boxes = np.zeros((len(image), 2, 4), np.float32)
        boxes[0, 0] = box
        valid = np.zeros((len(image), 2), bool)
        valid[0, 0] = True
        return Detections(boxes, np.full((len(image), 2), 0.9, np.float32), np.zeros((len(image), 2), int), valid)

    metrics = evaluate_detector(predict, source, batch_size=4)
    assert metrics.ap == pytest.approx(51 / 101)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_a_perfect_detector_scores_one(batch_size):
    """Also says that padding rows, padding detections and their order are left out whatever the batch size."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 30, (5, 2, 2))
    boxes = np.concatenate([corners, corners + rng.integers(8, 30, (5, 2, 2))], axis=-1)
    source = source_of([annotation(10 + i, boxes[i], [i % 3, 3]) for i in range(5)])
    seen = []

    def predict(image, image_size):
        assert image.shape == (batch_size, 64, 64, 3) and image_size.shape == (batch_size, 2)
        start = len(seen) * batch_size
        seen.append(start)
        rows = [min(start + row, 4) for row in range(batch_size)]
        wrong = np.tile(np.array([0, 0, 64, 64]), (batch_size, 1, 1))
        answer = np.concatenate([wrong, boxes[rows]], axis=1).astype(np.float32)
        labels = np.array([[0, row % 3, 3] for row in rows])
        valid = np.tile([False, True, True], (batch_size, 1))
        return Detections(answer, np.full((batch_size, 3), 0.9, np.float32), labels, valid)

    assert evaluate_detector(predict, source, batch_size=batch_size).ap == 1.0


def test_detections_that_are_not_finite_are_refused():
    found, truth = random_case(2)
    scores = found.scores.copy()
    scores[5:7] = np.nan
    with pytest.raises(ValueError, match=rf"2 of 400 detections.*the first on image {found.image_of[5]}:"):
        evaluate(found._replace(scores=scores), truth, CATEGORIES)
    boxes = found.boxes.copy()
    boxes[0, 2] = np.inf
    with pytest.raises(ValueError, match="1 of 400 detections are not finite"):
        evaluate(found._replace(boxes=boxes), truth, CATEGORIES)


def test_detections_on_unknown_images_are_refused():
    found, truth = random_case(2)
    with pytest.raises(ValueError, match="Detections on image 5000"):
        evaluate(found._replace(image_of=np.full(400, 5000)), truth, CATEGORIES)
