"""Mask R-CNN: its targets, its loss and masks put back into images."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from micro import library_losses

from detectors.models import build_detector
from detectors.models.mask_rcnn import MaskRCNN, MaskRCNNConfig, mask_rcnn_tiny
from detectors.models.roi_head import SampledRoIs
from detectors.ops.masks import crop_masks, paste_masks
from detectors.ops.padding import Extent, Pyramid
from detectors.structures import Batch

SIZE, CLASSES = 64, 3
LOSSES = library_losses(MaskRCNN)


@functools.cache
def detector() -> MaskRCNN:
    return build_detector(mask_rcnn_tiny(CLASSES))[1](nnx.Rngs(0))


@functools.cache
def losses():
    graph, state = nnx.split(detector())
    return jax.jit(
        lambda batch: nnx.merge(graph, state).loss(batch, LOSSES, key=jax.random.key(0))[1],
        compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None,
    )


def batch_of(*, boxes=2, coarser=1) -> Batch:
    """Boxes whose left half is their mask."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 24, (2, 3, 2))
    low_high = np.concatenate([corner, corner + 8 * rng.integers(2, 5, (2, 3, 2))], -1).astype(np.float32)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    x1, y1, x2, y2 = (low_high[..., None, None, k] for k in range(4))
    masks = (x >= x1) & (x < (x1 + x2) / 2) & (y >= y1) & (y < y2)
    return Batch(
        image=rng.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32),
        image_size=np.full((2, 2), SIZE, np.float32),
        boxes=low_high,
        labels=rng.integers(0, CLASSES, (2, 3)).astype(np.int32),
        valid=np.tile(np.arange(3) < boxes, (2, 1)),
        image_id=np.arange(2),
        real=np.ones(2, bool),
        masks=masks[..., ::coarser, ::coarser],
    )


def features() -> Pyramid:
    rng = np.random.default_rng(1)
    extent = Extent.of(batch_of().image_size)
    levels = [jnp.float32(rng.normal(size=(2, SIZE // s, SIZE // s, 48))) for s in (8, 16)]
    return Pyramid(levels, [extent.strided(s) for s in (8, 16)])


def sampled_at_truth() -> SampledRoIs:
    """RoIs a little beside the ground truth."""
    batch = batch_of()
    truth = np.tile(np.arange(2), (2, 8))
    targets = np.take_along_axis(batch.boxes, truth[..., None], 1)
    rois = (targets + np.random.default_rng(2).uniform(-2.0, 2.0, targets.shape)).clip(0, SIZE).astype(np.float32)
    yes = np.ones(truth.shape, bool)
    return SampledRoIs(rois, np.take_along_axis(batch.labels, truth, 1), yes, yes, targets, truth)


# The detector


@pytest.mark.slow
def test_detections_have_masks_at_twice_the_pooled_resolution():
    graph, state = nnx.split(detector())
    batch = batch_of()
    found = jax.jit(lambda image, size: nnx.merge(graph, state).predict(image, size))(batch.image, batch.image_size)
    assert found.masks.shape == (*found.scores.shape, 14, 14) and found.boxes.shape[:2] == found.scores.shape
    masks, valid = np.asarray(found.masks), np.asarray(found.valid)
    assert valid.any() and ((masks[valid] > 0.0) & (masks[valid] < 1.0)).all() and not masks[~valid].any()


def test_the_default_shape_is_that_of_the_paper():
    """28x28 masks of 80 classes after four convolutions of 256 channels, at the published size: 44 million weights."""
    model = nnx.eval_shape(lambda: MaskRCNN(MaskRCNNConfig(), rngs=nnx.Rngs(0)))
    sizes = jax.tree.map(lambda p: p.size, nnx.state(model, nnx.Param))
    assert 43.9e6 < sum(jax.tree.leaves(sizes)) < 44.5e6
    logits = nnx.eval_shape(lambda m: m.mask(jnp.zeros((2, 5, 14, 14, 256))), model)
    assert logits.shape == (2, 5, 28, 28, 80)


def test_without_masks_the_loss_says_so():
    model = detector()
    with pytest.raises(ValueError, match="batch.masks"):
        jax.eval_shape(lambda: model.loss(batch_of()._replace(masks=None), LOSSES, key=jax.random.key(0)))


def test_the_mask_loss_is_the_masks_alone():
    """Other masks change the mask's part and no other; without ground truth that part is 0."""
    batch = batch_of()
    one, other = losses()(batch), losses()(batch._replace(masks=~batch.masks))
    assert one["mask"] > 0.0 and one["mask"] != other["mask"]
    for part in ("cls", "box", "rpn_cls", "rpn_box"):
        assert one[part] == other[part]
    np.testing.assert_allclose(
        one["loss"], sum(one[p] for p in ("cls", "box", "mask", "rpn_cls", "rpn_box")), rtol=1e-5
    )
    empty = losses()(batch_of(boxes=0))
    assert empty["mask"] == 0.0 and np.isfinite(empty["loss"])


def test_padded_ground_truth_has_no_influence():
    batch = batch_of(boxes=2)
    changed = batch.masks.copy()
    changed[:, 2] = ~changed[:, 2]
    assert losses()(batch)["mask"] == losses()(batch._replace(masks=changed))["mask"]


@pytest.mark.slow
def test_training_on_masks_learns_them():
    """A few steps on the mask head alone halve its loss, so gradient and target agree."""
    graph, params, rest = nnx.split(detector(), nnx.All(nnx.Param, nnx.PathContains("mask")), ...)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return nnx.merge(graph, params, rest)._mask_loss(features(), batch_of(), sampled_at_truth())

    values = []
    for _ in range(60):
        value, gradient = loss(params)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0], values


def test_soft_targets_are_the_share_covered():
    """Their loss is larger than that of hard ones for predictions that are sure and right."""
    values = []
    for soft in (False, True):
        config = mask_rcnn_tiny(CLASSES)
        config.mask.soft_targets = soft
        sampled, batch = sampled_at_truth(), batch_of()
        cut = functools.partial(crop_masks, size=14)
        sure = 40.0 * (jax.vmap(cut)(batch.masks, sampled.truth, sampled.boxes, batch.image_size) - 0.5)
        given = types.SimpleNamespace(config=config, _mask_logits=lambda *_, sure=sure: sure)
        values.append(float(MaskRCNN._mask_loss(given, Pyramid([], []), batch, sampled)))
    assert 0.0 < values[0] < 0.2 < values[1] - values[0]


# Targets


def test_crops_of_whole_pixels_are_exact():
    """A RoI of as many pixels as bins is the mask itself; of twice as many, its means."""
    masks = np.random.default_rng(0).random((2, 20, 24)) < 0.5
    rois = np.float32([[4, 3, 12, 11], [2, 1, 18, 17]])
    small, large = crop_masks(masks, np.int32([1, 0]), rois, jnp.float32([20, 24]), size=8)
    np.testing.assert_allclose(small, masks[1, 3:11, 4:12], atol=1e-5)
    np.testing.assert_allclose(large, masks[0, 1:17, 2:18].reshape(8, 2, 8, 2).mean((1, 3)), atol=1e-5)


def test_padding_beside_the_image_is_not_looked_at():
    masks = np.zeros((1, 16, 16), bool)
    masks[:, :, :10] = True
    rois = np.float32([[0, 0, 10, 16]])
    cut = crop_masks(masks, np.int32([0]), rois, jnp.float32([16, 10]), size=4, aligned=False)
    np.testing.assert_allclose(cut, 1.0, rtol=1e-6)  # a few roundings of float32
    other = masks.copy()
    other[:, :, 10:] = True
    both = [crop_masks(m, np.int32([0]), rois, jnp.float32([16, 10]), size=4) for m in (masks, other)]
    np.testing.assert_array_equal(*both)


def test_coarser_masks_give_nearly_the_same_targets():
    fine, coarse = losses()(batch_of())["mask"], losses()(batch_of(coarser=2))["mask"]
    assert fine != coarse
    np.testing.assert_allclose(coarse, fine, rtol=0.05)


# Pasting


def test_a_full_mask_pastes_to_its_box():
    pasted = paste_masks(np.ones((1, 28, 28), np.float32), np.float32([[5, 3, 15, 9]]), (12, 20))
    expected = np.zeros((12, 20), bool)
    expected[3:9, 5:15] = True
    assert pasted.shape == (1, 12, 20)
    np.testing.assert_array_equal(pasted[0] >= 0.5, expected)


def test_pasting_undoes_cutting():
    """A disc, cut out at a box and pasted back, is the disc."""
    y, x = np.mgrid[:60, :80] + 0.5
    disc = (x - 41.3) ** 2 + (y - 28.2) ** 2 < 18.0**2
    box = np.float32([[20.1, 8.7, 62.4, 47.9]])
    cut = crop_masks(disc[None], np.int32([0]), box, jnp.float32([60, 80]), size=28)
    again = paste_masks(np.asarray(cut), box, (60, 80))[0] >= 0.5
    assert (again & disc).sum() / (again | disc).sum() > 0.97


def test_boxes_over_the_border_and_without_area():
    boxes = np.float32([[-6.0, -4.0, 6.0, 4.0], [5.0, 5.0, 5.0, 5.0], [30.0, 2.0, 40.0, 8.0]])
    pasted = paste_masks(np.ones((3, 14, 14), np.float32), boxes, (10, 12)) >= 0.5
    expected = np.zeros((10, 12), bool)
    expected[:4, :6] = True
    np.testing.assert_array_equal(pasted[0], expected)
    assert not pasted[1:].any()
    assert paste_masks(np.zeros((0, 14, 14)), np.zeros((0, 4)), (10, 12)).shape == (0, 10, 12)
