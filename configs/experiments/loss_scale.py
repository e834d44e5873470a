"""Whether the gains of the published losses are those of another loss scale, on digit scenes.

python launch/compare.py --config=configs/experiments/loss_scale.py:faster_rcnn
python launch/compare.py --config=configs/experiments/loss_scale.py:fcos

Faster R-CNN trains under CE with other weights beside A_cls; FCOS averages the box loss over positives without their
weights, as the authors' code does.  Cost and AP are in docs/results.md.
"""

import dataclasses

from cse_jax.errors import InputError
from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.models.fcos import fcos_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import ComparisonRun


def get_config(detector: str = "faster_rcnn") -> ComparisonRun:
    if detector == "faster_rcnn":
        scaled = [f"CE x{factor} |" for factor in (0.25, 0.5, 0.75, 1.5, 2, 4)]
        return ComparisonRun(
            name="loss_scale_faster_rcnn",
            pairs=(*scaled, "A_cls |"),
            detector=faster_rcnn_tiny(),
            train=training_in_seconds(learning_rate=0.0015),
            schedule=ScheduleConfig(final=400, start=2000),
        )
    if detector == "fcos":
        scaled = [f"| GIoU x{factor}" for factor in (0.25, 0.5, 2, 4)]
        return ComparisonRun(
            name="loss_scale_fcos",
            pairs=(*scaled, "| B_reg x0.25", "| B_reg x0.5", "| B_reg x2", "| B_reg"),
            detector=dataclasses.replace(fcos_tiny(), weight_by_quality=False),
            train=training_in_seconds(learning_rate=0.002),
            schedule=ScheduleConfig(final=400, start=2000),
        )
    raise InputError(f"{detector!r} has no such table; use faster_rcnn or fcos")
