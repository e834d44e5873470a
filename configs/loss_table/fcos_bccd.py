"""A table of trained losses: FCOS on BCCD blood cells.

python launch/loss_table.py --config=configs/loss_table/fcos_bccd.py --config.data.root=/data/BCCD

The data set is the folder BCCD of https://github.com/Shenggan/BCCD_Dataset.
"""

from cse_jax.loss_table import written
from cse_jax.loss_table.config import LossTableConfig
from detectors.models.fcos import fcos_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import LossTableRun, bccd_at_120


def get_config() -> LossTableRun:
    return LossTableRun(
        name="fcos_bccd",
        detector=fcos_tiny(classes=3),
        table=LossTableConfig(classification=written.BINARY_CLASS, regression=written.BOX, generated=100),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(overfit=80, table=(100, 200, 400), start=1000),
        data=bccd_at_120(),
    )
