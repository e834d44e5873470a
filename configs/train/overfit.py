"""Overfits 20 images of a data set in COCO's format from scratch, as a check of detector and data, on a CPU.

python launch/train.py --config=configs/train/overfit.py:fcos --config.data.root=/data/mine
python launch/train.py --config=configs/train/overfit.py:mask_rcnn --config.data.root=/data/mine

The name after the colon is fcos, atss, faster_rcnn, cascade_rcnn or mask_rcnn.  The data are as in
configs/data/coco_format.py, with masks for mask_rcnn.
Cost and AP are in docs/benchmarks.md.
"""

import dataclasses

from cse_jax.errors import InputError
from detectors.data.coco import CocoData
from detectors.models.atss import ATSSConfig
from detectors.models.cascade_rcnn import CascadeRCNNConfig
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.models.fcos import FCOSConfig
from detectors.models.fpn import FPNConfig
from detectors.models.mask_rcnn import MaskConfig, MaskRCNNConfig
from detectors.models.resnet import small
from detectors.models.roi_head import RoIConfig
from detectors.models.rpn import RPNConfig
from detectors.training.run_config import TrainRun, training_in_seconds

RPN = RPNConfig(scale=4.0, samples=128, per_level=300, test_per_level=300, train_proposals=200, test_proposals=200)
ROI = RoIConfig(levels=4, finest_side=20.0, width=256, samples=64, positive_fraction=0.5)
DENSE = dict(
    backbone=small(outputs=(2, 3, 4)),
    towers=2,
    norm_groups=8,
    score_threshold=0.02,
    candidates_per_level=300,
    max_candidates=500,
)
TWO_STAGE = dict(backbone=small(outputs=(1, 2, 3, 4)), rpn=RPN, roi=ROI, score_threshold=0.02, max_candidates=500)
DETECTORS = {
    "fcos": FCOSConfig(range_limits=(48.0, 96.0), **DENSE),
    "atss": ATSSConfig(scale=4.0, **DENSE),
    "faster_rcnn": FasterRCNNConfig(**TWO_STAGE),
    "cascade_rcnn": CascadeRCNNConfig(**TWO_STAGE | {"roi": dataclasses.replace(ROI, class_agnostic=True)}),
    "mask_rcnn": MaskRCNNConfig(**TWO_STAGE, mask=MaskConfig(channels=64)),
}


def get_config(name: str = "fcos") -> TrainRun:
    if name not in DETECTORS:
        raise InputError(f"{name!r} is no detector; use {', '.join(DETECTORS)}")
    return TrainRun(
        name=f"overfit_{name}",
        detector=dataclasses.replace(DETECTORS[name], fpn=FPNConfig(channels=64, extra="none")),
        train=training_in_seconds(learning_rate=0.001, warmup_steps=100),
        data=CocoData(
            annotations="annotations/instances_{split}.json",
            images="images",
            train="train",
            test="train",
            limit=20,
            flip=0.0,
            short_side=192,
            long_side=256,
            mask_stride=4 if name == "mask_rcnn" else 0,
            cache=True,
        ),
        steps=600,
        evaluate_epochs=100,
        save_every=0,
    )
