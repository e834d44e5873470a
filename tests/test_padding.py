"""What a detector sees in an image, finds there and learns from it does not depend on the images beside it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from micro import library_losses

from benchmarks.smallest import FEATURES, faster_rcnn_smallest, fcos_smallest
from detectors.models import build_detector, fcos
from detectors.models.atss import atss_tiny
from detectors.models.backbone import build_backbone
from detectors.models.cascade_rcnn import cascade_rcnn_tiny
from detectors.models.fpn import FPN, FPNConfig
from detectors.models.mask_rcnn import mask_rcnn_tiny
from detectors.models.mobilenet import MobileNetConfig
from detectors.models.resnet import small
from detectors.models.rpn import RPN, RPNConfig
from detectors.ops.anchors import pyramid_anchors
from detectors.ops.padding import Extent, Pyramid
from detectors.structures import Batch, Normalisation

OWN, BESIDE = (40, 60), (96, 160)  # sizes of an image and of its neighbour, pixels
ALONE = (64, 64)  # the shape of a batch of the first
COARSE = small(depths=(1, 1, 1, 1), widths=(8, 8, 8, 8), stem_width=8, norm_groups=4)
DETECTORS = {
    "fcos": fcos_smallest(3),
    "fcos with levels that its image does not fill": dataclasses.replace(
        fcos_smallest(3),
        backbone=dataclasses.replace(COARSE, outputs=(3, 4)),
        fpn=FPNConfig(channels=16, extra="conv", extra_levels=2),
        range_limits=(24.0, 48.0, 96.0),
        point_offset=0.0,
        fit_image=True,
    ),
    "atss": dataclasses.replace(atss_tiny(3), **FEATURES, towers=1, norm_groups=4),
    "faster_rcnn with levels that its image does not fill": dataclasses.replace(
        faster_rcnn_smallest(3),
        backbone=dataclasses.replace(COARSE, outputs=(3, 4)),
        fpn=FPNConfig(channels=16, extra="max_pool", extra_levels=1),
        rpn=dataclasses.replace(faster_rcnn_smallest(3).rpn, fit_image=True),
        roi=dataclasses.replace(faster_rcnn_smallest(3).roi, pool_as_product=False),
    ),
    "cascade_rcnn": dataclasses.replace(cascade_rcnn_tiny(3), **FEATURES),
    "mask_rcnn": dataclasses.replace(mask_rcnn_tiny(3), **FEATURES),
}
BACKBONES = {
    "bottlenecks": dataclasses.replace(COARSE, bottleneck=True),
    "caffe's bottlenecks": dataclasses.replace(COARSE, bottleneck=True, stride_in_1x1=True),
    "frozen batch norm": dataclasses.replace(COARSE, norm="frozen_bn"),
    "MobileNet": MobileNetConfig(norm="gn"),
}


def images(shape: tuple[int, int], *sizes: tuple[int, int]) -> Batch:
    """A batch whose images start alike and end at their sizes."""
    rng, number = np.random.default_rng(0), len(sizes)
    image = np.zeros((number, *shape, 3), np.float32)
    for row, (height, width) in enumerate(sizes):
        image[row, :height, :width] = rng.normal(size=(*BESIDE, 3))[:height, :width]
    return Batch(
        image=image,
        image_size=np.float32(sizes),
        boxes=np.tile(np.float32([[4, 6, 30, 38], [20, 1, 58, 22]]), (number, 1, 1)),
        labels=np.tile(np.int32([0, 2]), (number, 1)),
        valid=np.ones((number, 2), bool),
        image_id=np.arange(number, dtype=np.int32),
        real=np.ones(number, bool),
    )


def shaken(model: nnx.Module) -> nnx.Module:
    """With random biases too, so that what beyond an image is computed is not zero by itself."""
    rng = np.random.default_rng(1)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)
    return nnx.merge(graph, params, rest)


def detector(name: str):
    config = DETECTORS[name]
    return shaken(build_detector(dataclasses.replace(config, score_threshold=0.0))[1](nnx.Rngs(0)))


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detections(name):
    graph, state = nnx.split(detector(name))
    predict = jax.jit(lambda state, batch: nnx.merge(graph, state).predict(batch.image, batch.image_size))
    alone = predict(state, images(ALONE, OWN))
    beside = jax.tree.map(lambda x: x[:1], predict(state, images(BESIDE, OWN, BESIDE)))
    assert alone.valid.sum() > 5
    np.testing.assert_array_equal(beside.valid, alone.valid)
    np.testing.assert_allclose(beside.scores[alone.valid], alone.scores[alone.valid], rtol=1e-3)
    np.testing.assert_allclose(beside.boxes[alone.valid], alone.boxes[alone.valid], atol=5e-2)
    if alone.masks is not None:
        np.testing.assert_allclose(beside.masks[alone.valid], alone.masks[alone.valid], atol=1e-3)


def test_cells_that_are_spread_over_the_image():
    """Of 160 pixels three cells have 53 each: moved so, the fourth, which is padding, would begin within the image."""
    strides, size = (32, 64), jnp.float32([150, 160])
    config = dataclasses.replace(DETECTORS["fcos"], range_limits=(64.0,), point_offset=0.0, fit_image=True)
    network = RPN(RPNConfig(fit_image=True), 1, strides, rngs=nnx.Rngs(0))
    found = []
    for shape in ((160, 160), (224, 320)):
        points, inside = fcos._points(config, strides, np.zeros((1, *shape, 3), np.float32), size[None])
        anchors = pyramid_anchors(shape, strides, scale=network.config.scale, ratios=network.config.ratios)
        boxes, usable = network._placed(anchors, size)
        found.append((points.xy[inside], boxes[usable]))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert len(found[0][0]) == 5 * 5 + 3 * 3
    assert len(found[0][1]) == 3 * len(found[0][0])


def test_pixels():
    """They are normalised as floats are on the host, and what is beyond an image does not count."""
    normalisation = Normalisation((100.0, 120.0, 140.0), (20.0, 40.0, 60.0))
    model = build_detector(DETECTORS["fcos"], normalisation)[1](nnx.Rngs(0))
    pixels = np.random.default_rng(0).integers(0, 256, (2, *BESIDE, 3), dtype=np.uint8)
    sizes = np.float32([OWN, BESIDE])
    floats = np.zeros(pixels.shape, np.float32)
    for image, of_one, (height, width) in zip(floats, pixels, sizes.astype(int), strict=True):
        image[:height, :width] = (of_one[:height, :width] - np.array(normalisation.mean)) / normalisation.std
    features = jax.jit(lambda image: model.features(image, sizes).levels)
    for ours, theirs in zip(features(pixels), features(floats), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(np.abs(theirs).max()))


@pytest.mark.parametrize("name", ["fcos", "atss"])
def test_loss(name):
    """Of the detectors that sample nothing: the others draw from as many anchors as the padded image has."""
    graph, state = nnx.split(detector(name))
    losses, key = library_losses(build_detector(DETECTORS[name])[0]), jax.random.key(0)
    parts = jax.jit(lambda state, batch: nnx.merge(graph, state).loss(batch, losses, key=key)[1])
    alone, beside = (parts(state, images(shape, OWN)) for shape in (ALONE, BESIDE))
    assert alone["positives"] > 2
    for part, value in alone.items():
        np.testing.assert_allclose(beside[part], value, rtol=1e-4, err_msg=part)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_features(name):
    """The features of an image are those it has alone, and the rest are zeros."""
    config = BACKBONES[name]
    backbone = shaken(build_backbone(config, rngs=nnx.Rngs(0)))
    fpn = shaken(FPN(FPNConfig(channels=8), config.channels, rngs=nnx.Rngs(0)))
    strides = FPNConfig().strides(config.strides)

    def pyramid(batch: Batch) -> Pyramid:
        extent = Extent.of(batch.image_size)
        extents = [extent.strided(stride) for stride in strides]
        return Pyramid(fpn(backbone(batch.image, extent), extents), extents)

    alone, beside = (jax.jit(pyramid)(images(*sizes)) for sizes in [(ALONE, OWN), (BESIDE, OWN, BESIDE)])
    assert alone.levels[-1].shape[1:3] == (1, 1) and beside.levels[-1].shape[1:3] == (1, 2)
    for one, two in zip(alone.levels, beside.levels, strict=True):
        rows, columns = one.shape[1:3]
        assert np.abs(one).max() > 0.01
        np.testing.assert_allclose(two[:1, :rows, :columns], one, atol=1e-4 * float(np.abs(one).max()))
        assert not two[0, rows:].any() and not two[0, :, columns:].any()
