"""ATSS: its assignment against one written with loops, its loss, and that it learns."""

import functools
import types

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from micro import library_losses

from detectors.models import build_detector
from detectors.models.atss import ATSS, ATSSConfig, atss_tiny
from detectors.models.fcos import FCOSConfig
from detectors.ops.anchors import pyramid_anchors
from detectors.ops.atss import assign_adaptively
from detectors.structures import Batch

SIZE = 64
LOSSES = library_losses(ATSS)


def _iou(a, b):
    inner = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.prod(np.maximum(inner, 0.0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def assigned_with_loops(anchors, boxes, valid, inside, candidates):
    """Index of each anchor's box, or -1."""
    best, found = np.full(len(anchors.boxes), -1.0), np.full(len(anchors.boxes), -1)
    for k in np.flatnonzero(valid):
        if (boxes[k, 2:] <= boxes[k, :2]).any():
            continue
        near = []
        for level in range(anchors.level.max() + 1):
            members = np.flatnonzero((anchors.level == level) & inside)
            distance = np.linalg.norm(anchors.centre[members] - (boxes[k, :2] + boxes[k, 2:]) / 2, axis=1)
            near += members[np.argsort(distance, kind="stable")[:candidates]].tolist()
        iou = np.array([_iou(anchors.boxes[n], boxes[k]) for n in near])
        threshold = iou.mean() + iou.std(ddof=1)
        for n, overlap in zip(near, iou, strict=True):
            x, y = anchors.centre[n]
            within = min(x - boxes[k, 0], y - boxes[k, 1], boxes[k, 2] - x, boxes[k, 3] - y) > 0.01
            if overlap >= threshold and within and overlap > best[n]:
                best[n], found[n] = overlap, k
    return found


ANCHORS = pyramid_anchors((96, 128), (8, 16, 32), scale=4.0, ratios=(1.0,))
assign = jax.jit(functools.partial(assign_adaptively, ANCHORS, candidates=9))


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_loops(seed):
    """In float64, and with boxes off the grid, so that no distance or threshold is a tie."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0.0, 80.0, (6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5.0, 60.0, (6, 2))], 1)
    boxes[1] = boxes[0] + 0.37  # nearly the same
    boxes[2, 2:] = boxes[2, :2]  # no area
    valid = np.array([True, True, True, True, True, False])
    inside = ANCHORS.centre[:, 0] < (128 if seed % 2 else 96)
    with jax.enable_x64(True):
        found = assign(boxes, np.arange(6), valid, inside)
    expected = assigned_with_loops(ANCHORS, boxes, valid, inside, 9)
    np.testing.assert_array_equal(found.positive, expected >= 0)
    taken = expected >= 0
    assert taken.sum() > 5
    np.testing.assert_array_equal(np.asarray(found.labels)[taken], expected[taken])
    np.testing.assert_allclose(np.asarray(found.boxes)[taken], boxes[expected[taken]])
    np.testing.assert_allclose(np.asarray(found.boxes)[~taken], ANCHORS.boxes[~taken])


def batch_of(boxes, *, size=(SIZE, SIZE)) -> Batch:
    count = len(boxes)
    boxes = np.concatenate([np.float32(boxes).reshape(-1, 4), np.zeros((3 - count, 4), np.float32)])
    image = np.random.default_rng(0).normal(0.0, 0.1, (1, SIZE, SIZE, 3)).astype(np.float32)
    for x1, y1, x2, y2 in boxes.astype(int):
        image[0, y1:y2, x1:x2] += 1.0
    return Batch(
        image=image,
        image_size=np.float32([size]),
        boxes=boxes[None],
        labels=np.array([[0, 1, 2]], np.int32),
        valid=(np.arange(3) < count)[None],
        image_id=np.zeros(1, np.int32),
        real=np.ones(1, bool),
    )


@functools.cache
def parts_of():
    return nnx.split(ATSS(atss_tiny(3), rngs=nnx.Rngs(0)), nnx.Param, ...)


@functools.cache
def loss_and_gradient():
    graph, _, rest = parts_of()

    @jax.jit
    def run(params, batch):
        return jax.value_and_grad(
            lambda p: nnx.merge(graph, p, rest).loss(batch, LOSSES, key=jax.random.key(0)), has_aux=True
        )(params)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("boxes", [[[5, 8, 40, 50], [30, 10, 60, 28]], [], [[20, 20, 20, 20], [90, 90, 99, 99]]])
def test_loss_and_gradient_are_finite(boxes):
    (total, parts), gradients = loss_and_gradient()(parts_of()[1], batch_of(boxes))
    assert np.isfinite(total) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert (parts["positives"] > 0) == (len(boxes) == 2 and boxes[0][2] == 40)
    np.testing.assert_allclose(total, parts["cls"] + parts["box"] + parts["centreness"], rtol=1e-6)


def test_padding_of_boxes_and_images_has_no_influence():
    size = (SIZE, 20.0)
    batch = batch_of([[2.0, 4.0, 19.0, 30.0]], size=size)
    run = loss_and_gradient()
    other = batch._replace(boxes=batch.boxes + np.float32([[[0] * 4, [7, 7, 30, 30], [1, 1, 2, 2]]]))
    assert run(parts_of()[1], batch)[0][0] == run(parts_of()[1], other)[0][0]
    model = ATSS(atss_tiny(3), rngs=nnx.Rngs(0))
    anchors = pyramid_anchors((SIZE, SIZE), model.strides, scale=model.config.scale, ratios=(1.0,))
    heads = jax.jit(lambda: model._heads(batch.image, batch.image_size)[1:])()
    beyond = anchors.centre[:, 0] >= 32
    assert 0 < beyond.sum() < beyond.size

    def loss(heads):
        given = types.SimpleNamespace(config=atss_tiny(3), _heads=lambda *_: (anchors, *heads))
        return ATSS.loss(given, batch, LOSSES, key=jax.random.key(0))[0]

    for gradient in jax.jit(jax.grad(loss))(heads):
        assert not gradient[:, beyond].any() and gradient[:, ~beyond].any()


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
    for _ in range(200):
        params, state, total = step(params, state)
    found = jax.jit(lambda p: nnx.merge(graph, p, rest).predict(batch.image, batch.image_size))(params)
    boxes, labels = np.asarray(found.boxes[0, :2]), np.asarray(found.labels[0, :2])
    for label, box in enumerate(truth):
        assert _iou(boxes[labels == label][0], np.float32(box)) > 0.8


def test_the_network_is_the_size_of_fcos():
    """Both have two towers and the same three outputs; only what these mean differs."""
    counts = []
    for config in (ATSSConfig(), FCOSConfig()):
        _, build = build_detector(config)
        model = nnx.eval_shape(lambda build=build: build(nnx.Rngs(0)))
        assert model.strides == (8, 16, 32, 64, 128)
        counts.append(sum(np.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param))))
    assert counts[0] == counts[1] == 32_297_370
    assert not ATSSConfig().fpn.relu_before_extra
