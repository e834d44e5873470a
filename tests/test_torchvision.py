"""Our detectors with torchvision's weights and settings give torchvision's features, detections and losses."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import torchvision_oracle  # registers torchvision's operators; skips these tests without torch
from flax import nnx

from detectors import weights
from detectors.models import torchvision_settings
from detectors.models.backbone import ResNet, resnet50, resnet101
from detectors.models.faster_rcnn import FasterRCNN
from detectors.models.fcos import FCOS
from detectors.models.mask_rcnn import MaskRCNN
from detectors.ops.anchors import pyramid_anchors
from detectors.ops.masks import paste_masks
from detectors.ops.matching import match
from detectors.ops.roi_align import roi_align
from detectors.structures import Batch
from detectors.tensor_files import read_tensors

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
detection = pytest.importorskip("torchvision.models.detection")

CLASSES = 5
LANDSCAPE = [(100, 130), (200, 245), (150, 220), (90, 140), (128, 160)]  # all (97..128, 129..160) once resized
PORTRAIT = [(width, height) for height, width in LANDSCAPE]
SIZES = dict(min_size=128, max_size=160)
PROPOSALS = 100
EVERY_ANCHOR, EVERY_ROI = 20_000, 256  # samples per image: more than there are, so nothing is left to chance
DETECTORS = {
    "fasterrcnn_resnet50_fpn": (FasterRCNN, weights.faster_rcnn_table),
    "maskrcnn_resnet50_fpn": (MaskRCNN, weights.mask_rcnn_table),
    "fcos_resnet50_fpn": (FCOS, lambda model: weights.FCOS_TABLE),
}
LOADERS = (weights.load_faster_rcnn, weights.load_mask_rcnn, weights.load_fcos)
# Layers with the spread and the middle that each of their outputs is given, so that random weights detect something.
HEADS = {
    "rpn.head.cls_logits": (2.0, 0.0),
    "rpn.head.bbox_pred": (0.3, 0.0),
    "roi_heads.box_predictor.cls_score": (2.0, 0.0),
    "roi_heads.box_predictor.bbox_pred": (1.0, 0.0),
    "roi_heads.mask_predictor.mask_fcn_logits": (2.0, 0.0),
    "head.classification_head.cls_logits": (1.5, -3.0),
    "head.regression_head.bbox_reg": (1.0, 2.0),
    "head.regression_head.bbox_ctrness": (1.0, 0.0),
}


def arrays(module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def shake(module, seed: int) -> None:
    """Random statistics and affine parts for every batch norm, small enough that depth does not multiply them."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.uniform_(0.4, 0.9, generator=generator)
            layer.bias.data.uniform_(-0.2, 0.2, generator=generator)
            layer.running_mean.uniform_(-0.2, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)


def pictures(sizes):
    """Blurred blobs with noise, (3, h, w) in 0..1."""
    generator = torch.Generator().manual_seed(len(sizes) + sizes[0][0])
    images = []
    for size in sizes:
        blobs = torch.rand(1, 3, 6, 7, generator=generator)
        smooth = torch.nn.functional.interpolate(blobs, size=size, mode="bicubic")[0]
        images.append((smooth + 0.1 * torch.randn(3, *size, generator=generator)).clamp(0, 1))
    return images


@functools.cache
def theirs(name: str):
    """torchvision's detector with random weights and heads that give detections of all classes."""
    torch.manual_seed(3)
    options = dict(
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        rpn_batch_size_per_image=EVERY_ANCHOR,
        box_batch_size_per_image=EVERY_ROI,
        box_positive_fraction=0.5,
        box_detections_per_img=30,
    )
    if name.startswith("fcos"):
        options = dict(detections_per_img=60)
    build = getattr(detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=CLASSES + 1, **SIZES, **options).eval()
    shake(model, 4)
    eps = 1e-5 if name.startswith("fcos") else 0.0
    for layer in model.backbone.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = eps  # as torchvision sets it for its COCO weights
    images = pictures(LANDSCAPE[:2])
    for layer_name, layer in model.named_modules():
        if layer_name in HEADS:
            spread, middle = HEADS[layer_name]
            outputs = []
            handle = layer.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output))
            with torch.no_grad():
                model(images)
                handle.remove()
                values = torch.cat([output.transpose(0, 1).flatten(1) for output in outputs], dim=1)
                factor = spread / values.std(1)
                layer.weight *= factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
                layer.bias -= values.mean(1)
                layer.bias *= factor
                layer.bias += middle
    if name.startswith("fcos"):
        # Class 0 is the background, which training drives out; our detector has no output for it.
        model.head.classification_head.cls_logits.bias.data[0] = -30.0
    return model


def ours(name: str, **changes):
    """Our detector with torchvision's weights: its graph and state."""
    detector, table = DETECTORS[name]
    config = dataclasses.replace(getattr(torchvision_settings, name)(CLASSES), **changes)
    if hasattr(config, "rpn"):
        proposals = dict(train_proposals=PROPOSALS, test_proposals=PROPOSALS)
        config.rpn = dataclasses.replace(config.rpn, samples=EVERY_ANCHOR, **proposals)
        config.roi = dataclasses.replace(config.roi, samples=EVERY_ROI, positive_fraction=0.5)
    config.max_detections = 60 if name.startswith("fcos") else 30
    model = nnx.eval_shape(lambda: detector(config, rngs=nnx.Rngs(0)))
    weights.assign(model, arrays(theirs(name)), table(model))
    return nnx.split(model)


def prepared(model, images, targets=None):
    """Images (and ground truth) as torchvision's model resizes and pads them."""
    listed, targets = model.transform(images, targets)
    return listed.tensors.numpy().transpose(0, 2, 3, 1), np.float32(listed.image_sizes), targets


@pytest.mark.parametrize(("name", "config"), [("resnet50", resnet50), ("resnet101", resnet101)])
def test_resnet_features(name, config):
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None).eval()
    shake(network, 1)
    backbone = nnx.eval_shape(lambda: ResNet(config(outputs=(1, 2, 3, 4)), rngs=nnx.Rngs(0)))
    weights.assign(backbone, arrays(network), weights.RESNET, skip=weights.CLASSIFIER)
    graph, state = nnx.split(backbone)
    image = np.random.default_rng(0).normal(size=(2, 96, 128, 3)).astype(np.float32)
    features = jax.jit(lambda state, image: nnx.merge(graph, state)(image))(state, image)
    with torch.no_grad():
        x = torch.from_numpy(image.transpose(0, 3, 1, 2))
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for stage, feature in zip("1234", features, strict=True):
            x = getattr(network, f"layer{stage}")(x)
            expected = x.numpy().transpose(0, 2, 3, 1)
            assert expected.std() > 0.1
            np.testing.assert_allclose(feature, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def detections(name, sizes, **changes):
    """Ours and theirs on the same images, in the images' own pixels, and what did not fit our selection."""
    model, images = theirs(name), pictures(sizes)
    graph, state = ours(name, **changes)
    with torch.no_grad():
        expected = model(images)
        batch, image_sizes, _ = prepared(model, images)
    assert len({tuple(np.ceil(size / 32)) for size in image_sizes}) == 1  # no image sees another's padding
    found = jax.jit(lambda state, *args: nnx.merge(graph, state).predict(*args))(state, batch, image_sizes)
    for k, (size, their) in enumerate(zip(sizes, expected, strict=True)):
        valid = np.asarray(found.valid[k])
        scale = np.float32(size) / image_sizes[k]
        boxes = np.asarray(found.boxes[k])[valid] * np.tile(scale[::-1], 2)
        their = {key: value.numpy() for key, value in their.items()}
        masks = None
        if found.masks is not None:
            masks = paste_masks(np.asarray(found.masks[k])[valid], boxes, size, whole_pixels=True)
        yield (boxes, np.asarray(found.scores[k])[valid], np.asarray(found.labels[k])[valid] + 1, masks), their


@pytest.mark.parametrize("sizes", [LANDSCAPE, PORTRAIT], ids=["landscape", "portrait"])
@pytest.mark.parametrize("name", DETECTORS)
def test_detections(name, sizes):
    labels_seen = set()
    for (boxes, scores, labels, masks), their in detections(name, sizes):
        assert len(their["scores"]) >= 10 and np.ptp(their["scores"]) > 0.1
        np.testing.assert_array_equal(labels, their["labels"])
        np.testing.assert_allclose(boxes, their["boxes"], atol=0.05, rtol=0)
        np.testing.assert_allclose(scores, their["scores"], atol=1e-4, rtol=0)
        labels_seen |= set(labels)
        if masks is not None:
            a, b = masks >= 0.5, their["masks"][:, 0] >= 0.5
            assert b.any((1, 2)).mean() > 0.5
            union = (a | b).sum((1, 2))
            assert ((a & b).sum((1, 2)) >= 0.99 * union).all()
    assert len(labels_seen) >= 3


def ground_truth(sizes, proposals):
    """Four boxes an image with elliptic masks, as torchvision takes them: labels from 1.

    Two are random and two near proposals, so that both stages have positives to learn from.
    """
    rng = np.random.default_rng(8)
    targets = []
    for (height, width), candidates in zip(sizes, proposals, strict=True):
        sides = candidates[:, 2:] - candidates[:, :2]
        near = candidates[(sides > 16).all(1)][[2, 7]] + rng.uniform(-2.0, 2.0, (2, 4))
        low = rng.uniform(0.0, 0.5, (2, 2)) * (width, height)
        high = low + rng.uniform(0.25, 0.5, (2, 2)) * (width, height)
        boxes = np.concatenate([np.concatenate([low, high], 1), near]).clip(0, [width, height] * 2).astype(np.float32)
        y, x = np.mgrid[:height, :width] + 0.5
        masks = []
        for x1, y1, x2, y2 in boxes:
            reach = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2
            masks.append(reach <= 1.0)
        labels = rng.integers(1, CLASSES + 1, 4)
        parts = dict(boxes=boxes, labels=labels, masks=np.stack(masks).astype(np.uint8))
        targets.append({key: torch.from_numpy(value) for key, value in parts.items()})
    return targets


def proposals(model, images) -> list[np.ndarray]:
    """The first stage's boxes, in pixels of the images."""
    with torch.no_grad():
        listed, _ = model.transform(images)
        boxes, _ = model.rpn(listed, model.backbone(listed.tensors))
    scales = [image.shape[2] / size[1] for image, size in zip(images, listed.image_sizes, strict=True)]
    return [of_image.numpy() * scale for of_image, scale in zip(boxes, scales, strict=True)]


def as_batch(model, images, targets) -> Batch:
    image, image_size, targets = prepared(model, images, targets)
    stacked = {key: np.stack([target[key].numpy() for target in targets]) for key in ("boxes", "labels")}
    masks = np.zeros((*stacked["labels"].shape, *image.shape[1:3]), bool)
    for k, target in enumerate(targets):
        mask = target["masks"].numpy().astype(bool)
        masks[k, :, : mask.shape[1], : mask.shape[2]] = mask
    return Batch(
        image=image,
        image_size=image_size,
        boxes=stacked["boxes"],
        labels=stacked["labels"].astype(np.int32) - 1,
        valid=np.ones_like(stacked["labels"], bool),
        image_id=np.arange(len(images)),
        real=np.ones(len(images), bool),
        masks=masks,
    )


LOSSES = {
    "rpn_cls": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "cls": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}
LOSSES_OF_FCOS = {"cls": "classification", "box": "bbox_regression", "centreness": "bbox_ctrness"}


@pytest.mark.parametrize("name", DETECTORS)
def test_losses(name):
    """Each part, on the same samples: all anchors and all proposals."""
    model, is_fcos = theirs(name), name.startswith("fcos")
    images = pictures(PORTRAIT)
    targets = ground_truth(PORTRAIT, proposals(theirs("fasterrcnn_resnet50_fpn") if is_fcos else model, images))
    graph, state = ours(name)
    batch = as_batch(model, images, targets)
    model.train().backbone.eval()
    with torch.no_grad():
        expected = model(images, targets)
    model.eval()
    losses = torchvision_settings.fcos_losses() if is_fcos else torchvision_settings.rcnn_losses()

    def run(state, batch):
        return nnx.merge(graph, state).loss(batch, losses, key=jax.random.key(0))[1]

    found = jax.jit(run)(state, batch)
    parts = LOSSES_OF_FCOS if is_fcos else {key: their for key, their in LOSSES.items() if their in expected}
    assert set(parts) == set(found) - {"loss", "positives"}
    assert found["positives"] > 2 * batch.labels.size
    for part, their in parts.items():
        np.testing.assert_allclose(found[part], expected[their], rtol=1e-4, err_msg=part)


# The rules behind the settings, each against torchvision's own


@pytest.mark.parametrize("shape", [(128, 160), (800, 1088), (96, 416)])
def test_anchors(shape):
    """Also where the last strides do not divide the image."""
    config = torchvision_settings.fasterrcnn_resnet50_fpn().rpn
    strides = (4, 8, 16, 32, 64)
    cells = [[-(-side // stride) for side in shape] for stride in strides]
    generator = detection.anchor_utils.AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    images = detection.image_list.ImageList(torch.zeros(1, 3, *shape), [shape])
    expected = generator(images, [torch.zeros(1, 1, *level) for level in cells])[0]
    anchors = pyramid_anchors(
        shape, strides, scale=config.scale, ratios=config.ratios, whole_pixels=True, fit_image=True
    )
    np.testing.assert_array_equal(anchors.boxes, expected)
    ours = pyramid_anchors(shape, strides, scale=config.scale, ratios=config.ratios)
    assert (anchors.boxes != ours.boxes).any()


@pytest.mark.parametrize("low_quality", [False, True])
def test_matching(low_quality):
    rng = np.random.default_rng(0)
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
        low_quality_iou=0.0 if low_quality else None,
        low_quality_keeps_best=True,
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
        in_python = torchvision_oracle.python_roi_align()(*theirs_in, *options)
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


# Files that torch.save writes, with torchvision's names of today and of its published weights


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_files_of_torch_save(tmp_path, zipped):
    network = torchvision.models.resnet18(weights=None)
    shake(network, 2)
    torch.save(network.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "w.pth")
    assert list(found) == list(network.state_dict())
    for name, array in arrays(network).items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_tensors_that_share_memory_and_have_other_types(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "parameter": torch.nn.Parameter(base + 1),
    }
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        for name, array in read_tensors(tmp_path / "w.pt").items():
            np.testing.assert_array_equal(array.astype(np.float32), tensors[name].detach().float(), err_msg=name)


OLDER_NAMES = [
    (r"fpn\.(\w+)_blocks\.(\d)\.0\.", r"fpn.\1_blocks.\2."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}."),
]


@pytest.mark.parametrize(("name", "load"), zip(DETECTORS, LOADERS, strict=True))
def test_published_names(name, load, tmp_path):
    """A file with older names fills a detector as one with today's, and each row of the table is used."""
    detector, table = DETECTORS[name]
    build = functools.partial(detector, getattr(torchvision_settings, name)(CLASSES), rngs=nnx.Rngs(0))
    tensors, renamed = theirs(name).state_dict(), {}
    for key, tensor in tensors.items():
        for pattern, older in OLDER_NAMES:
            key = re.sub(pattern, older, key)
        renamed[key] = tensor
    assert set(renamed) - set(tensors)
    torch.save(renamed, tmp_path / "w.pth")
    today, older = nnx.eval_shape(build), nnx.eval_shape(build)
    load(older, tmp_path / "w.pth")
    weights.assign(today, arrays(theirs(name)), table(today))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(older), nnx.state(today))
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(today, (nnx.Param, nnx.BatchStat)))]
    shapes = {re.sub(r"/\d+(?=/|$)", "/*", path) for path in paths}
    unused = {row.ours for row in table(today)} - shapes
    assert unused <= ({"fpn/extra/*/kernel", "fpn/extra/*/bias"} if "rcnn" in name else set())
