"""Mask R-CNN on digit scenes: 500 steps of 8 images.

python launch/train.py --config=configs/train/mask_rcnn_digits.py
python launch/train.py --config=configs/train/mask_rcnn_digits.py --config.loss.box=A_reg
"""

from detectors.data.datasets import DataConfig
from detectors.models.mask_rcnn import mask_rcnn_tiny
from detectors.training.run_config import TrainRun, training_in_seconds


def get_config() -> TrainRun:
    return TrainRun(
        detector=mask_rcnn_tiny(),
        name="mask_rcnn_digits",
        train=training_in_seconds(learning_rate=0.0015),
        data=DataConfig(mask_stride=1),
        steps=500,
        evaluate_epochs=0,
        save_every=100,
    )
