"""FCOS from scratch on BCCD blood cells at 320 x 240 pixels, for CPUs.

python launch/train.py --config=configs/train/fcos_bccd.py --config.data.root=/data/BCCD
python launch/train.py --config=configs/train/fcos_bccd.py --config.data.root=/data/BCCD --config.loss.cls=B_cls

The data set is the folder BCCD of https://github.com/Shenggan/BCCD_Dataset: 252 images to train on, 40 to select on and
72 to test on.  Cost and AP are in docs/benchmarks.md.
"""

from detectors.data.voc import VocData
from detectors.models.fcos import FCOSConfig
from detectors.models.fpn import FPNConfig
from detectors.models.resnet import small
from detectors.training.run_config import TrainRun, training_in_seconds


def get_config() -> TrainRun:
    return TrainRun(
        name="fcos_bccd",
        detector=FCOSConfig(
            classes=3,
            backbone=small(outputs=(2, 3, 4)),
            fpn=FPNConfig(channels=64, extra="none"),
            towers=2,
            norm_groups=8,
            range_limits=(48.0, 96.0),
            score_threshold=0.02,
            candidates_per_level=300,
            max_candidates=500,
        ),
        train=training_in_seconds(learning_rate=0.002, warmup_steps=50),
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
