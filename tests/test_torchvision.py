"""Our detectors with torchvision's weights and settings give torchvision's features, detections and losses."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from torchvision_oracle import (
    CLASSES,
    DEPTHS,
    EVERY_ANCHOR,
    EVERY_ROI,
    PER_LEVEL,
    POSITIVES,
    PROPOSALS,
    SIZES,
    arrays,
    pictures,
    shake,
    theirs,
    torch,
    torchvision,
)

from detectors import weights
from detectors.data.pipeline import layout_for
from detectors.evaluation.photos import find_objects, read_photo, size_of
from detectors.models import torchvision_settings
from detectors.models.faster_rcnn import FasterRCNN
from detectors.models.fcos import FCOS
from detectors.models.mask_rcnn import MaskRCNN
from detectors.models.resnet import ResNet, resnet50, resnet101
from detectors.ops.masks import paste_masks
from detectors.ops.padding import Extent
from detectors.structures import Batch
from detectors.weights.pretrained import PretrainedFasterRCNN

# All (97..128, 129..160) once resized, so that no image sees another's padding.
LANDSCAPE = [(100, 130), (200, 245), (150, 220), (90, 140), (128, 160)]
MORE = [(130, 160), (77, 111), (101, 160), (256, 300), (63, 80)]
PORTRAIT = [(width, height) for height, width in LANDSCAPE]
DETECTORS = {
    "fasterrcnn_resnet50_fpn": (FasterRCNN, weights.faster_rcnn_table),
    "maskrcnn_resnet50_fpn": (MaskRCNN, weights.mask_rcnn_table),
    "fcos_resnet50_fpn": (FCOS, lambda model: weights.FCOS_TABLE),
}


def ours(name: str, **changes):
    """Our detector with torchvision's weights: its graph and state."""
    detector, table = DETECTORS[name]
    config = dataclasses.replace(getattr(torchvision_settings, name)(CLASSES), **changes)
    config.backbone = dataclasses.replace(config.backbone, depths=DEPTHS)
    if hasattr(config, "rpn"):
        kept = dict(train_proposals=PROPOSALS, test_proposals=PROPOSALS)
        kept |= dict(per_level=2 * PER_LEVEL, test_per_level=PER_LEVEL)
        config.rpn = dataclasses.replace(config.rpn, samples=EVERY_ANCHOR, **kept)
        config.roi = dataclasses.replace(config.roi, samples=EVERY_ROI, positive_fraction=POSITIVES)
    config.max_detections = 400 if name.startswith("fcos") else 30
    model = nnx.eval_shape(lambda: detector(config, rngs=nnx.Rngs(0)))
    weights.assign(model, arrays(theirs(name)), table(model))
    return nnx.split(model)


def prepared(model, images, targets=None):
    """Images (and ground truth) as torchvision's model resizes and pads them."""
    listed, targets = model.transform(images, targets)
    return listed.tensors.numpy().transpose(0, 2, 3, 1), np.float32(listed.image_sizes), targets


def test_a_deeper_network_takes_all_weights():
    with torch.device("meta"):
        network = torchvision.models.resnet101(weights=None)
    tensors = arrays(network.to_empty(device="cpu"))
    backbone = nnx.eval_shape(lambda: ResNet(resnet101(outputs=(1, 2, 3, 4)), rngs=nnx.Rngs(0)))
    weights.assign(backbone, tensors, weights.RESNET, skip=weights.CLASSIFIER)  # all that there are, in their shapes
    kernel = tensors["layer3.22.conv3.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(backbone.stages[2][22].convs[2].kernel[...], kernel)


def test_resnet_features():
    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None).eval()
    shake(network, torch.stack(pictures([(96, 128)] * 4)))
    backbone = nnx.eval_shape(lambda: ResNet(resnet50(outputs=(1, 2, 3, 4)), rngs=nnx.Rngs(0)))
    weights.assign(backbone, arrays(network), weights.RESNET, skip=weights.CLASSIFIER)
    graph, state = nnx.split(backbone)
    image = np.random.default_rng(0).normal(size=(2, 96, 128, 3)).astype(np.float32)
    extent = Extent.of(np.float32([[96, 128]] * 2))
    features = jax.jit(lambda state, image: nnx.merge(graph, state)(image, extent))(state, image)
    with torch.no_grad():
        x = torch.from_numpy(image.transpose(0, 3, 1, 2))
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for stage, feature in zip("1234", features, strict=True):
            x = getattr(network, f"layer{stage}")(x)
            expected = x.numpy().transpose(0, 2, 3, 1)
            assert expected.std() > 0.1
            np.testing.assert_allclose(feature, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def detections(name, *batches, **changes):
    """Ours and theirs on each image of some batches of sizes, in the images' own pixels, with the size."""
    model = theirs(name)
    graph, state = ours(name, **changes)
    predict = jax.jit(lambda state, *args: nnx.merge(graph, state).predict(*args))
    for sizes in batches:
        images = pictures(sizes)
        with torch.no_grad():
            expected = model(images)
            batch, image_sizes, _ = prepared(model, images)
        assert len({tuple(np.ceil(size / 32)) for size in image_sizes}) == 1  # no image sees another's padding
        found = predict(state, batch, image_sizes)
        for k, (size, their) in enumerate(zip(sizes, expected, strict=True)):
            valid = np.asarray(found.valid[k])
            scale = np.float32(size) / image_sizes[k]
            boxes = np.asarray(found.boxes[k])[valid] * np.tile(scale[::-1], 2)
            masks = None if found.masks is None else np.asarray(found.masks[k])[valid]
            our = boxes, np.asarray(found.scores[k])[valid], np.asarray(found.labels[k])[valid] + 1, masks
            yield size, our, {key: value.numpy() for key, value in their.items()}


def paired(boxes, scores, labels, their, *, score=1e-4, edge=0.05) -> np.ndarray:
    """Index of the one detection of theirs that equals each of ours; nearly equal scores may have changed places."""
    np.testing.assert_allclose(scores, their["scores"], atol=score, rtol=0)
    same = (labels[:, None] == their["labels"]) & (np.abs(scores[:, None] - their["scores"]) <= score)
    same &= np.abs(boxes[:, None] - their["boxes"]).max(-1) <= edge
    assert same.any(0).all(), f"without a partner of ours: {np.flatnonzero(~same.any(0))}"
    assert same.any(1).all(), f"without a partner of theirs: {np.flatnonzero(~same.any(1))}"
    return same.argmax(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detections(name):
    """On landscape images; the losses are compared on portrait ones."""
    labels_seen, sizes_seen = set(), set()
    for size, (boxes, scores, labels, masks), their in detections(name, LANDSCAPE[:2], MORE[:2]):
        assert len(their["scores"]) >= 10 and np.ptp(their["scores"]) > 0.1
        pair = paired(boxes, scores, labels, their)
        labels_seen |= set(labels)
        if masks is not None:
            # Into their boxes: which pixel an edge that is all but whole becomes hangs on the box's last digit.
            a = paste_masks(masks, their["boxes"][pair], size, whole_pixels=True) >= 0.5
            b = their["masks"][pair, 0] >= 0.5
            assert b.any((1, 2)).mean() > 0.5
            union = (a | b).sum((1, 2))
            assert ((a & b).sum((1, 2)) >= 0.99 * union).all()
        sizes_seen.add(size)
    assert len(labels_seen) >= 3 and len(sizes_seen) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fcos_resnet50_fpn"])
def test_photographs(name, test_data):
    """From the files on: of various sizes, landscape and portrait, as predict.py and torchvision find objects."""
    model = theirs(name)
    graph, state = ours(name)
    predict = jax.jit(lambda state, *args: nnx.merge(graph, state).predict(*args))
    limits = dict(short_side=SIZES["min_size"], long_side=SIZES["max_size"])
    config = dataclasses.replace(PretrainedFasterRCNN().data, **limits)
    of_size = {size_of(file): file for file in sorted((test_data / "voc12_100" / "images").glob("*.jpg"))[:10]}
    files = list(of_size.values())[:5]
    layout, found = layout_for([size_of(file) for file in files], config), 0
    for file in files:
        photo = read_photo(file)
        finding = find_objects(functools.partial(predict, state), photo, layout, config, least=0.0)
        with torch.no_grad():
            (expected,) = model([torch.from_numpy(photo.transpose(2, 0, 1) / np.float32(255))])
        expected = {key: value.numpy() for key, value in expected.items()}
        objects = finding.objects
        paired(objects.boxes, finding.scores, objects.labels + 1, expected, score=1e-3, edge=0.1)
        found += len(finding.scores)
    assert len(files) == 5 and len({height > width for height, width in of_size}) == 2 and found >= 50


@pytest.mark.slow
def test_candidates_of_fcos_are_pairs(monkeypatch):
    """Where a level has more pairs over the threshold than it may propose."""
    per_level = 30
    monkeypatch.setattr(theirs("fcos_resnet50_fpn"), "topk_candidates", per_level)
    name = "fcos_resnet50_fpn"
    for _, (boxes, scores, labels, _), their in detections(name, LANDSCAPE[:1], candidates_per_level=per_level):
        paired(boxes, scores, labels, their)


def ground_truth(sizes, proposals):
    """Six boxes an image with elliptic masks, as torchvision takes them: labels from 1.

    Two are random; two near proposals, so that both stages have positives to learn from; one is almost another, and one
    smaller than any anchor, so that low-quality matches decide.
    """
    rng = np.random.default_rng(8)
    targets = []
    for (height, width), candidates in zip(sizes, proposals, strict=True):
        sides = candidates[:, 2:] - candidates[:, :2]
        near = candidates[(sides > 16).all(1)][[2, 7]] + rng.uniform(-2.0, 2.0, (2, 4))
        low = rng.uniform(0.0, 0.5, (2, 2)) * (width, height)
        high = low + rng.uniform(0.25, 0.5, (2, 2)) * (width, height)
        boxes = np.concatenate([np.concatenate([low, high], 1), near]).clip(0, [width, height] * 2)
        twin = boxes[:1] + [[0.0, 0.0, -4.0, -3.0]]
        speck = boxes[1:2, [0, 1, 0, 1]] + [[0.0, 0.0, 5.0, 6.0]]
        boxes = np.concatenate([boxes, twin, speck]).astype(np.float32)
        y, x = np.mgrid[:height, :width] + 0.5
        masks = []
        for x1, y1, x2, y2 in boxes:
            reach = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2
            masks.append(reach <= 1.0)
        labels = rng.integers(1, CLASSES + 1, len(boxes))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_losses(name):
    """Each part, on the same samples: all anchors and all proposals."""
    model, is_fcos = theirs(name), name.startswith("fcos")
    images = pictures(PORTRAIT[:2])
    targets = ground_truth(PORTRAIT[:2], proposals(theirs("fasterrcnn_resnet50_fpn") if is_fcos else model, images))
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
    assert found["positives"] > batch.labels.size  # more than the ground truth's own boxes
    for part, their in parts.items():
        np.testing.assert_allclose(found[part], expected[their], rtol=1e-4, err_msg=part)
