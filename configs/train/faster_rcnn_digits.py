"""Faster R-CNN on digit scenes: 500 steps of 8 images.

python launch/train.py --config=configs/train/faster_rcnn_digits.py
python launch/train.py --config=configs/train/faster_rcnn_digits.py --config.loss.box=l1_loss
"""

from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.training.run_config import TrainRun, training_in_seconds


def get_config() -> TrainRun:
    return TrainRun(
        detector=faster_rcnn_tiny(),
        name="faster_rcnn_digits",
        train=training_in_seconds(learning_rate=0.0015),
        steps=500,
        evaluate_epochs=0,
        save_every=100,
    )
