"""A table of trained losses: FCOS on digit scenes.

python launch/loss_table.py --config=configs/loss_table/fcos_digits.py

What came out is in docs/benchmarks.md.
"""

from cse_jax.loss_table import written
from cse_jax.loss_table.config import LossTableConfig
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import LossTableRun


def get_config() -> LossTableRun:
    return LossTableRun(
        name="fcos_digits",
        table=LossTableConfig(classification=written.BINARY_CLASS, regression=written.BOX),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(overfit=80, table=(100, 200, 400), start=2000),
    )
