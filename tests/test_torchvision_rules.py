"""The rules behind torchvision's settings, each against torchvision's own."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torchvision_oracle import detection, python_roi_align, torch, torchvision

from detectors.models import torchvision_settings
from detectors.models.rpn import RPN
from detectors.ops.anchors import fitting_shift, pyramid_anchors
from detectors.ops.masks import paste_masks
from detectors.ops.matching import match
from detectors.ops.points import assign_points, pyramid_points
from detectors.ops.roi_align import roi_align
from detectors.weights.pretrained import PretrainedFasterRCNN


@pytest.mark.parametrize("size", [(97, 131), (330, 450), (451, 300), (64, 79), (900, 1500)])
def test_resizing(size):
    """Up and down; 330 x 450 becomes 800 x 1090, not 1091."""
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    transform = detection.transform.GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3).eval()
    expected, _ = transform.resize(torch.from_numpy(photo.transpose(2, 0, 1)).float())
    data = PretrainedFasterRCNN().data
    found = data.fitted(photo) * data.std + data.mean
    np.testing.assert_allclose(found.transpose(2, 0, 1), expected, atol=0.02)
    assert size != (330, 450) or found.shape == (800, 1090, 3)


@pytest.mark.parametrize("shape", [(128, 160), (800, 1088), (96, 416)])
def test_anchors(shape):
    """Also where the last strides do not divide the image."""
    config = torchvision_settings.fasterrcnn_resnet50_fpn().rpn
    strides = (4, 8, 16, 32, 64)
    levels = [tuple(-(-side // stride) for side in shape) for stride in strides]
    generator = detection.anchor_utils.AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    images = detection.image_list.ImageList(torch.zeros(1, 3, *shape), [shape])
    expected = generator(images, [torch.zeros(1, 1, *level) for level in levels])[0]
    network = RPN(config, 1, strides, rngs=nnx.Rngs(0))
    anchors = network([jnp.zeros((1, 1, 1, 1))] * len(levels), shape)[0]  # which depend on the image's shape alone
    placed, _ = network._placed(anchors, jnp.float32(shape))
    np.testing.assert_array_equal(placed, expected)
    ours = pyramid_anchors(shape, strides, scale=config.scale, ratios=config.ratios)
    assert (placed != ours.boxes).any()


@pytest.mark.parametrize("shape", [(128, 160), (800, 1088), (96, 416)])
def test_points(shape):
    """FCOS's points are the centres of its anchors, whose sides are the strides."""
    config, strides = torchvision_settings.fcos_resnet50_fpn(), (8, 16, 32, 64, 128)
    generator = detection.anchor_utils.AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * 5)
    images = detection.image_list.ImageList(torch.zeros(1, 3, *shape), [shape])
    levels = [torch.zeros(1, 1, *(-(-side // stride) for side in shape)) for stride in strides]
    anchors = generator(images, levels)[0].numpy()
    points = pyramid_points(shape, strides, config.range_limits, offset=config.point_offset)
    shift = fitting_shift(points.xy, points.stride, jnp.float32(shape))
    np.testing.assert_array_equal(points.xy + shift, (anchors[:, :2] + anchors[:, 2:]) / 2)
    np.testing.assert_array_equal(points.stride, anchors[:, 2] - anchors[:, 0])


def test_assignment_of_points():
    """Of boxes whose longest distance at some points is exactly a limit between levels, too."""
    config, strides, shape = torchvision_settings.fcos_resnet50_fpn(), (8, 16, 32, 64, 128), (384, 512)
    boxes = np.float32([[0, 0, 64, 64], [0, 0, 128, 96], [16, 32, 144, 160], [64, 0, 320, 256], [200, 8, 208, 20]])
    points = pyramid_points(shape, strides, config.range_limits, offset=config.point_offset)
    half = points.stride[:, None] / 2
    anchors = torch.from_numpy(np.concatenate([points.xy - half, points.xy + half], 1))
    given = types.SimpleNamespace(
        center_sampling_radius=config.radius, head=types.SimpleNamespace(compute_loss=lambda *arguments: arguments[3])
    )
    counts = np.bincount(points.level).tolist()
    (expected,) = detection.fcos.FCOS.compute_loss(given, [{"boxes": torch.from_numpy(boxes)}], {}, [anchors], counts)
    labels, everywhere = np.arange(len(boxes), dtype=np.int32), np.ones(len(points.xy), bool)
    truth = (boxes, labels, np.ones(len(boxes), bool), everywhere)
    ours, other = (
        assign_points(points, *truth, radius=config.radius, open_ranges=value) for value in (config.open_ranges, False)
    )
    np.testing.assert_array_equal(np.where(ours.positive, ours.labels, -1), expected.numpy())
    assert (np.asarray(ours.positive) != np.asarray(other.positive)).any()


@pytest.mark.parametrize("low_quality", [False, True])
def test_matching(low_quality):
    config, rng = torchvision_settings.fasterrcnn_resnet50_fpn().rpn, np.random.default_rng(0)
    low = rng.uniform(0.0, 80.0, (412, 2))
    boxes = np.concatenate([low, low + rng.uniform(4.0, 40.0, (412, 2))], 1).astype(np.float32)
    anchors, truth = boxes[:400], boxes[400:]
    quality = torchvision.ops.box_iou(torch.from_numpy(truth), torch.from_numpy(anchors))
    expected = detection._utils.Matcher(0.7, 0.3, allow_low_quality_matches=low_quality)(quality).numpy()
    found = match(
        anchors,
        np.ones(400, bool),
        truth,
        np.ones(12, bool),
        positive_iou=0.7,
        negative_iou=0.3,
        low_quality_iou=config.low_quality_iou if low_quality else None,
        low_quality_keeps_best=config.low_quality_keeps_best,
    )
    np.testing.assert_array_equal(found.positive, expected >= 0)
    np.testing.assert_array_equal(found.negative, expected == -1)
    np.testing.assert_array_equal(np.asarray(found.target)[expected >= 0], expected[expected >= 0])


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_within_the_map(aligned):
    """The compiled rule and torchvision's Python rule agree there, and so does ours."""
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(20, 24, 3)).astype(np.float32)
    low = rng.uniform(4.0, 60.0, (20, 2))
    rois = np.concatenate([low, low + rng.uniform(1.0, 30.0, (20, 2))], 1).astype(np.float32)
    level = np.zeros(20, np.int32)
    found = roi_align([feature], rois, level, strides=(4,), size=5, aligned=aligned)
    theirs_in = torch.from_numpy(feature.transpose(2, 0, 1)[None]), torch.from_numpy(np.insert(rois, 0, 0.0, axis=1))
    for sampling_ratio in (2, -1):
        options = (0.25, 5, 5, sampling_ratio, aligned)
        registered = torchvision.ops.roi_align(*theirs_in, (5, 5), 0.25, sampling_ratio, aligned)
        in_python = python_roi_align()(*theirs_in, *options)
        np.testing.assert_allclose(registered, in_python, atol=1e-5)
        if sampling_ratio == 2:
            np.testing.assert_allclose(found, registered.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_roi_align_over_the_border():
    """RoIs beyond the map, and narrower than a cell."""
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(10, 12, 3)).astype(np.float32)
    low = rng.uniform(-20.0, 50.0, (40, 2))
    rois = np.concatenate([low, low + rng.uniform(0.0, 30.0, (40, 2))], 1).astype(np.float32)
    expected = torchvision.ops.roi_align(
        torch.from_numpy(feature.transpose(2, 0, 1)[None]), [torch.from_numpy(rois)], (7, 7), 0.25, 2, False
    )
    for as_product in (False, True):
        options = dict(strides=(4,), size=7, aligned=False, as_product=as_product)
        found = roi_align([feature], rois, np.zeros(40, np.int32), **options)
        np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_pasted_masks():
    """torchvision's rule on boxes of all sizes, over the border too."""
    rng = np.random.default_rng(0)
    masks = rng.random((30, 28, 28)).astype(np.float32)
    low = rng.uniform(-10.0, 70.0, (30, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.5, 60.0, (30, 2))], 1).astype(np.float32)
    inside = (boxes[:, 2:] > 1.0).all(1) & (boxes[:, :2] < (89.0, 79.0)).all(1)
    masks, boxes = masks[inside], boxes[inside]
    expected = detection.roi_heads.paste_masks_in_image(
        torch.from_numpy(masks[:, None]), torch.from_numpy(boxes), (80, 90)
    )
    found = paste_masks(masks, boxes, (80, 90), whole_pixels=True)
    np.testing.assert_allclose(found, expected[:, 0], atol=2e-3)
