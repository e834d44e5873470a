"""Average precision against pycocotools, and what it says about images without objects or detections."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from hotcoco import mask as rle
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as maskUtils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectors.data.masks import run_lengths
from detectors.data.pipeline import Layout, Source
from detectors.data.records import Annotation
from detectors.data.resizing import resized
from detectors.evaluation.coco import (
    Found,
    GroundTruth,
    detect,
    evaluate,
    evaluate_detector,
    evaluate_masks,
    ground_truth,
)
from detectors.evaluation.voc import area_ap, eleven_point_ap, evaluate_voc
from detectors.structures import Detections

CATEGORIES = tuple("abcd")


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
    layout = Layout((64, 64), 4)
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


@pytest.mark.parametrize(
    ("truth_file", "found_file", "expected"),
    [
        ("instances_val2014_100_gt.json", "instances_val2014_fakebbox100_results.json", "fakebbox100_pycocotools"),
        ("sampled_bbox_gts.json", "sampled_bbox_dets_resfmt.json", "sampled_bbox_expected"),
    ],
)
def test_published_reference_evaluations(test_data, truth_file, found_file, expected):
    """Nothing is detected on one image of the first: leaving it out would raise AP by 0.0024."""
    references = test_data / "eval_refs"
    reference = json.loads((references / truth_file).read_text())
    results = json.loads((references / found_file).read_text())
    figures = list(json.loads((references / "expected.json").read_text())[expected].values())[:6]
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


# --- images that were resized ---


def test_boxes_and_masks_are_scored_in_original_pixels():
    """A detector that sees both orientations at twice the size and finds the right half of each object."""
    layout = Layout((64, 128), 2, two_shapes=True, mask_stride=4)
    sizes, box = [(20, 50), (50, 20), (30, 60)], np.array([[2.0, 4, 14, 16]])
    annotations = []
    for image_id, size in enumerate(sizes, start=1):
        mask = np.zeros(size, np.uint8, order="F")
        mask[4:16, 2:14] = 1
        runs = maskUtils.encode(mask)["counts"]
        annotations.append(Annotation(image_id, size, box, np.array([0]), masks=(runs,)))
    images = [resized(np.zeros((*size, 3), np.uint8), (2 * size[0], 2 * size[1])) for size in sizes]
    source, seen = Source(annotations, images, ("thing",), layout), []

    def predict(image, image_size):
        seen.append(image.shape)
        boxes = np.tile(2 * np.array([8.0, 4, 14, 16], np.float32), (len(image), 1, 1))
        one = np.ones((len(image), 1))
        return Detections(boxes, one, one.astype(int) - 1, one > 0, np.ones((len(image), 1, 28, 28), np.float32))

    found, truth = detect(predict, source, batch_size=2), ground_truth(annotations)
    assert seen == [(2, 64, 128, 3), (2, 128, 64, 3)]
    assert sorted(found.image_of.tolist()) == [1, 2, 3]
    np.testing.assert_allclose(found.boxes, [[8, 4, 14, 16]] * 3)
    for image_id, mask in zip(found.image_of, found.masks, strict=True):
        pixels = rle.decode(mask)
        assert pixels.shape == sizes[image_id - 1]
        assert pixels[4:16, 8:14].all() and pixels.sum() == 72
    assert evaluate(found, truth, ("thing",)).ap50 == evaluate_masks(found, truth, ("thing",)).ap50 == 1.0
    assert evaluate_masks(found, truth, ("thing",)).ap == pytest.approx(0.1)  # IoU is one half
    boxes_alone = detect(predict, source, batch_size=2, masks=False)
    assert boxes_alone.masks is None and np.array_equal(boxes_alone.boxes, found.boxes)


# --- masks ---


def mask_case(seed: int):
    """Random rectangles with a bite, some crowds; detections are shifted copies."""
    rng = np.random.default_rng(seed)
    height, width, image_ids = 120, 160, np.array([3, 8, 9])
    rows, found_rows = [], []
    for index in range(24):
        x, y = rng.integers(0, [100, 70])
        w, h = rng.integers(6, 60, 2)
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[y : y + h, x : x + w] = 1
        mask[y : y + h // 2, x : x + w // 2] = 0
        image_id, label = int(rng.choice(image_ids[:2])), int(rng.integers(0, 3))
        rows.append((image_id, (x, y, x + w, y + h), label, mask, index % 8 == 0))
        for _ in range(3):
            moved = np.asfortranarray(np.roll(mask, rng.integers(-6, 7, 2), (0, 1)))
            found_rows.append((image_id, (x, y, x + w, y + h), float(rng.integers(1, 20) / 20), label, moved))
    image_of, boxes, labels, masks, crowd = zip(*rows, strict=True)
    area = np.array([mask.sum() for mask in masks], float)
    truth = GroundTruth(
        image_ids,
        np.array(image_of),
        np.array(boxes, float),
        np.array(labels),
        area,
        np.array(crowd),
        masks=[maskUtils.encode(mask) for mask in masks],
    )
    image_of, boxes, scores, labels, masks = zip(*found_rows, strict=True)
    encoded = [maskUtils.encode(mask) for mask in masks]
    return Found(np.array(image_of), np.array(boxes, float), np.array(scores), np.array(labels), encoded), truth


@pytest.mark.parametrize("seed", range(5))
def test_mask_ap_equals_pycocotools(seed):
    found, truth = mask_case(seed)
    metrics = evaluate_masks(found, truth, CATEGORIES)
    expected, per_category = pycocotools_mask_metrics(found, truth)
    np.testing.assert_array_equal(metrics[:6], expected)
    np.testing.assert_array_equal([metrics.per_category[name] for name in "abc"], per_category)
    assert math.isnan(metrics.per_category["d"]) and 0.1 < metrics.ap < 1
    assert metrics.ap != evaluate(found, truth, CATEGORIES).ap


def pycocotools_mask_metrics(found: Found, truth: GroundTruth):
    annotations = [
        {
            "id": i + 1,
            "image_id": int(truth.image_of[i]),
            "category_id": int(truth.labels[i]),
            "segmentation": truth.masks[i],
            "bbox": xywh(truth.boxes)[i].tolist(),
            "area": float(truth.area[i]),
            "iscrowd": int(truth.crowd[i]),
        }
        for i in range(len(truth.labels))
    ]
    results = [
        {"image_id": int(i), "category_id": int(c), "score": float(s), "segmentation": m}
        for i, c, s, m in zip(found.image_of, found.labels, found.scores, found.masks, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [{"id": int(i), "height": 120, "width": 160} for i in truth.image_ids],
            "categories": [{"id": label, "name": name} for label, name in enumerate(CATEGORIES)],
            "annotations": annotations,
        }
        reference.createIndex()
        evaluator = COCOeval(reference, reference.loadRes(results), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :3, 0, 2]
    defined = np.where(evaluator.stats[:6] < 0, np.nan, evaluator.stats[:6])
    return defined, [precision[:, :, label].mean() for label in range(3)]


def test_areas_that_are_not_annotated_are_those_of_what_is_scored():
    """A box of medium size with a small mask."""
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[8:48, 8:20] = 1
    runs = (maskUtils.encode(mask)["counts"],)
    one = Annotation(1, (64, 64), np.array([[8.0, 8, 48, 48]]), np.array([0]), masks=runs)
    truth = ground_truth([one])
    found = Found(truth.image_of, truth.boxes, np.ones(1), truth.labels, truth.masks)
    boxes, masks = evaluate(found, truth, ("thing",)), evaluate_masks(found, truth, ("thing",))
    assert (boxes.ap_medium, masks.ap_small) == pytest.approx((1, 1))
    assert math.isnan(boxes.ap_small) and math.isnan(masks.ap_medium)
    annotated = ground_truth([one._replace(area=np.array([40.0 * 40]))])
    assert evaluate_masks(found, annotated, ("thing",)).ap_medium == pytest.approx(1)


def test_masks_are_needed_on_both_sides():
    found, truth = mask_case(0)
    with pytest.raises(ValueError, match="The detections have not a mask for each object"):
        evaluate_masks(found._replace(masks=None), truth, CATEGORIES)
    with pytest.raises(ValueError, match="The ground truth have not a mask.*mask_stride"):
        evaluate_masks(found, truth._replace(masks=found.masks[:3]), CATEGORIES)


def test_annotated_masks_found_as_they_are_score_one_and_crowds_do_not_count(test_data):
    references = test_data / "eval_refs"
    reference = json.loads((references / "instances_val2014_100_gt.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in reference["images"]}
    index = {category["id"]: label for label, category in enumerate(reference["categories"])}
    objects = reference["annotations"]
    masks = [
        {
            "size": sizes[o["image_id"]],
            "counts": run_lengths(json.dumps(o["segmentation"]).encode(), sizes[o["image_id"]]),
        }
        for o in objects
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO(str(references / "instances_val2014_100_gt.json"))
    for row, mask in zip(objects, masks, strict=True):
        counts = oracle.annToRLE(row)["counts"]
        assert mask["counts"] == (counts.encode() if isinstance(counts, str) else counts)
    image_of = np.array([o["image_id"] for o in objects])
    labels = np.array([index[o["category_id"]] for o in objects])
    corners = np.array([o["bbox"] for o in objects])
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    crowd = np.array([o["iscrowd"] for o in objects], bool)
    area = np.array([o["area"] for o in objects])
    truth = GroundTruth(np.array(list(sizes)), image_of, boxes, labels, area, crowd, masks=masks)
    names = [str(label) for label in range(80)]
    found = Found(image_of, boxes, np.ones(len(labels)), labels, masks)
    assert evaluate_masks(found, truth, names).ap == pytest.approx(1.0)
    own = np.flatnonzero(~crowd)
    fewer = Found(*(column[own] for column in found[:4]), masks=[masks[i] for i in own])
    assert evaluate_masks(fewer, truth, names).ap == pytest.approx(1.0)
    assert evaluate_masks(fewer, truth._replace(crowd=np.zeros(len(labels), bool)), names).ap < 0.999


# --- Pascal VOC ---


def voc_case(detections, objects, difficult=()):
    """Detections are (image, score, x1 of a box 10 wide and high), objects (image, x1); all of one category."""
    rows = np.array(detections, float).reshape(-1, 3)
    found = Found(rows[:, 0].astype(int), _squares(rows[:, 2]), rows[:, 1], np.zeros(len(rows), int))
    rows = np.array(objects, float).reshape(-1, 2)
    flags = np.isin(np.arange(len(rows)), difficult)
    zeros = np.zeros(len(rows), int)
    images = np.array([1, 2])
    truth = GroundTruth(images, rows[:, 0].astype(int), _squares(rows[:, 1]), zeros, zeros, zeros > 0, flags)
    return evaluate_voc(found, truth, ["thing"])


def _squares(x1):
    return np.stack([x1, np.zeros_like(x1), x1 + 10, np.full_like(x1, 10.0)], axis=-1)


def test_voc_of_a_curve_worked_by_hand():
    """Right, wrong, right of 4 objects: precision 1 to recall 1/4, 2/3 to recall 1/2, then nothing."""
    metrics = voc_case([(1, 0.9, 0), (1, 0.8, 500), (1, 0.7, 20)], [(1, 0), (1, 20), (2, 0), (2, 20)])
    assert metrics.map_area == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert metrics.map_07 == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)  # recalls 0, .1, .2 and .3, .4, .5


def test_voc_finds_an_object_once():
    assert voc_case([(1, 0.9, 0), (1, 0.8, 1)], [(1, 0), (1, 50)]).map_area == pytest.approx(0.5)
    # The second overlaps the first object most, which is taken: it is wrong though another one is near enough.
    twice = voc_case([(1, 0.9, 0), (1, 0.8, 1), (1, 0.7, 3)], [(1, 0), (1, 3)])
    assert twice.map_area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize(("x1", "ap"), [(10 / 3 - 1e-6, 1.0), (10 / 3 + 1e-6, 0.0)])
def test_voc_threshold_is_an_iou_of_one_half(x1, ap):
    assert voc_case([(1, 0.9, x1)], [(1, 0)]).map_area == ap


def test_voc_difficult_objects_are_neither_found_nor_missed():
    assert voc_case([(1, 0.9, 0)], [(1, 0), (1, 50)], difficult=[1]).map_area == 1.0
    with_difficult = voc_case([(1, 0.95, 50), (1, 0.94, 50), (1, 0.9, 0)], [(1, 0), (1, 50)], difficult=[1])
    assert with_difficult.map_area == 1.0
    assert voc_case([(1, 0.95, 50), (1, 0.9, 0)], [(1, 0)]).map_area == 0.5
    assert math.isnan(voc_case([(1, 0.9, 0)], [(1, 0)], difficult=[0]).map_07)


def test_voc_detections_on_other_images_and_categories_do_not_match():
    assert voc_case([(2, 0.9, 0)], [(1, 0)]).map_area == 0.0
    assert voc_case([], [(1, 0)]).map_area == 0.0
    found, truth = random_case(3)
    metrics = evaluate_voc(found, truth, CATEGORIES)
    shifted = evaluate_voc(found._replace(labels=(found.labels + 1) % 3), truth, CATEGORIES)
    assert shifted.map_area < 0.5 * metrics.map_area
    assert metrics.map_area == pytest.approx(np.mean([metrics.per_category_area[name] for name in "abc"]))
    assert math.isnan(metrics.per_category_area["d"])


def test_voc_curves():
    recall, precision = np.array([0.2, 0.2, 0.4, 1.0]), np.array([1.0, 0.5, 2 / 3, 0.75])
    assert area_ap(recall, precision) == pytest.approx(0.2 * 1 + 0.8 * 0.75)
    assert eleven_point_ap(recall, precision) == pytest.approx((3 * 1 + 8 * 0.75) / 11)
