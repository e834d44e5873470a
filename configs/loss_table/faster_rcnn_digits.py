"""A table of trained losses: Faster R-CNN on digit scenes, the multi-class space.

python launch/loss_table.py --config=configs/loss_table/faster_rcnn_digits.py
"""

from cse_jax.loss_table import written
from cse_jax.loss_table.config import LossTableConfig
from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import LossTableRun


def get_config() -> LossTableRun:
    return LossTableRun(
        name="faster_rcnn_digits",
        detector=faster_rcnn_tiny(),
        table=LossTableConfig(classification=written.MULTI_CLASS, regression=written.BOX, generated=150),
        train=training_in_seconds(learning_rate=0.0015),
        schedule=ScheduleConfig(overfit=80, table=(100, 200, 400), start=2000),
    )
