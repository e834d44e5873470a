"""Exported losses in Ultralytics' detection models."""

import copy
import functools
import types
import warnings

import numpy as np
import pytest
import torchvision_oracle  # noqa: F401  (registers torchvision's operators)
from clients import engine, exported, torch, train
from extras import need
from PIL import Image

from cse_jax.language import spaces

warnings.filterwarnings("ignore")  # of the packages that Ultralytics imports
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
open_image = Image.open
need("ultralytics")
from ultralytics import YOLO  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils import DEFAULT_CFG  # noqa: E402
from ultralytics.utils.metrics import bbox_iou  # noqa: E402

Image.open = open_image  # which Ultralytics replaces for the whole process, and with it for other tests


@functools.cache
def built(name):
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=4, verbose=False)
    model.args = types.SimpleNamespace(**vars(DEFAULT_CFG) | {"box": 1.0, "cls": 1.0, "epochs": 1})
    return model.train()


def detector(name="yolov8n"):
    return copy.deepcopy(built(name))


def losses_of(model):
    """Box and classification loss, and DFL's, of two images, one of them without objects, times their number."""
    boxes = torch.tensor([[0.4, 0.5, 0.5, 0.6], [0.7, 0.3, 0.4, 0.4], [0.2, 0.2, 0.3, 0.3]])
    batch = {
        "img": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)),
        "batch_idx": torch.zeros(3),
        "cls": torch.tensor([[1.0], [3.0], [0.0]]),
        "bboxes": boxes,
    }
    return model.loss(batch)[0]


def searched(model, **about):
    cls = exported("ultralytics", spaces.BINARY_CLASS, "B_cls")
    box = exported("ultralytics", spaces.BOX, "A_reg", **about)
    return box.install(cls.install(model)), cls, box


@pytest.mark.parametrize("units", ["pixels", "strides"])
def test_searched_losses_are_the_engine_s(units):
    model, cls, box = searched(detector(), units=units)
    given = {}
    original = model.criterion.bbox_loss.original
    original.register_forward_pre_hook(lambda _, inputs: given.update(inputs=inputs))
    found = losses_of(model).detach() / 2
    _, pred, _, target, scores, total, rows, _, stride = given["inputs"]
    scale = stride.expand(*rows.shape, 1)[rows] if units == "pixels" else 1.0
    ((boxes, truth), _), (elements, _) = box.calls[0], cls.calls[0]
    torch.testing.assert_close(boxes, pred[rows] * scale)
    torch.testing.assert_close(truth, target[rows] * scale)
    if units == "pixels":
        sides = torch.tensor([[32.0, 38.4], [25.6, 25.6], [19.2, 19.2]])
        assert torch.cdist(truth[:, 2:] - truth[:, :2], sides).amin(1).max() < 1e-3
    each = engine(spaces.BOX, "A_reg", (boxes, truth)) * scores[rows].sum(-1).numpy()
    quality, labels = elements[2], elements[1]
    assert ((quality > 0) == labels).all() and 0 < quality.max() <= 1
    values = engine(spaces.BINARY_CLASS, "B_cls", (elements[0], labels, quality))
    np.testing.assert_allclose(found[:2].numpy(), np.array([each.sum(), values.sum()]) / total.numpy(), rtol=2e-4)
    np.testing.assert_allclose(found[2].numpy(), losses_of(detector()).detach()[2] / 2, rtol=1e-5)


def test_iou_loss_is_that_of_their_iou():
    model = exported("ultralytics", spaces.BOX, "IoU", weight=1.0).install(detector())
    given = {}
    model.criterion.bbox_loss.original.register_forward_pre_hook(lambda _, inputs: given.update(inputs=inputs))
    found = losses_of(model)[0].detach() / 2
    _, pred, _, target, scores, total, rows, *_ = given["inputs"]
    iou = bbox_iou(pred[rows], target[rows], xywh=False)
    expected = ((1 - iou) * scores[rows].sum(-1, keepdim=True)).sum() / total
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_training_lowers_the_loss(name):
    model, *_ = searched(detector(name))
    values = train(lambda: losses_of(model).sum(), model.parameters())
    assert values[-1] < 0.9 * values[0]


def test_a_yolo_gets_its_losses_when_its_training_starts():
    yolo = YOLO("yolov8n.yaml", verbose=False)
    box = exported("ultralytics", spaces.BOX, "GIoU")
    assert box.install(yolo) is yolo
    own, averaged = detector(), detector()
    yolo.callbacks["on_train_start"][-1](types.SimpleNamespace(model=own, ema=types.SimpleNamespace(ema=averaged)))
    for model in (own, averaged):
        assert isinstance(model.criterion.bbox_loss, box.SearchedBboxLoss)
