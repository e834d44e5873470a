"""ATSS on digit scenes: 700 steps of 8 images.

python launch/train.py --config=configs/train/atss_digits.py
python launch/train.py --config=configs/train/atss_digits.py --config.loss.cls=B_cls --config.loss.box_weight=1
"""

from detectors.models.atss import atss_tiny
from detectors.training.run_config import TrainRun, training_in_seconds


def get_config() -> TrainRun:
    return TrainRun(
        detector=atss_tiny(),
        name="atss_digits",
        train=training_in_seconds(learning_rate=0.002),
        steps=700,
        evaluate_epochs=0,
        save_every=100,
    )
