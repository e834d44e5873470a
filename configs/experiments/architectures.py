"""The published losses on detectors that they were not searched with, on digit scenes.

python launch/compare.py --config=configs/experiments/architectures.py:atss
python launch/compare.py --config=configs/experiments/architectures.py:cascade_rcnn
python launch/compare.py --config=configs/experiments/architectures.py:mask_rcnn

What is scored of Mask R-CNN are its boxes.  Cost and AP are in docs/results.md.
"""

from cse_jax.errors import InputError
from detectors.data.datasets import DataConfig
from detectors.models.atss import atss_tiny
from detectors.models.cascade_rcnn import cascade_rcnn_tiny
from detectors.models.mask_rcnn import mask_rcnn_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import ComparisonRun

_TWO_STAGE = ("CEI |", "A_cls |", "| A_reg", "A_cls | A_reg")


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
            pairs=_TWO_STAGE,
            detector=cascade_rcnn_tiny(),
            train=training_in_seconds(learning_rate=0.0015),
            schedule=ScheduleConfig(final=400, start=2000),
        )
    if detector == "mask_rcnn":
        return ComparisonRun(
            name="architectures_mask_rcnn",
            pairs=_TWO_STAGE,
            detector=mask_rcnn_tiny(),
            train=training_in_seconds(learning_rate=0.0015),
            schedule=ScheduleConfig(final=400, start=2000),
            data=DataConfig(mask_stride=1),
        )
    raise InputError(f"{detector!r} has no such table; use atss, cascade_rcnn or mask_rcnn")
