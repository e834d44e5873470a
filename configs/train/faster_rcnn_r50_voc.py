r"""Faster R-CNN with ResNet-50 and FPN on Pascal VOC 2007 + 2012, 12 passes over the images (12,410 steps of 16).

python launch/train.py --config=configs/train/faster_rcnn_r50_voc.py --config.data.root=/data/VOCdevkit \
    --config.weights.file=resnet50-0676ba61.pth

The weights are torchvision's, https://download.pytorch.org/models/resnet50-0676ba61.pth.
The schedule is MMDetection's: 4 epochs that hold each image three times.

Published mAP on test 2007 (authors' runs): CE + GIoU 79.6, CE + L1 79.5, A_cls + A_reg 80.4.
AP and cost of this implementation were not measured.
"""

from detectors.data.voc import VocData
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.training.run_config import TrainRun
from detectors.training.step import TrainConfig


def get_config() -> TrainRun:
    return TrainRun(
        name="faster_rcnn_r50_voc",
        detector=FasterRCNNConfig(classes=20),
        train=TrainConfig(learning_rate=0.01, warmup_steps=0, decay_at=(3 / 4,)),
        data=VocData(short_side=600, long_side=1000, workers=8),
        evaluate_epochs=3,
        save_every=2000,
    )
