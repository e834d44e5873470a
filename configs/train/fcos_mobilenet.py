r"""FCOS on MobileNetV1, from ImageNet's weights, on a data set in COCO's format, at 320 pixels, for CPUs.

python launch/train.py --config=configs/train/fcos_mobilenet.py --config.data.root=/data/mine \
    --config.weights.file=mobilenet_v1.npz
python launch/train.py --config=configs/train/fcos_mobilenet.py --config.data.root=/data/mine \
    --config.detector.backbone.norm=gn --config.detector.backbone.frozen_blocks=-1    # from scratch

detectors.weights.load_mobilenet says what the file is.  Cost and AP are in docs/benchmarks.md.
"""

from detectors.data.coco import CocoData
from detectors.models.fcos import FCOSConfig
from detectors.models.fpn import FPNConfig
from detectors.models.mobilenet import MobileNetConfig
from detectors.training.run_config import TrainRun, training_in_seconds


def get_config() -> TrainRun:
    return TrainRun(
        name="fcos_mobilenet",
        detector=FCOSConfig(
            backbone=MobileNetConfig(),
            fpn=FPNConfig(channels=96, extra="none"),
            towers=2,
            norm_groups=8,
            range_limits=(64.0, 128.0),
            candidates_per_level=300,
            max_candidates=1000,
        ),
        train=training_in_seconds(learning_rate=0.001, warmup_steps=100),
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
