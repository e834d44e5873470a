"""FCOS on digit scenes: 700 steps of 8 images.

python launch/train.py
python launch/train.py --config.loss.cls=varifocal_loss --config.loss.box=diou_loss --config.loss.box_weight=2
"""

from detectors.training.run_config import TrainRun, training_in_seconds


def get_config() -> TrainRun:
    return TrainRun(
        name="fcos_digits", train=training_in_seconds(learning_rate=0.002), steps=700, evaluate_epochs=0, save_every=100
    )
