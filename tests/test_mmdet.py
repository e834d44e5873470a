"""Exported losses in MMDetection's own heads, by the lines of config that the exported files print."""

import ast
import pathlib
import re
import sys
import textwrap
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

warnings.filterwarnings("ignore")  # of packages that are older than what they import
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
import mmcv_standin  # noqa: E402, F401  (skips all of this without MMDetection)
import mmdet  # noqa: E402
import torch  # noqa: E402
from clients import train  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from cse_jax import export  # noqa: E402
from cse_jax.language import spaces, zoo  # noqa: E402
from detectors import losses  # noqa: E402

CONFIGS = pathlib.Path(mmdet.__file__).parent / ".mim" / "configs"
BASES = {
    "Faster and Mask R-CNN": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "Cascade R-CNN": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "ATSS": "atss/atss_r50_fpn_1x_coco.py",
    "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "GFL": "gfl/gfl_r50_fpn_1x_coco.py",
}
WEIGHTS = {"bbox": 2.5, "cls": 1.5}
BOXES = torch.tensor([[4.0, 6.0, 60.0, 70.0], [30.0, 20.0, 120.0, 100.0], [70.0, 80.0, 90.0, 110.0]])


def printed_lines(code, detector):
    """The lines of config that a file's docstring has for a detector."""
    docstring = ast.get_docstring(ast.parse(code))
    imports = re.search(r"custom_imports = .*", docstring)[0]
    (lines,) = re.findall(rf"^[^\n]*\b{detector}\b[^\n]*:\n\n((?:    .*\n?)+)", docstring, re.MULTILINE)
    return f"{imports}\n{textwrap.dedent(lines)}"


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """The config of a detector with an exported loss, read by mmengine from the lines that are printed."""
    monkeypatch.syspath_prepend(tmp_path)

    def configured(name, space, detector, part):
        loss = export.prepare(zoo.find(name, space), weight=WEIGHTS[part], simplified=False)
        code = export.FORMATS["mmdet"](loss)
        lines = printed_lines(code, detector)
        file = re.search(r'imports=\["(\w+)"\]', lines)[1]
        (tmp_path / f"{file}.py").write_text(code)
        sys.modules.pop(file, None)
        path = tmp_path / "config.py"
        path.write_text(f"_base_ = [{str(CONFIGS / BASES[detector])!r}]\n{lines}")
        return Config.fromfile(path)

    return configured


def head_of(config):
    """The head, built as the detector builds it, but with few channels."""
    model = config.model
    if "roi_head" not in model:
        model.bbox_head.update(feat_channels=64, stacked_convs=1)
        return MODELS.build(model.bbox_head | {"train_cfg": model.get("train_cfg"), "test_cfg": model.test_cfg})
    stages = model.roi_head.bbox_head
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.fc_out_channels = 64
    return MODELS.build(model.roi_head | {"train_cfg": model.train_cfg.rcnn, "test_cfg": model.test_cfg.rcnn})


def total(head):
    """The loss of a head on random features of an image, which are always the same."""
    torch.manual_seed(0)
    sample = DetDataSample(metainfo={"img_shape": (128, 128), "pad_shape": (128, 128), "batch_input_shape": (128, 128)})
    sample.gt_instances = InstanceData(bboxes=BOXES, labels=torch.tensor([3, 7, 3]))
    levels = [torch.randn(1, 256, 128 // stride, 128 // stride) for stride in (8, 16, 32, 64, 128)]
    if hasattr(head, "bbox_roi_extractor"):
        shifts = torch.randn(64, 4) * 6
        proposals = InstanceData(
            bboxes=BOXES.repeat(22, 1)[:64] + shifts, scores=torch.ones(64), labels=torch.zeros(64)
        )
        found = head.loss(levels[:4], [proposals], [sample])
    else:
        found = head.loss(levels, [sample])
    return sum(sum(value) if isinstance(value, list) else value for name, value in found.items() if "loss" in name)


def run(head):
    """Takes the gradient of a head's loss; returns what the searched loss was given."""
    given = {}

    def keep(module, arguments, options, result):
        given.setdefault(type(module).__name__, (arguments, options, result))

    for module in head.modules():
        if type(module).__name__.startswith("Searched") and not hasattr(module, "bbox_coder"):
            module.register_forward_hook(keep, with_kwargs=True)
    total(head).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in head.parameters())
    ((arguments, options, result),) = given.values()
    return arguments, options, float(result)


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


@pytest.mark.parametrize("detector", BASES)
@pytest.mark.parametrize("name", ["-log IoU", "B_reg"])
def test_box_losses_in_their_heads(configured, detector, name):
    arguments, options, result = run(head_of(configured(name, spaces.BOX, detector, "bbox")))
    pred, target, *rest = arguments
    weight, factor = rest[0] if rest else options.get("weight"), options["avg_factor"]
    if weight.dim() == 2:
        weight = weight.mean(-1)
    rows = weight > 0
    sides = {tuple(side) for side in (BOXES[:, 2:] - BOXES[:, :2]).tolist()}
    if detector not in ("FCOS", "GFL"):  # decoded: these are the objects' boxes, in pixels
        assert {tuple(side) for side in (target[rows][:, 2:] - target[rows][:, :2]).round().tolist()} <= sides
    term = losses.term(zoo.find(name, spaces.BOX), WEIGHTS["bbox"])
    p, t = array(pred[rows]), array(target[rows])
    each = losses.box_loss(
        term, predicted=p, target=t, predicted_offsets=p, target_offsets=t, mask=jnp.ones(len(p), bool)
    )
    np.testing.assert_allclose(result, float((each * array(weight[rows])).sum()) / float(factor), rtol=2e-4)


@pytest.mark.parametrize("detector", ["RetinaNet", "ATSS", "FCOS", "GFL"])
@pytest.mark.parametrize("name", ["focal", "B_cls"])
def test_sigmoid_losses_in_their_heads(configured, detector, name):
    head = head_of(configured(name, spaces.BINARY_CLASS, detector, "cls"))
    seen = {}
    head.loss_cls.register_forward_pre_hook(lambda module, _: seen.update({"iou": module.iou} | seen))
    arguments, options, result = run(head)
    logits, target, *weight = arguments
    labels, iou = target if isinstance(target, tuple) else (target, seen["iou"])
    if name != "focal":
        assert iou is not None and ((iou >= 0) & (iou <= 1)).all()
        assert iou[labels < 80].max() > 0
    y = np.eye(81, dtype=np.float32)[labels.numpy()][:, :80]
    quality = y if iou is None else y * iou.numpy()[:, None]
    term = losses.term(zoo.find(name, spaces.BINARY_CLASS), WEIGHTS["cls"])
    each = losses.binary_class_loss(term, logits=array(logits), quality=jnp.asarray(quality), labels=jnp.asarray(y))
    rows = weight[0].numpy() if weight else options.get("weight")
    each = np.asarray(each.sum(-1)) * (1.0 if rows is None else np.asarray(rows))
    np.testing.assert_allclose(result, each.sum() / float(options["avg_factor"]), rtol=1e-4)


@pytest.mark.parametrize("detector", ["Faster and Mask R-CNN", "Cascade R-CNN"])
@pytest.mark.parametrize("name", ["CE", "A_cls"])
def test_softmax_losses_in_their_heads(configured, detector, name):
    config = configured(name, spaces.MULTI_CLASS, detector, "cls")
    (logits, labels, weight), options, result = run(head_of(config))
    y = np.eye(81, dtype=np.float32)[labels.numpy()]
    iou = np.ones(len(y), np.float32)
    if name != "CE":
        iou = np.where(labels.numpy() < 80, options["iou"].numpy(), 1.0)
        assert (iou[labels.numpy() < 80] < 1).any()
    term = losses.term(zoo.find(name, spaces.MULTI_CLASS), WEIGHTS["cls"])
    each = losses.multi_class_loss(term, logits=array(logits), labels=jnp.asarray(y), iou=jnp.asarray(iou))
    assert (weight == 1).all()
    np.testing.assert_allclose(result, float(each.sum()) / options["avg_factor"], rtol=1e-4)


@pytest.mark.parametrize("detector", BASES)
@pytest.mark.parametrize("part", ["bbox", "cls"])
def test_heads_learn(configured, detector, part):
    """All losses of the head, on one image, fall in 20 steps."""
    softmax = detector in ("Faster and Mask R-CNN", "Cascade R-CNN")
    cls = ("A_cls", spaces.MULTI_CLASS) if softmax else ("B_cls", spaces.BINARY_CLASS)
    head = head_of(configured(*(cls if part == "cls" else ("A_reg", spaces.BOX)), detector, part))
    values = train(lambda: total(head), head.parameters(), rate=1e-4)
    print(f"{detector}, {part}: {values[0]:.3g} -> {values[-1]:.3g}")
    assert values[-1] < 0.9 * values[0]


def test_two_losses_live_in_one_process(configured):
    for name, part, space in (
        ("CEI", "cls", spaces.MULTI_CLASS),
        ("GIoU", "bbox", spaces.BOX),
        ("IoU", "bbox", spaces.BOX),
    ):
        for _ in range(2):  # a file that is imported again registers again
            configured(name, space, "Faster and Mask R-CNN", part)
    assert len([name for name in MODELS.module_dict if name.startswith("SearchedBbox")]) >= 2
