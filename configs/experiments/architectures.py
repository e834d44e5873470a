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
_TABLES = {  # detector, pairs, learning rate
    "atss": (atss_tiny, ("CE |", "B_cls |", "| B_reg", "B_cls | B_reg"), 0.002),
    "cascade_rcnn": (cascade_rcnn_tiny, _TWO_STAGE, 0.0015),
    "mask_rcnn": (mask_rcnn_tiny, _TWO_STAGE, 0.0015),
}


def get_config(detector: str = "atss") -> ComparisonRun:
    if detector not in _TABLES:
        raise InputError(f"{detector!r} has no such table; use one of {', '.join(_TABLES)}")
    make, pairs, learning_rate = _TABLES[detector]
    return ComparisonRun(
        name=f"architectures_{detector}",
        pairs=pairs,
        detector=make(),
        train=training_in_seconds(learning_rate=learning_rate),
        schedule=ScheduleConfig(final=400, start=2000),
        data=DataConfig(mask_stride=1 if detector == "mask_rcnn" else 0),
    )
