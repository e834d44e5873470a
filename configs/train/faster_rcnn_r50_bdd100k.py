r"""Faster R-CNN with ResNet-50 and FPN on BDD100K, 12 epochs of 16 images (about 52,000 steps).

python launch/train.py --config=configs/train/faster_rcnn_r50_bdd100k.py --config.data.root=/data/bdd100k \
    --config.weights.file=resnet50-0676ba61.pth

The weights are torchvision's, https://download.pytorch.org/models/resnet50-0676ba61.pth.
The schedule is COCO's; the paper gives none for BDD100K.

Published AP on val: CE + GIoU 36.6, CE + L1 36.5, A_cls + A_reg 37.3.
AP and cost of this implementation were not measured.
"""

from detectors.data.bdd100k import Bdd100kData
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.training.run_config import TrainRun
from detectors.training.step import TrainConfig


def get_config() -> TrainRun:
    return TrainRun(
        name="faster_rcnn_r50_bdd100k",
        detector=FasterRCNNConfig(classes=10),
        train=TrainConfig(),
        data=Bdd100kData(workers=8),
        evaluate_epochs=1,
        save_every=2000,
    )
