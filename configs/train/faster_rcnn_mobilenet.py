r"""Faster R-CNN on MobileNetV1, from ImageNet's weights, on a data set in COCO's format, at 320 pixels, for CPUs.

python launch/train.py --config=configs/train/faster_rcnn_mobilenet.py --config.data.root=/data/mine \
    --config.weights.file=mobilenet_v1.npz
python launch/train.py --config=configs/train/faster_rcnn_mobilenet.py --config.data.root=/data/mine \
    --config.detector.backbone.norm=gn --config.detector.backbone.frozen_blocks=-1    # from scratch

detectors.weights.load_mobilenet says what the file is.  Cost and AP are in docs/benchmarks.md.
"""

from detectors.data.coco import CocoData
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.models.fpn import FPNConfig
from detectors.models.mobilenet import MobileNetConfig
from detectors.models.roi_head import RoIConfig
from detectors.models.rpn import RPNConfig
from detectors.training.run_config import TrainRun, training_in_seconds


def get_config() -> TrainRun:
    return TrainRun(
        name="faster_rcnn_mobilenet",
        detector=FasterRCNNConfig(
            backbone=MobileNetConfig(),
            fpn=FPNConfig(channels=96, extra="none"),
            rpn=RPNConfig(
                scale=4.0, samples=128, per_level=500, test_per_level=500, train_proposals=300, test_proposals=300
            ),
            roi=RoIConfig(levels=3, finest_side=48.0, width=512, samples=128),
            max_candidates=1000,
        ),
        train=training_in_seconds(learning_rate=0.0007, warmup_steps=100),
        data=CocoData(
            annotations="annotations/instances_{split}.json",
            images="images",
            mean=(127.5, 127.5, 127.5),
            std=(127.5, 127.5, 127.5),
            short_side=224,
            long_side=320,
        ),
        epochs=8,
        evaluate_epochs=2,
        save_every=250,
    )
