"""The paper's tables of loss combinations (6 and 7), at a size that runs on 2 cores.

python launch/compare.py --config=configs/experiments/combinations.py:fcos
python launch/compare.py --config=configs/experiments/combinations.py:faster_rcnn

The published pair is the last row, which is compared with all others.  Rows of the paper that are no formulas of i, u
and e (L1, smooth L1, DIoU, CIoU) or of one prediction alone (GHM) are left out.  Cost and AP are in docs/results.md.
"""

from cse_jax.errors import InputError
from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.search_trainer import ScheduleConfig
from search_run import ComparisonRun

_QUALITY_FOCAL = "(q - sigmoid(x)) * (q - sigmoid(x)) * -(q * log(sigmoid(x)) + (1 - q) * log(1 - sigmoid(x)))"
_BOXES = ("| IoU", "| -log IoU", "| A_reg", "| B_reg")


def get_config(detector: str = "fcos") -> ComparisonRun:
    if detector == "fcos":
        return ComparisonRun(
            name="combinations_fcos",
            pairs=("CE |", "CEI |", f"quality focal = {_QUALITY_FOCAL} |", *_BOXES, "B_cls |", "B_cls | B_reg"),
            seeds=8,
            train=training_in_seconds(learning_rate=0.002),
            schedule=ScheduleConfig(final=400, start=2000),
        )
    if detector == "faster_rcnn":
        return ComparisonRun(
            name="combinations_faster_rcnn",
            pairs=("CEI |", *_BOXES, "A_cls |", "A_cls | A_reg"),
            seeds=5,
            detector=faster_rcnn_tiny(),
            train=training_in_seconds(learning_rate=0.0015),
            schedule=ScheduleConfig(final=500),
        )
    raise InputError(f"{detector!r} has no such table; use fcos or faster_rcnn")
