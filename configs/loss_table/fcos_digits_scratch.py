"""The losses of fcos_digits.py from scratch: do trainings with a shared start put losses in the same order?

python launch/loss_table.py --config=configs/loss_table/fcos_digits_scratch.py
python launch/loss_table.py --report=runs/fcos_digits.parquet --beside=runs/fcos_digits_scratch.parquet

Only the known and the hand-made losses, without the scores of the stages.
"""

from cse_jax.loss_table import written
from cse_jax.loss_table.config import LossTableConfig
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import LossTableRun


def get_config() -> LossTableRun:
    return LossTableRun(
        name="fcos_digits_scratch",
        table=LossTableConfig(
            classification=written.BINARY_CLASS, regression=written.BOX, generated=0, rejected=0, stages=False
        ),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(table=(700, 1000, 1400, 2000)),
    )
