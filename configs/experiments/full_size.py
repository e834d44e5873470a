r"""The paper's tables at full size, for GPUs: a training of configs/train under published losses and controls.

python launch/compare.py --config=configs/experiments/full_size.py:faster_rcnn_r50_coco --config.data.root=/data/coco \
    --config.weights.file=resnet50-0676ba61.pth
python launch/compare.py --config=configs/experiments/full_size.py:faster_rcnn_r50_voc \
    --config.data.root=/data/VOCdevkit --config.weights.file=resnet50-0676ba61.pth

Each training has the data, the settings and the length of its config in configs/train.  AP and cost were not measured.
"""

import pathlib

import config_file
from cse_jax.errors import InputError
from cse_jax.language.spaces import BINARY_CLASS
from detectors.models import build_detector
from detectors.training.schedule import ScheduleConfig
from search_run import ComparisonRun

_STEPS = {
    "faster_rcnn_r50_coco": 87_960,
    "faster_rcnn_r101_coco": 87_960,
    "cascade_rcnn_r50_coco": 87_960,
    "mask_rcnn_r50_coco": 87_960,
    "fcos_r50_coco": 87_960,
    "atss_r50_coco": 87_960,
    "faster_rcnn_r50_voc": 12_410,
    "faster_rcnn_r50_bdd100k": 52_400,
}
_TWO_STAGE = (
    "L1 = | l1_loss",
    "IoU = | IoU",
    "DIoU = | diou_loss",
    "A_reg = | A_reg",
    "A_cls = A_cls |",
    "A = A_cls | A_reg",
)
_ONE_STAGE = (
    "CE = CE |",
    "DIoU = | diou_loss",
    "varifocal = varifocal_loss |",
    "B_reg = | B_reg",
    "B_cls = B_cls |",
    "B = B_cls | B_reg",
)


def get_config(training: str = "faster_rcnn_r50_coco") -> ComparisonRun:
    if training not in _STEPS:
        raise InputError(f"{training!r} has no such table; use one of {', '.join(_STEPS)}")
    run = config_file.load(str(pathlib.Path(__file__).parents[1] / "train" / f"{training}.py"))
    one_stage = build_detector(run.detector)[0].cls_space == BINARY_CLASS
    return ComparisonRun(
        name=f"full_size_{training}",
        pairs=_ONE_STAGE if one_stage else _TWO_STAGE,
        seeds=3,
        detector=run.detector,
        train=run.train,
        schedule=ScheduleConfig(final=_STEPS[training], save_every=run.save_every),
        data=run.data,
        weights=run.weights,
    )
