"""Exported losses in torchvision's detectors."""

import copy
import functools

import numpy as np
import pytest
from clients import engine, exported, train
from torchvision_oracle import detection, torch, torchvision

from cse_jax.language import spaces

BOXES = [[4.0, 6.0, 60.0, 70.0], [30.0, 20.0, 90.0, 60.0], [50.0, 40.0, 62.0, 61.0]]


class Features(torch.nn.Module):
    """A backbone with two maps."""

    out_channels = 32

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 32, 8, stride=8)
        self.second = torch.nn.Conv2d(32, 32, 2, stride=2)

    def forward(self, images):
        first = torch.relu(self.first(images))
        return {"0": first, "1": torch.relu(self.second(first))}


ANCHORS = {"fcos": ((8,), (16,)), "retinanet": ((16, 32), (48, 64)), "fasterrcnn": ((16, 32), (48, 64))}


@functools.cache
def built(kind):
    torch.manual_seed(0)
    anchors = detection.anchor_utils.AnchorGenerator(ANCHORS[kind], ((1.0,),) * 2)
    size = dict(min_size=96, max_size=96)
    if kind != "fasterrcnn":
        cls = {"fcos": detection.FCOS, "retinanet": detection.RetinaNet}[kind]
        model = cls(Features(), 5, anchor_generator=anchors, **size).train()
        model.head.classification_head.cls_logits.bias.data.zero_()  # as it begins, background has hardly a loss
        model.head.regression_head.bbox_reg.bias.data.fill_(1.0 if kind == "fcos" else 0.1)
        return model
    return detection.FasterRCNN(
        Features(),
        rpn_anchor_generator=anchors,
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0", "1"], 3, 2),
        box_head=detection.faster_rcnn.TwoMLPHead(32 * 9, 64),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(64, 5),
        rpn_post_nms_top_n_train=40,
        box_batch_size_per_image=32,
        **size,
    ).train()


def detector(kind):
    return copy.deepcopy(built(kind))


def losses_of(model):
    """torchvision's losses of two images, one of them without objects."""
    torch.manual_seed(1)
    images = [torch.rand(3, 96, 96), torch.rand(3, 96, 96)]
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return model(images, [{"boxes": torch.tensor(BOXES), "labels": torch.tensor([3, 1, 4])}, none])


@pytest.mark.parametrize(
    ("kind", "space", "name", "key"),
    [
        ("fasterrcnn", spaces.MULTI_CLASS, "CE", "loss_classifier"),
        ("retinanet", spaces.BINARY_CLASS, "focal", "classification"),
        ("fcos", spaces.BINARY_CLASS, "focal", "classification"),
        ("fcos", spaces.BOX, "GIoU", "bbox_regression"),
    ],
)
def test_the_losses_that_torchvision_has_are_its_own(kind, space, name, key):
    expected = losses_of(detector(kind))
    model = exported("torchvision", space, name, weight=1.0).install(detector(kind))
    found = losses_of(model)
    for each in expected:
        torch.testing.assert_close(found[each], expected[each], rtol=1e-5, atol=1e-6)
    found[key].backward()


def searched(kind, **about):
    """A detector with both losses exchanged, and for each its space, name and file."""
    space, name = (spaces.MULTI_CLASS, "A_cls") if kind == "fasterrcnn" else (spaces.BINARY_CLASS, "B_cls")
    cls, box = exported("torchvision", space, name), exported("torchvision", spaces.BOX, "A_reg", **about)
    return box.install(cls.install(detector(kind))), (space, name, cls), (spaces.BOX, "A_reg", box)


@pytest.mark.parametrize("kind", ANCHORS)
def test_searched_losses_are_the_engine_s(kind):
    """On decoded boxes, with the IoU of each as quality; divided as torchvision divides."""
    model, *files = searched(kind, units="strides" if kind == "fcos" else "pixels")
    found = losses_of(model)
    background = 0 if kind == "fasterrcnn" else -1
    values = [
        [engine(space, name, given, background=background).sum() for given, _ in file.calls]
        for space, name, file in files
    ]
    (pred, truth), _ = files[1][2].calls[0]
    given, _ = files[0][2].calls[0]
    sides = {tuple(side) for side in (torch.tensor(BOXES)[:, 2:] - torch.tensor(BOXES)[:, :2]).tolist()}
    scales = (8, 16) if kind == "fcos" else (1,)
    for side in (truth[:, 2:] - truth[:, :2]).tolist():
        assert any((side[0] * scale, side[1] * scale) in sides for scale in scales)
    overlap = torch.diag(torchvision.ops.box_iou(pred, truth)).detach()
    labels, quality = given[1:]
    objects = labels > 0
    torch.testing.assert_close(quality[objects], overlap, rtol=1e-5, atol=1e-6)
    assert overlap.max() > (0.1 if kind == "fcos" else 0.5)
    if kind == "fasterrcnn":
        divided = [value[0] / len(labels) for value in values]
        assert (quality[~objects] == 1).all()
    else:
        divided = [sum(value) / len(truth) / (1 if kind == "fcos" else 2) for value in values]
        if kind == "retinanet":  # each image by its own objects, at least one
            divided[0] = (values[0][0] / len(truth) + values[0][1]) / 2
        assert (quality[~objects] == 0).all()
    keys = ("loss_classifier", "loss_box_reg") if kind == "fasterrcnn" else ("classification", "bbox_regression")
    np.testing.assert_allclose([found[key].item() for key in keys], divided, rtol=1e-4)


@pytest.mark.parametrize("kind", ANCHORS)
def test_training_lowers_the_loss(kind):
    model, *_ = searched(kind)
    values = train(lambda: sum(losses_of(model).values()), model.parameters())
    assert values[-1] < 0.9 * values[0]
    again = losses_of(copy.deepcopy(model))
    for name, value in losses_of(model).items():
        torch.testing.assert_close(again[name], value)
    with torch.no_grad():
        assert "boxes" in model.eval()([torch.rand(3, 96, 96)])[0]


def test_what_a_detector_cannot_take_is_told():
    with pytest.raises(ValueError, match="softmax loss needs a Faster"):
        exported("torchvision", spaces.MULTI_CLASS, "CE").install(detector("fcos"))
    with pytest.raises(ValueError, match="sigmoid loss needs a RetinaNet"):
        exported("torchvision", spaces.BINARY_CLASS, "focal").install(detector("fasterrcnn"))
    with pytest.raises(ValueError, match="only boxes of FCOS have a stride"):
        exported("torchvision", spaces.BOX, "A_reg", units="strides").install(detector("retinanet"))
    exported("torchvision", spaces.BOX, "GIoU", units="strides").install(detector("retinanet"))  # in any unit the same
