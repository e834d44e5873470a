"""Cascade R-CNN on digit scenes: 500 steps of 8 images.

python launch/train.py --config=configs/train/cascade_rcnn_digits.py
python launch/train.py --config=configs/train/cascade_rcnn_digits.py --config.loss.box=A_reg
"""

from detectors.training.run_config import CascadeRCNNTrainRun, training_in_seconds


def get_config() -> CascadeRCNNTrainRun:
    return CascadeRCNNTrainRun(
        name="cascade_rcnn_digits",
        train=training_in_seconds(learning_rate=0.0015),
        steps=500,
        evaluate_epochs=0,
        save_every=100,
    )
