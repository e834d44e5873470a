"""The published losses on detectors that they were not searched with, on digit scenes.

python launch/compare.py --config=configs/experiments/architectures.py:atss
python launch/compare.py --config=configs/experiments/architectures.py:cascade_rcnn

Cost and AP are in docs/results.md.
"""

from cse_jax.errors import InputError
from detectors.models.atss import atss_tiny
from detectors.models.cascade_rcnn import cascade_rcnn_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.search_trainer import ScheduleConfig
from search_run import ComparisonRun


def get_config(detector: str = "atss") -> ComparisonRun:
    if detector == "atss":
        return ComparisonRun(
            name="architectures_atss",
            pairs=("CE |", "B_cls |", "| B_reg", "B_cls | B_reg"),
            detector=atss_tiny(),
            train=training_in_seconds(learning_rate=0.002),
            schedule=ScheduleConfig(final=400, start=2000),
        )
    if detector == "cascade_rcnn":
        return ComparisonRun(
            name="architectures_cascade_rcnn",
            pairs=("CEI |", "A_cls |", "| A_reg", "A_cls | A_reg"),
            detector=cascade_rcnn_tiny(),
            train=training_in_seconds(learning_rate=0.0015),
            schedule=ScheduleConfig(final=400, start=2000),
        )
    raise InputError(f"{detector!r} has no such table; use atss or cascade_rcnn")
