"""Faster R-CNN from scratch on BCCD blood cells at 320 x 240 pixels, for CPUs.

python launch/train.py --config=configs/train/faster_rcnn_bccd.py --config.data.root=/data/BCCD
python launch/train.py --config=configs/train/faster_rcnn_bccd.py --config.data.root=/data/BCCD --config.loss.box=A_reg

The data set is the folder BCCD of https://github.com/Shenggan/BCCD_Dataset: 252 images to train on, 40 to select on and
72 to test on.  Cost and AP are in docs/benchmarks.md.
"""

from detectors.data.voc import VocData
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.models.fpn import FPNConfig
from detectors.models.resnet import small
from detectors.models.roi_head import RoIConfig
from detectors.models.rpn import RPNConfig
from detectors.training.run_config import TrainRun, training_in_seconds


def get_config() -> TrainRun:
    return TrainRun(
        name="faster_rcnn_bccd",
        detector=FasterRCNNConfig(
            classes=3,
            backbone=small(outputs=(2, 3, 4)),
            fpn=FPNConfig(channels=64, extra="none"),
            rpn=RPNConfig(
                scale=4.0, samples=128, per_level=300, test_per_level=300, train_proposals=200, test_proposals=200
            ),
            roi=RoIConfig(levels=3, finest_side=40.0, width=256, samples=64, positive_fraction=0.5),
            score_threshold=0.02,
            max_candidates=500,
        ),
        train=training_in_seconds(learning_rate=0.001, warmup_steps=50),
        data=VocData(
            train=("trainval",),
            test=("test",),
            select_images=40,
            names=("RBC", "WBC", "Platelets"),
            short_side=240,
            long_side=320,
            cache=True,
        ),
        epochs=20,
        evaluate_epochs=2,
        save_every=100,
    )
