"""Single-image operations against plain NumPy and against published reference numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detectors.ops import boxes as box_ops
from detectors.ops.anchors import pyramid_anchors
from detectors.ops.matching import match
from detectors.ops.nms import nms, select_detections
from detectors.ops.padding import inside_padded_image
from detectors.ops.points import assign_points, pyramid_points
from detectors.ops.roi_align import roi_align, roi_levels
from detectors.ops.sampling import sample


@pytest.fixture(scope="module")
def references(test_data):
    return json.loads((test_data / "eval_refs" / "unit_refs.json").read_text())


def reference(references, beginning):
    return next(value for name, value in references.items() if name.startswith(beginning))


def random_boxes(rng, n, extent=60.0):
    corner = rng.uniform(0.0, extent, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(0.5, extent / 2, (n, 2))], -1).astype(np.float32)


def iou_in_numpy(a, b):
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inner = np.clip(high - low, 0.0, None).prod(-1)
    return inner / ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner)


# Boxes


def test_pairwise_iou_equals_numpy():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 20), random_boxes(rng, 15)
    np.testing.assert_allclose(box_ops.pairwise_iou(a, b), iou_in_numpy(a[:, None], b), rtol=1e-5, atol=1e-6)


def test_overlap_gives_published_giou(references):
    values = reference(references, "giou")
    i, u, e = box_ops.overlap(jnp.float32(values["a"]), jnp.float32(values["b"]))
    np.testing.assert_allclose(i / u - (e - u) / e, values["giou"], atol=1e-4)


def test_empty_boxes_have_no_overlap():
    empty, full = jnp.array([3.0, 3.0, 3.0, 9.0]), jnp.array([0.0, 0.0, 9.0, 9.0])
    assert box_ops.area(empty) == 0.0
    assert box_ops.iou(empty, full) == 0.0 and box_ops.iou(empty, empty) == 0.0
    gradient = jax.grad(lambda b: box_ops.iou(b, empty))(empty)
    assert np.isfinite(gradient).all()


def test_decoding_gives_published_boxes(references):
    values = reference(references, "delta_xywh")
    decoded = box_ops.decode_deltas(jnp.float32(values["rois"]), jnp.float32(values["deltas"]), (1.0,) * 4)
    np.testing.assert_allclose(box_ops.clip(decoded, jnp.array([32.0, 32.0])), values["boxes"], atol=1e-4)


def test_encodings_are_inverse():
    rng = np.random.default_rng(1)
    anchors, boxes = random_boxes(rng, 50), random_boxes(rng, 50)
    stds = (0.1, 0.1, 0.2, 0.2)
    deltas = box_ops.encode_deltas(anchors, boxes, stds)
    np.testing.assert_allclose(box_ops.decode_deltas(anchors, deltas, stds), boxes, rtol=1e-4, atol=1e-3)
    points = rng.uniform(0.0, 60.0, (50, 2)).astype(np.float32)
    distances = box_ops.encode_ltrb(points, boxes)
    np.testing.assert_allclose(box_ops.decode_ltrb(points, distances), boxes, atol=1e-4)


def test_decoding_clamps_the_size():
    grown = box_ops.decode_deltas(jnp.array([0.0, 0.0, 16.0, 16.0]), jnp.array([0.0, 0.0, 99.0, 99.0]), (1.0,) * 4)
    np.testing.assert_allclose(grown[2:] - grown[:2], 1000.0, rtol=1e-5)


# Suppression


def greedy(ious, scores, valid, threshold):
    keep = np.zeros(len(scores), bool)
    for k in np.argsort(-scores, kind="stable"):
        if valid[k] and (ious[k, keep] <= threshold).all():
            keep[k] = True
    return keep


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.45, 0.5, 0.7, 0.95])
def test_nms_equals_greedy(threshold):
    rng = np.random.default_rng(int(threshold * 100))
    run = jax.jit(lambda *arguments: nms(*arguments, iou_threshold=threshold))
    for trial in range(25):
        boxes = random_boxes(rng, 60, extent=40.0)
        scores = rng.uniform(size=60).astype(np.float32)
        if trial % 3 == 0:
            scores = np.round(scores, 1)  # ties
        valid = rng.random(60) < 0.8
        # Away from the threshold by more than float32 rounding, or NumPy and JAX may differ on a pair.
        ious = iou_in_numpy(boxes[:, None], boxes)
        assert threshold == 0.0 or np.abs(ious - threshold)[~np.eye(60, dtype=bool)].min() > 1e-7
        np.testing.assert_array_equal(run(boxes, scores, valid), greedy(ious, scores, valid, threshold))


def test_nms_gives_published_result(references):
    values = reference(references, "nms")
    scores = np.float32(values["scores"])
    keep = nms(jnp.float32(values["boxes"]), scores, np.ones(4, bool), iou_threshold=0.3)
    assert sorted(np.nonzero(keep)[0].tolist(), key=lambda k: -scores[k]) == values["keep"]


def test_nms_settles_long_chains():
    """Each box suppresses only the next one: greedy keeps every other one, and that needs many rounds."""
    left = np.arange(200, dtype=np.float32) * 4.0
    boxes = np.stack([left, np.zeros(200), left + 10.0, np.full(200, 10.0)], -1).astype(np.float32)
    scores = np.linspace(1.0, 0.5, 200).astype(np.float32)
    keep = np.asarray(nms(boxes, scores, np.ones(200, bool), iou_threshold=0.4))
    np.testing.assert_array_equal(keep, np.arange(200) % 2 == 0)


def select(boxes, scores, **changes):
    options = dict(score_threshold=0.1, iou_threshold=0.5, max_candidates=50, max_detections=10) | changes
    return select_detections(boxes, scores, np.ones(len(scores), bool), **options)


def test_classes_do_not_suppress_each_other():
    box = np.array([[0.0, 0.0, 10.0, 10.0]], np.float32)
    detections, overflow = select(np.repeat(box, 3, 0), np.float32([[0.9, 0.8], [0.7, 0.05], [0.2, 0.6]]))
    assert detections.valid.sum() == 2 and overflow == 0
    np.testing.assert_allclose(detections.scores[:3], [0.9, 0.8, 0.0])
    np.testing.assert_array_equal(detections.labels[:2], [0, 1])


def test_selection_reports_what_did_not_fit_and_pads():
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 30, extent=500.0)
    scores = rng.uniform(0.2, 1.0, (30, 4)).astype(np.float32)
    detections, overflow = select(boxes, scores, max_candidates=20)
    assert overflow == 120 - 20
    assert detections.boxes.shape == (10, 4)
    few, _ = select(boxes[:2], scores[:2, :1])
    assert few.boxes.shape == (10, 4) and few.valid.sum() == 2 and not few.valid[2:].any()


def test_selection_without_candidates_is_empty():
    detections, _ = select(np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32))
    assert not detections.valid.any() and np.isfinite(detections.boxes).all()


# RoIAlign


def roi_align_in_numpy(feature, roi, stride, size, samples=2):
    height, width, channels = feature.shape
    x1, y1, x2, y2 = roi / stride - 0.5
    result = np.zeros((size, size, channels))
    for row in range(size):
        for column in range(size):
            for a in range(samples):
                for b in range(samples):
                    y = y1 + (y2 - y1) * (row + (a + 0.5) / samples) / size
                    x = x1 + (x2 - x1) * (column + (b + 0.5) / samples) / size
                    if -1.0 <= y <= height and -1.0 <= x <= width:
                        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
                        top, left = int(y), int(x)
                        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                        fy, fx = y - top, x - left
                        result[row, column] += (
                            feature[top, left] * (1 - fy) * (1 - fx)
                            + feature[top, right] * (1 - fy) * fx
                            + feature[bottom, left] * fy * (1 - fx)
                            + feature[bottom, right] * fy * fx
                        )
    return result / samples**2


def test_roi_align_equals_numpy_on_a_pyramid():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, n + 3, 5)).astype(np.float32) for n in (16, 8)]
    rois = random_boxes(rng, 20, extent=64.0)
    rois[:5] += [-20.0, -30.0, 15.0, 20.0]  # across the borders
    rois[5] = [10.0, 10.0, 10.0, 10.0]
    rois[6] = [-90.0, -90.0, -60.0, -70.0]
    level = (np.arange(20) % 2).astype(np.int32)
    ours = roi_align(features, rois, level, strides=(4, 8), size=3)
    expected = [roi_align_in_numpy(features[k], roi, (4, 8)[k], 3) for roi, k in zip(rois, level, strict=True)]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_roi_align_gives_published_values_and_gradients(references):
    for case in reference(references, "roi_align (mmcv"):
        feature = jnp.float32(case["x"])[..., None]

        def pooled(feature):
            return roi_align([feature], jnp.float32([case["roi"]]), jnp.zeros(1, jnp.int32), strides=(1,), size=2)[
                0, :, :, 0
            ]

        np.testing.assert_allclose(pooled(feature), case["y"], atol=1e-5)
        gradient = jax.grad(lambda f: pooled(f).sum())(feature)[..., 0]
        np.testing.assert_allclose(gradient, case["dx_for_ones"], atol=1e-5)


def test_roi_levels():
    sides = np.float32([10.0, 55.9, 56.1, 111.0, 113.0, 500.0, 0.0])
    rois = np.stack([np.zeros(7), np.zeros(7), sides, sides], -1)
    np.testing.assert_array_equal(roi_levels(rois, levels=4), [0, 0, 0, 0, 1, 3, 0])


# Anchors, matching, sampling


def test_anchors_are_the_published_ones(references):
    values = reference(references, "anchors")["offset0"]
    ours = [pyramid_anchors((4, 8), (4,), scale=side / 4, ratios=(0.25, 1.0, 4.0)).boxes for side in (32, 64)]
    by_place = np.concatenate([level.reshape(2, 3, 4) for level in ours], 1).reshape(-1, 4)
    np.testing.assert_allclose(by_place, values, atol=1e-4)


def truth_with_iou(quality):
    """Boxes and ground truth can't have arbitrary IoU: replaces the IoU table in ``match`` by a given one."""
    return jnp.float32(quality).T


def test_matching_gives_published_result(references, monkeypatch):
    values = reference(references, "matcher")
    monkeypatch.setattr(box_ops, "pairwise_iou", lambda a, b: truth_with_iou(values["quality"]))
    boxes = jnp.zeros((4, 4))
    ours = match(
        boxes, jnp.ones(4, bool), boxes[:3], jnp.ones(3, bool), positive_iou=0.7, negative_iou=0.3, low_quality_iou=0.0
    )
    labels = np.where(ours.positive, 1, np.where(ours.negative, 0, -1))
    np.testing.assert_array_equal(labels, values["labels"])
    # Detectron2 leaves a low-quality match with the box's own best; ours goes to the ground truth, as in MMDetection.
    np.testing.assert_array_equal(np.asarray(ours.target)[np.asarray(ours.positive)], [2, 2])


def test_assignment_gives_published_result(references):
    values = reference(references, "max_iou_assigner")
    ours = match(
        jnp.float32(values["priors"]),
        jnp.ones(4, bool),
        jnp.float32(values["gt"]),
        jnp.ones(2, bool),
        positive_iou=0.5,
        negative_iou=0.5,
        low_quality_iou=0.0,
    )
    indices = np.where(ours.positive, ours.target + 1, 0)
    assert indices[0] == 1 and indices[2] == 2 and indices[1] == 0


def test_low_quality_matches_include_ties_and_need_overlap():
    anchors = jnp.float32([[0, 0, 4, 4], [4, 0, 8, 4], [20, 20, 24, 24]])
    truth = jnp.float32([[2, 0, 6, 4], [50, 50, 60, 60]])
    everything = (jnp.ones(3, bool), truth, jnp.ones(2, bool))
    ours = match(anchors, *everything, positive_iou=0.7, negative_iou=0.3, low_quality_iou=0.1)
    np.testing.assert_array_equal(ours.positive, [True, True, False])
    np.testing.assert_array_equal(ours.target[:2], [0, 0])
    strict = match(anchors, *everything, positive_iou=0.7, negative_iou=0.3, low_quality_iou=0.5)
    assert not strict.positive.any() and strict.negative[2]


def test_matching_ignores_padding():
    rng = np.random.default_rng(0)
    anchors, truth = random_boxes(rng, 30), random_boxes(rng, 4)
    valid, usable = np.array([True, False, True, False]), rng.random(30) < 0.7
    options = dict(positive_iou=0.3, negative_iou=0.2, low_quality_iou=0.1)
    ours = match(anchors, usable, truth, valid, **options)
    moved = match(anchors, usable, np.where(valid[:, None], truth, 1e3), valid, **options)
    jax.tree.map(np.testing.assert_array_equal, ours, moved)
    assert not (ours.positive | ours.negative)[~usable].any()
    none = match(anchors, usable, truth, np.zeros(4, bool), **options)
    assert not none.positive.any() and none.negative[usable].all()


def test_sampling_counts_and_kinds():
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.2
    negative = ~positive & (rng.random(200) < 0.7)
    for available, expected in ((positive, 16), (positive & (np.cumsum(positive) <= 5), 5), (positive & False, 0)):
        ours = sample(jax.random.key(1), available, negative, count=32, fraction=0.5)
        assert ours.positive.sum() == expected and ours.valid.all()
        index = np.asarray(ours.index)
        assert len(set(index.tolist())) == 32
        assert available[index[:expected]].all() and negative[index[expected:]].all()
    few = sample(jax.random.key(1), positive & False, negative & (np.cumsum(negative) <= 3), count=32, fraction=0.5)
    assert few.valid.sum() == 3 and not few.positive.any()


def test_sampling_is_uniform_and_depends_on_the_key():
    positive, negative = np.arange(40) < 10, np.arange(40) >= 10
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.vmap(lambda key: sample(key, positive, negative, count=8, fraction=0.5))(keys)
    counts = np.bincount(np.asarray(drawn.index).reshape(-1), minlength=40)
    # 4 of 10 positives and 4 of 30 negatives per draw; 5 standard deviations of a binomial are 110 and 76.
    assert np.abs(counts[:10] - 800).max() < 110 and np.abs(counts[10:] - 2000 * 4 / 30).max() < 76
    first, again = (sample(jax.random.key(3), positive, negative, count=8, fraction=0.5).index for _ in range(2))
    np.testing.assert_array_equal(first, again)


# FCOS points


def assign_in_numpy(points, boxes, labels, valid, radius):
    chosen = []
    for (x, y), stride, (low, high) in zip(points.xy, points.stride, points.regress_range, strict=True):
        best, area = -1, np.inf
        for k, (x1, y1, x2, y2) in enumerate(boxes):
            if not valid[k] or x2 <= x1 or y2 <= y1:
                continue
            cx, cy, reach = (x1 + x2) / 2, (y1 + y2) / 2, radius * stride
            inside = max(cx - reach, x1) < x < min(cx + reach, x2) and max(cy - reach, y1) < y < min(cy + reach, y2)
            longest = max(x - x1, y - y1, x2 - x, y2 - y)
            if inside and low <= longest <= high and (x2 - x1) * (y2 - y1) < area:
                best, area = k, (x2 - x1) * (y2 - y1)
        chosen.append(best)
    return np.array(chosen)


@pytest.mark.slow
def test_point_assignment_equals_numpy():
    points = pyramid_points((64, 96), (8, 16), (20.0,))
    assert len(points.xy) == 8 * 12 + 4 * 6
    np.testing.assert_array_equal(points.xy[:2], [[4.0, 4.0], [12.0, 4.0]])
    everywhere = np.ones(len(points.xy), bool)
    run = jax.jit(lambda *truth: assign_points(points, *truth, everywhere, radius=1.5))
    rng = np.random.default_rng(0)
    for trial in range(30):
        boxes = random_boxes(rng, 6, extent=60.0)
        boxes[0] = [10.0, 10.0, 40.0, 40.0]
        boxes[1] = [20.0, 20.0, 30.0, 30.0]  # nested
        if trial % 2:
            boxes[2, 2:] = boxes[2, :2]  # without area
        labels = rng.integers(0, 9, 6).astype(np.int32)
        valid = rng.random(6) < (0.8 if trial else 0.0)
        expected = assign_in_numpy(points, boxes, labels, valid, 1.5)
        ours = run(boxes, labels, valid)
        np.testing.assert_array_equal(ours.positive, expected >= 0)
        taken = expected >= 0
        np.testing.assert_array_equal(np.asarray(ours.labels)[taken], labels[expected[taken]])
        np.testing.assert_array_equal(np.asarray(ours.boxes)[taken], boxes[expected[taken]])
        assert (box_ops.area(ours.boxes) > 0.0).all()


def test_points_in_the_padding_are_masked():
    points = pyramid_points((64, 96), (8, 16), (20.0,))
    inside = inside_padded_image(points.xy, jnp.float32([33.0, 60.0]))
    np.testing.assert_array_equal(inside, (points.xy[:, 0] < 64) & (points.xy[:, 1] < 64))
    boxes, one = jnp.float32([[70.0, 10.0, 90.0, 30.0]]), jnp.ones(1, bool)
    ours = assign_points(points, boxes, jnp.zeros(1, jnp.int32), one, inside, radius=1.5)
    assert not ours.positive.any()


def test_range_limits_must_fit_the_levels():
    with pytest.raises(ValueError, match="2 levels need 1 range limits, not 2"):
        pyramid_points((64, 64), (8, 16), (20.0, 40.0))
