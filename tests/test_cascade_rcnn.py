"""Cascade R-CNN: what a stage hands on, the losses of the stages, the mean of their logits, and learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from micro import library_losses

from benchmarks.smallest import FEATURES
from detectors.models import build_detector
from detectors.models.cascade_rcnn import CascadeRCNN, CascadeRCNNConfig, _handed_on, _refined, cascade_rcnn_tiny
from detectors.models.faster_rcnn import FasterRCNN
from detectors.models.roi_head import RoIConfig, SampledRoIs, sample_rois
from detectors.ops.boxes import encode_deltas
from detectors.structures import Batch

SIZE = 64
TINY = dataclasses.replace(cascade_rcnn_tiny(3), **FEATURES)
LOSSES = library_losses(CascadeRCNN)


def batch_of(boxes, size=(SIZE, SIZE)) -> Batch:
    truth = np.zeros((1, 3, 4), np.float32)
    truth[0, : len(boxes)] = np.float32(boxes).reshape(-1, 4)
    image = np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
    labels = np.int32([[0, 1, 2]])
    valid = np.arange(3)[None] < len(boxes)
    return Batch(image, np.float32([size]), truth, labels, valid, np.int32([1]), np.ones(1, bool))


@functools.cache
def parts_of(stages=3):
    config = TINY
    if stages == 1:
        config = dataclasses.replace(TINY, stage_ious=(0.5,), stage_stds=((0.1, 0.1, 0.2, 0.2),), stage_weights=(1.0,))
    return nnx.split(CascadeRCNN(config, rngs=nnx.Rngs(0)), nnx.Param, ...)


@functools.cache
def loss_and_gradient(stages=3):
    graph, _, rest = parts_of(stages)

    @jax.jit
    def run(params, batch):
        return jax.value_and_grad(
            lambda p: nnx.merge(graph, p, rest).loss(batch, LOSSES, key=jax.random.key(0)), has_aux=True
        )(params)

    return run


# What a stage hands on


def test_refined_boxes_equal_the_formula():
    rng = np.random.default_rng(1)
    rois = np.sort(rng.uniform(0, SIZE, (1, 6, 2, 2)), axis=2).reshape(1, 6, 4).astype(np.float32)
    deltas = rng.normal(size=(1, 6, 1, 4)).astype(np.float32)
    stds = (0.05, 0.05, 0.1, 0.1)
    found = _refined(RoIConfig(stds=stds), rois, deltas, np.float32([[40, 50]]))
    for roi, (dx, dy, dw, dh), box in zip(rois[0], deltas[0, :, 0] * stds, found[0], strict=True):
        w, h = roi[2] - roi[0], roi[3] - roi[1]
        x, y = roi[0] + w / 2 + dx * w, roi[1] + h / 2 + dy * h
        w, h = w * np.exp(dw), h * np.exp(dh)
        corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        np.testing.assert_allclose(box, np.clip(corners, 0, [50, 40, 50, 40]), atol=1e-3)


def test_ground_truth_and_padding_are_not_handed_on():
    rois = np.tile(np.float32([4, 4, 24, 24]), (1, 4, 1))
    yes = np.ones((1, 4), bool)
    valid = np.array([[True, True, True, False]])
    is_truth = np.array([[True, False, False, False]])
    sampled = SampledRoIs(rois, np.zeros((1, 4), np.int32), yes, valid, rois, np.zeros((1, 4), np.int32))
    still, away = [[0.0] * 4], [[-1e4, 0.0, 0.0, 0.0]]  # out of the image
    gone = np.float32([[still, still, away, still]])
    boxes, real = _handed_on(TINY.stages()[0], sampled, is_truth, gone, np.float32([[SIZE, SIZE]]))
    assert real.tolist() == [[False, True, False, False]]
    np.testing.assert_allclose(boxes[0, 1], [4, 4, 24, 24], atol=1e-5)
    assert np.isfinite(boxes).all()


@pytest.mark.parametrize("stage", range(3))
def test_a_later_stage_asks_for_more_overlap(stage):
    """RoIs with an IoU of .55, .65 and .75 with the only box; 16 wide, shifted."""
    truth = batch_of([[10, 10, 30, 30]])
    shifts = [20 * (1 - iou) / (1 + iou) for iou in (0.55, 0.65, 0.75)]
    rois = np.float32([[10 + s, 10, 30 + s, 30] for s in shifts])
    one = jax.tree.map(lambda a: a[0], truth)
    sampled, is_truth = sample_rois(TINY.stages()[stage], 3, rois, np.ones(3, bool), one, jax.random.key(0))
    positive = _rounded(sampled.boxes[sampled.positive & ~is_truth])
    assert positive == _rounded(rois[stage:])
    assert int(is_truth.sum()) == 1 and bool(sampled.positive[is_truth].all()), "the box itself is added"


def _rounded(boxes):
    return {tuple(box) for box in np.round(np.asarray(boxes), 2).tolist()}


# Losses


@pytest.mark.slow
@pytest.mark.parametrize("boxes", [[[5, 8, 40, 50], [30, 10, 60, 28]], [], [[20, 20, 20, 20]]])
def test_loss_and_gradient_are_finite(boxes):
    (total, parts), gradients = loss_and_gradient()(parts_of()[1], batch_of(boxes))
    assert np.isfinite(total) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    for name in ("cls", "box"):
        stages = [parts[f"{name}_{k}"] for k in (1, 2, 3)]
        np.testing.assert_allclose(parts[name], np.dot(stages, TINY.stage_weights), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(total, parts["rpn_cls"] + parts["rpn_box"] + parts["cls"] + parts["box"], rtol=1e-6)
    assert (parts["positives"] > 0) == (len(boxes) == 2)


def test_padding_of_boxes_has_no_influence():
    batch = batch_of([[5, 8, 40, 50]])
    other = batch._replace(boxes=batch.boxes + np.float32([[[0] * 4, [7, 7, 30, 30], [1, 1, 2, 2]]]))
    run = loss_and_gradient()
    assert run(parts_of()[1], batch)[0][0] == run(parts_of()[1], other)[0][0]


@pytest.mark.slow
def test_one_stage_is_faster_rcnn():
    """With one box for all classes, and RoIs drawn with the same keys."""
    graph, params, rest = parts_of(1)
    cascade = nnx.merge(graph, params, rest)
    faster = FasterRCNN(cascade.config, rngs=nnx.Rngs(1))
    for part in ("backbone", "fpn", "rpn"):
        setattr(faster, part, getattr(cascade, part))
    faster.roi = cascade.heads[0]
    batch = batch_of([[5, 8, 40, 50], [30, 10, 60, 28]])
    # All RoIs are drawn, so that the keys don't matter.
    every = dataclasses.replace(cascade.config.roi, samples=120, positive_fraction=1.0)
    faster.config = dataclasses.replace(cascade.config, roi=every)
    cascade.heads[0].config = every

    def both(model):
        def run(batch):
            return model.loss(batch, LOSSES, key=jax.random.key(0))[1], model.predict(batch.image, batch.image_size)

        return jax.jit(run)(batch)

    (ours, found), (theirs, expected) = both(cascade), both(faster)
    for name in ("loss", "cls", "box", "rpn_cls", "rpn_box", "positives"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


# Detections


@pytest.mark.slow
def test_scores_are_those_of_the_mean_of_the_logits():
    batch = batch_of([[5, 8, 40, 50]])
    rois = np.float32([[[4, 4, 30, 40], [10, 20, 50, 60]]])

    @jax.jit
    def run(parts):
        model = nnx.merge(graph, *parts)
        features = model.features(batch.image, batch.image_size)
        total, moved = 0.0, rois
        for head, config in zip(model.heads, TINY.stages(), strict=True):
            assert head.config == config
            stage, deltas = head(features, moved, model.strides)
            total, moved = total + stage, _refined(config, moved, deltas, batch.image_size)
        refined = model._refine(features, rois, batch.image_size)
        return refined, (total / 3, moved), model.predict(batch.image, batch.image_size)

    graph, *parts = parts_of()
    (logits, boxes), (mean, moved), found = run(parts)
    np.testing.assert_allclose(logits, mean, atol=1e-6)
    np.testing.assert_allclose(boxes[:, :, 0], moved, atol=1e-4)
    assert found.boxes.shape == (1, TINY.max_detections, 4)
    scores = np.asarray(found.scores[0])
    assert (np.diff(scores) <= 0).all() and (np.asarray(found.boxes) <= SIZE).all()


@pytest.mark.slow
def test_it_overfits_an_image():
    truth = [[5, 8, 40, 50], [30, 10, 60, 28]]
    batch, run = batch_of(truth), loss_and_gradient()
    graph, params, rest = parts_of()
    optimiser = optax.adam(2e-3)

    @jax.jit
    def step(params, state):
        (total, _), gradients = run(params, batch)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(params, updates), state, total

    state = optimiser.init(params)
    for _ in range(150):
        params, state, _ = step(params, state)
    found = jax.jit(lambda p: nnx.merge(graph, p, rest).predict(batch.image, batch.image_size))(params)
    boxes, labels = np.asarray(found.boxes[0, :2]), np.asarray(found.labels[0, :2])
    for label, box in enumerate(truth):
        # Offsets from the truth in units of the box: within 5 %.
        offsets = encode_deltas(jnp.float32(box), boxes[labels == label][0], (1.0,) * 4)
        assert np.abs(offsets).max() < 0.1


# Settings


def test_published_settings():
    config = CascadeRCNNConfig()
    assert [stage.positive_iou for stage in config.stages()] == [0.5, 0.6, 0.7]
    assert [stage.stds[0] for stage in config.stages()] == [0.1, 0.05, 0.033]
    assert config.rpn.box_beta == 1 / 9 and config.rpn.train_proposals == 2000 and config.roi.samples == 512
    model = nnx.eval_shape(lambda: CascadeRCNN(config, rngs=nnx.Rngs(0)))
    assert sum(np.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == 69_394_766


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="have 2, 3 and 3 entries"):
        build_detector(dataclasses.replace(TINY, stage_ious=(0.5, 0.6)))
    with pytest.raises(ValueError, match=r"roi\.class_agnostic must be True"):
        build_detector(dataclasses.replace(TINY, roi=RoIConfig(levels=2)))
