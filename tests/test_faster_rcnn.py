"""Faster R-CNN's two stages and the single-image operations behind them: what is sampled, masked and reported."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from micro import library_losses

from detectors.models.faster_rcnn import FasterRCNN, faster_rcnn_tiny
from detectors.models.fpn import _upsampled
from detectors.models.roi_head import SampledRoIs
from detectors.models.rpn import RPN
from detectors.ops import boxes as box_ops
from detectors.ops.anchors import pyramid_anchors
from detectors.ops.matching import match
from detectors.ops.nms import nms, select_detections
from detectors.ops.padding import Extent, Pyramid
from detectors.ops.roi_align import roi_align
from detectors.ops.sampling import sample
from detectors.structures import Batch

SIZE = 64
CLASSES = 3


@functools.cache
def detector() -> FasterRCNN:
    return FasterRCNN(faster_rcnn_tiny(CLASSES), rngs=nnx.Rngs(0))


@functools.cache
def outputs():
    """The jitted first stage: anchors' logits and offsets, proposals, and the RPN's losses."""
    graph, state = nnx.split(detector())

    @jax.jit
    def run(batch, keys):
        model = nnx.merge(graph, state)
        features = model.features(batch.image, batch.image_size)
        anchors, logits, deltas = model.rpn(features.levels, batch.image.shape[1:3])
        proposals, real = model.rpn.propose(anchors, logits, deltas, batch.image_size, count=60, per_level=100)
        return proposals, real, model.rpn.loss(anchors, logits, deltas, batch, keys)

    return run


def random_boxes(rng, n, extent=50.0, least=6.0, most=30.0):
    corner = rng.uniform(0.0, extent, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(least, most, (n, 2))], -1).astype(np.float32)


def batch_of(seed=0, *, boxes=3, size=(SIZE, SIZE), images=2) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        image=rng.normal(size=(images, SIZE, SIZE, 3)).astype(np.float32),
        image_size=np.tile(np.float32(size), (images, 1)),
        boxes=np.stack([random_boxes(rng, 5, 30.0) for _ in range(images)]),
        labels=rng.integers(0, CLASSES, (images, 5)).astype(np.int32),
        valid=np.tile(np.arange(5) < boxes, (images, 1)),
        image_id=np.arange(images, dtype=np.int32),
        real=np.ones(images, bool),
    )


def keys_of(images=2, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(images))


# First stage


@pytest.mark.slow
def test_proposals_stay_inside_the_image_itself():
    proposals, real, _ = outputs()(batch_of(size=(20.0, 30.0)), keys_of())
    inside = np.asarray(proposals)[np.asarray(real)]
    assert len(inside) and (inside >= 0.0).all()
    assert (inside[:, 2] <= 30.0).all() and (inside[:, 3] <= 20.0).all()
    assert (box_ops.area(inside) > 0.0).all()


def test_anchors_in_the_padding_propose_nothing():
    """Even with the best scores, and offsets that move their boxes into the image."""
    model = detector()
    anchors = pyramid_anchors((SIZE, SIZE), model.strides, scale=3.0, ratios=(1.0, 1.6))
    padding = (anchors.centre >= 32.0).any(1)
    logits = np.where(padding, 9.0, -9.0)[None].astype(np.float32)
    target = np.where(padding[:, None], np.float32([2.0, 2.0, 12.0, 12.0]), np.float32([15.0, 15.0, 25.0, 25.0]))
    deltas = box_ops.encode_deltas(anchors.boxes, target, (1.0,) * 4)[None]
    boxes, real = model.rpn.propose(anchors, logits, deltas, jnp.float32([[30.0, 30.0]]), count=60, per_level=100)
    np.testing.assert_allclose(boxes[0][real[0]], np.tile([15.0, 15.0, 25.0, 25.0], (2, 1)), atol=1e-3)


def test_truth_beyond_the_image_gives_no_positive_anchor():
    """Anchors in the padding are neither positive nor negative, so a box that only they overlap teaches nothing."""
    batch = batch_of(boxes=1, size=(32.0, 32.0))
    far = np.broadcast_to(np.float32([38.0, 38.0, 62.0, 62.0]), batch.boxes.shape)
    _, _, (cls, box) = outputs()(batch._replace(boxes=far), keys_of())
    assert box == 0.0 and np.isfinite(cls)


def test_the_sampling_key_alone_decides():
    batch = batch_of()
    once, again, other = (float(outputs()(batch, keys_of(seed=seed))[2][0]) for seed in (0, 0, 1))
    assert once == again != other


def test_every_image_has_its_own_key(monkeypatch):
    class Reached(Exception):
        pass

    def spy(self, anchors, logits, deltas, batch, keys):
        raise Reached(jax.random.key_data(keys))

    monkeypatch.setattr(RPN, "loss", spy)
    with pytest.raises(Reached) as reached:
        detector().loss(batch_of(images=3), library_losses(FasterRCNN), key=jax.random.key(0))
    assert len({tuple(key) for key in np.asarray(reached.value.args[0])}) == 3


# Second stage


def sampled(batch, key=0, proposals=40):
    rng = np.random.default_rng(9)
    boxes = np.stack([random_boxes(rng, proposals) for _ in range(len(batch.boxes))])
    real = np.tile(np.arange(proposals) < proposals - 5, (len(batch.boxes), 1))
    return boxes, [np.asarray(a) for a in jax.vmap(detector()._sample)(boxes, real, batch, keys_of(seed=key))]


def test_background_has_the_last_label_and_truth_is_among_the_rois():
    batch = batch_of()
    proposals, (rois, labels, positive, valid, targets, matched) = sampled(batch)
    assert (labels[~positive] == CLASSES).all() and (labels[positive] < CLASSES).all()
    assert positive.any(1).all() and valid[positive].all()
    np.testing.assert_array_equal(np.take_along_axis(batch.labels, matched, 1)[positive], labels[positive])
    for image, truth in enumerate(batch.boxes):
        chosen, target = rois[image, positive[image]], targets[image, positive[image]]
        assert (box_ops.iou(chosen, target) >= 0.5).all()
        background = rois[image, valid[image] & ~positive[image]]
        assert (box_ops.pairwise_iou(background, truth[:3]).max(1) < 0.5).all()
        allowed = {tuple(box) for box in np.concatenate([truth[:3], proposals[image, :-5]])}
        assert {tuple(box) for box in rois[image, valid[image]]} <= allowed
        assert {tuple(box) for box in truth[:3]} <= {tuple(box) for box in chosen}


def test_images_are_sampled_independently():
    """The same image twice in a batch draws differently; what another image holds changes nothing."""
    twice = jax.tree.map(lambda a: np.repeat(a[:1], 2, axis=0), batch_of())
    many = np.tile(random_boxes(np.random.default_rng(1), 200), (2, 1, 1))
    draw = jax.vmap(detector()._sample)
    first, second = np.asarray(draw(many, np.ones((2, 200), bool), twice, keys_of())[0])
    assert (first != second).any()
    emptied = twice._replace(valid=np.stack([twice.valid[0], np.zeros(5, bool)]))
    np.testing.assert_array_equal(draw(many, np.ones((2, 200), bool), emptied, keys_of())[0][0], first)


def roi_loss(batch, change=None):
    _, parts = sampled(batch)
    rng = np.random.default_rng(4)
    levels = [jnp.float32(rng.normal(size=(2, SIZE // s, SIZE // s, 48))) for s in (8, 16)]
    extent = Extent.of(jnp.full((2, 2), float(SIZE)))
    features = Pyramid(levels, [extent.strided(s) for s in (8, 16)])
    losses = library_losses(FasterRCNN)
    return detector()._roi_loss(features, losses, SampledRoIs(*map(jnp.asarray, change(*parts) if change else parts)))


def test_padded_rois_have_no_influence():
    def pad(rois, labels, positive, valid, targets, truth, at=(3.0, 3.0, 50.0, 50.0)):
        valid = valid & (np.arange(valid.shape[1]) < 20)
        positive = positive & valid
        fill = np.float32(at)
        rois, targets = (np.where(valid[..., None], boxes, fill) for boxes in (rois, targets))
        return rois, labels, positive, valid, targets, truth

    here = roi_loss(batch_of(), pad)
    there = roi_loss(batch_of(), functools.partial(pad, at=(0.0, 0.0, 1.0, 1.0)))
    np.testing.assert_allclose(here, there, rtol=1e-5)


def test_the_class_loss_sees_the_iou_of_positives_and_1_elsewhere(monkeypatch):
    seen = {}

    def spy(loss, *, logits, labels, iou):
        seen.update(labels=labels, iou=iou)
        return jnp.zeros(len(iou))

    monkeypatch.setattr("detectors.models.roi_head.multi_class_loss", spy)
    roi_loss(batch_of())
    background = np.asarray(seen["labels"])[:, -1] == 1.0
    iou = np.asarray(seen["iou"])
    assert (iou[background] == 1.0).all() and ((iou[~background] > 0.0) & (iou[~background] < 1.0)).all()


@pytest.mark.slow
def test_overflow_of_the_final_selection_is_reported():
    """Every pair over the threshold that did not enter suppression is counted."""
    config = dataclasses.replace(faster_rcnn_tiny(CLASSES), score_threshold=0.0)
    batch = batch_of(images=1)
    counts = {}
    for limit in (30, 500):
        model = FasterRCNN(dataclasses.replace(config, max_candidates=limit), rngs=nnx.Rngs(0))
        _, overflow = jax.jit(model.detect)(batch.image, batch.image_size)
        counts[limit] = np.asarray(overflow)
    assert counts[500] == [0] and counts[30] > [0]


# Operations


def test_matching_keeps_every_low_quality_match_under_jit():
    """The comparison with a truth's best IoU must see bit-equal values, also where XLA computes IoU twice."""
    rng = np.random.default_rng(0)
    options = dict(positive_iou=0.7, negative_iou=0.3, low_quality_iou=0.01)
    run = jax.jit(jax.vmap(lambda a, t: match(a, jnp.ones(1500, bool), t, jnp.ones(12, bool), **options)))
    anchors, truth = (np.stack([random_boxes(rng, n, 90.0, 2.0, 40.0) for _ in range(4)]) for n in (1500, 12))
    ours = run(anchors, truth)
    for k in range(4):
        iou = np.asarray(box_ops.pairwise_iou(anchors[k], truth[k]))
        assert np.asarray(ours.positive)[k, iou.argmax(0)[iou.max(0) >= 0.01]].all()


@pytest.mark.parametrize(("count", "fraction", "most"), [(2, 0.25, 0), (8, 0.0, 0), (3, 0.5, 1), (8, 1.0, 8)])
def test_sampling_with_small_quotas(count, fraction, most):
    positive, negative = np.arange(40) < 20, np.arange(40) >= 20
    ours = sample(jax.random.key(0), positive, negative, count=count, fraction=fraction)
    assert ours.positive.sum() == most and ours.valid.all()
    index = np.asarray(ours.index)
    assert positive[index[:most]].all() and negative[index[most:]].all()


def test_classes_are_suppressed_exactly_alike():
    """The last of 80 classes on a large image keeps what the first keeps: no rounding by an offset per class."""
    # IoU 0.50035; moved by 161,000 pixels, where float32 steps by 1/64, it would round to 0.5 and not suppress.
    boxes = np.float32([[1000.0, 700.0, 1020.0, 710.0], [1000.0, 700.0, 1010.007, 710.0]])
    for label in (0, 79):
        scores = np.zeros((2, 80), np.float32)
        scores[:, label] = [0.9, 0.8]
        options = dict(score_threshold=0.05, iou_threshold=0.5, max_candidates=10, max_detections=5)
        detections, _ = select_detections(boxes, scores, np.ones(2, bool), **options)
        assert detections.valid.sum() == 1, label


def test_groups_suppress_as_if_apart():
    rng = np.random.default_rng(0)
    run = jax.jit(functools.partial(nms, iou_threshold=0.4))
    for _ in range(20):
        boxes, scores = random_boxes(rng, 60), rng.uniform(size=60).astype(np.float32)
        group, valid = rng.integers(0, 4, 60).astype(np.int32), rng.random(60) < 0.8
        together = np.asarray(run(boxes, scores, valid, group=group))
        for g in range(4):
            alone = run(boxes, scores, valid & (group == g))
            np.testing.assert_array_equal(together & (group == g), alone)


@pytest.mark.slow
def test_roi_align_as_a_product_is_the_same():
    """Value and gradient, with RoIs across the borders, outside, and without area."""
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, n + 2, 7)).astype(np.float32) for n in (12, 6)]
    corner = rng.uniform(-20.0, 100.0, (40, 2))
    rois = np.concatenate([corner, corner + rng.uniform(0.0, 60.0, (40, 2))], -1).astype(np.float32)
    rois[:3, 2:] = rois[:3, :2]
    level, cotangent = rng.integers(0, 2, 40).astype(np.int32), rng.normal(size=(40, 5, 5, 7)).astype(np.float32)

    def pool(features, rois, as_product):
        return roi_align(features, rois, level, strides=(8, 16), size=5, as_product=as_product)

    gathered, product = (jax.vjp(functools.partial(pool, as_product=p), features, rois) for p in (False, True))
    np.testing.assert_allclose(product[0], gathered[0], atol=1e-5)
    pulled = (jax.tree.leaves(pull(cotangent)) for _, pull in (product, gathered))
    for ours, expected in zip(*pulled, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_the_gradient_of_roi_align_is_summed_in_float32():
    """300 RoIs on one cell: sums in bfloat16 would stand still at 256."""
    rois, level = np.tile(np.float32([12, 12, 20, 20]), (300, 1)), np.zeros(300, np.int32)
    features = [jnp.ones((8, 8, 1), jnp.bfloat16)]
    (gradient,) = jax.grad(lambda f: roi_align(f, rois, level, strides=(4,), size=1).sum(dtype=jnp.float32))(features)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(np.float32).sum(), 300, rtol=1e-2)


def test_the_values_of_roi_align_are_rounded_to_bfloat16_once():
    rng = np.random.default_rng(0)
    feature = jnp.asarray(rng.normal(2.0, 1.0, (16, 16, 8)), jnp.bfloat16)
    corner = rng.uniform(0.0, 30.0, (20, 2))
    rois = np.concatenate([corner, corner + rng.uniform(5.0, 30.0, (20, 2))], -1).astype(np.float32)
    ours, exact = (
        roi_align([f], rois, np.zeros(20, np.int32), strides=(4,), size=3)
        for f in (feature, feature.astype(np.float32))
    )
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))


def test_coarse_maps_are_laid_over_finer_ones_as_the_nearest_cell():
    """Value and gradient, of a finer map that is twice as large, and of one whose last row and column are half."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    double, pull = jax.vjp(lambda x: _upsampled(x, (6, 8)), x)
    expected, expected_pull = jax.vjp(lambda x: jax.image.resize(x, (2, 6, 8, 5), "nearest"), x)
    np.testing.assert_array_equal(double, expected)
    np.testing.assert_allclose(pull(double)[0], expected_pull(double)[0], atol=1e-6)
    np.testing.assert_array_equal(_upsampled(jnp.asarray(x), (5, 7)), double[:, :5, :7])


@pytest.mark.slow
def test_roi_align_is_linear_and_its_gradient_conserves_weight():
    """Pooling is a matrix in the features: its transpose is the gradient, also at borders and for empty RoIs."""
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, n, 2)).astype(np.float32) for n in (12, 6)]
    rois = np.float32([[5, 5, 20, 30], [-9, -9, 12, 12], [40, 40, 60, 60], [7, 7, 7, 7], [-80, -80, -60, -60]])
    level = np.int32([0, 1, 0, 1, 0])

    def pool(features):
        return roi_align(features, rois, level, strides=(4, 8), size=3)

    value, pull = jax.vjp(pool, features)
    cotangent = rng.normal(size=value.shape).astype(np.float32)
    (gradient,) = pull(cotangent)
    paired = sum((g * f).sum() for g, f in zip(gradient, features, strict=True))
    np.testing.assert_allclose(paired, (np.asarray(value) * cotangent).sum(), rtol=1e-4)
    alone = jax.grad(lambda f: roi_align(f, rois[:1], level[:1], strides=(4, 8), size=3).sum())(features)
    np.testing.assert_allclose(alone[0].sum(), 3 * 3 * 2, rtol=1e-5)
    assert not np.asarray(pool(features))[4].any()
