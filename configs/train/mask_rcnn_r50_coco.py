r"""Mask R-CNN with ResNet-50 and FPN on COCO 2017, 12 epochs of 16 images (87,960 steps).

python launch/train.py --config=configs/train/mask_rcnn_r50_coco.py --config.data.root=/data/coco \
    --config.weights.file=resnet50-0676ba61.pth
python launch/train.py --config=configs/train/mask_rcnn_r50_coco.py ... \
    --config.loss.cls=A_cls --config.loss.box=A_reg

The weights are torchvision's, https://download.pytorch.org/models/resnet50-0676ba61.pth.

Published AP of boxes on val2017 (authors' runs): CE + GIoU 38.5, CE + Smooth L1 38.2, A_cls + A_reg 39.1.
AP and cost of this implementation were not measured.  With less memory use --config.train.batch_size=4 (the learning
rate scales with it), --config.train.accumulate=4 or --config.train.compute=bfloat16.
"""

from detectors.data.coco import CocoData
from detectors.models.mask_rcnn import MaskRCNNConfig
from detectors.training.run_config import TrainRun
from detectors.training.step import TrainConfig


def get_config() -> TrainRun:
    return TrainRun(
        name="mask_rcnn_r50_coco",
        detector=MaskRCNNConfig(),
        train=TrainConfig(),
        data=CocoData(workers=8, mask_stride=4),
        evaluate_epochs=1,
        save_every=2000,
    )
