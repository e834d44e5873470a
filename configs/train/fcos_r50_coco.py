r"""FCOS with ResNet-50 and FPN on COCO 2017, 12 epochs of 16 images (87,960 steps).

python launch/train.py --config=configs/train/fcos_r50_coco.py --config.data.root=/data/coco \
    --config.weights.file=resnet50_caffe.pth
python launch/train.py --config=configs/train/fcos_r50_coco.py ... \
    --config.loss.cls=B_cls --config.loss.box=B_reg

The weights are those of Detectron for ResNet-50 (open-mmlab://detectron/resnet50_caffe), with the stride in the first
convolution of a block, and images in blue, green, red that are not divided by a deviation.  For torchvision's weights
add --config.weights.bgr=False --config.detector.backbone.stride_in_1x1=False
--config.data.std="(58.395, 57.12, 57.375)".

Published AP on val2017 (authors' runs): focal + GIoU 38.8, B_cls + B_reg 39.6.
AP and cost of this implementation were not measured.  With less memory use --config.train.batch_size=4 (the learning
rate scales with it), --config.train.accumulate=4 or --config.train.compute=bfloat16.
"""

from detectors.data.coco import CocoData
from detectors.models.fcos import FCOSConfig
from detectors.training.initial_weights import WeightsConfig
from detectors.training.run_config import TrainRun
from detectors.training.step import TrainConfig


def get_config() -> TrainRun:
    return TrainRun(
        name="fcos_r50_coco",
        detector=FCOSConfig(),
        train=TrainConfig(
            learning_rate=0.01,
            warmup_ratio=1 / 3,
            bias_rate=2.0,
            bias_decay=0.0,
        ),
        data=CocoData(workers=8, std=(1.0, 1.0, 1.0)),
        weights=WeightsConfig(bgr=True),
        evaluate_epochs=1,
        save_every=2000,
    )
