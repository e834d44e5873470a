r"""Faster R-CNN with ResNet-101 and FPN on COCO 2017, 12 epochs of 16 images (87,960 steps).

python launch/train.py --config=configs/train/faster_rcnn_r101_coco.py --config.data.root=/data/coco \
    --config.weights.file=resnet101-63fe2227.pth
python launch/train.py --config=configs/train/faster_rcnn_r101_coco.py ... \
    --config.loss.cls=A_cls --config.loss.box=A_reg

The weights are torchvision's, https://download.pytorch.org/models/resnet101-63fe2227.pth.

Published AP on val2017 (authors' runs): CE + GIoU 39.6, CE + L1 39.4, A_cls + A_reg 40.2.
AP and cost of this implementation were not measured.  With less memory use --config.train.batch_size=4 (the learning
rate scales with it), --config.train.accumulate=4 or --config.train.compute=bfloat16.
"""

from detectors.data.coco import CocoData
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.models.resnet import resnet101
from detectors.training.run_config import TrainRun
from detectors.training.step import TrainConfig


def get_config() -> TrainRun:
    return TrainRun(
        name="faster_rcnn_r101_coco",
        detector=FasterRCNNConfig(backbone=resnet101(outputs=(1, 2, 3, 4))),
        train=TrainConfig(),
        data=CocoData(workers=8),
        evaluate_epochs=1,
        save_every=2000,
    )
