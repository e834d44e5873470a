"""The paper's tables of loss combinations (6 and 7) on digit scenes, with controls that can hurt.

python launch/compare.py --config=configs/experiments/combinations.py:fcos
python launch/compare.py --config=configs/experiments/combinations.py:faster_rcnn

The published pair is the last row.  Cost and AP are in docs/results.md.
"""

from cse_jax.errors import InputError
from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import ComparisonRun

_BOXES = (
    "IoU = | IoU",
    "-log IoU = | -log IoU",
    "bounded IoU = | bounded_iou_loss",
    "DIoU = | diou_loss",
    "CIoU = | ciou_loss",
    "L1 = | l1_loss",
    "smooth L1 = | smooth_l1_loss",
    "A_reg = | A_reg",
    "B_reg = | B_reg",
)
_CLASSES = (
    "CE = CE |",
    "CEI = CEI |",
    "quality focal = quality_focal_loss |",
    "varifocal = varifocal_loss |",
    "GHM-C = ghm_c_loss |",
)


def get_config(detector: str = "fcos") -> ComparisonRun:
    if detector == "fcos":
        return ComparisonRun(
            name="combinations_fcos",
            pairs=(*_CLASSES, *_BOXES, "B_cls = B_cls |", "B = B_cls | B_reg"),
            tuned=40,
            train=training_in_seconds(learning_rate=0.002),
            schedule=ScheduleConfig(proxy=(400,), final=400, start=2000),
        )
    if detector == "faster_rcnn":
        return ComparisonRun(
            name="combinations_faster_rcnn",
            pairs=("CEI = CEI |", *_BOXES, "A_cls = A_cls |", "A = A_cls | A_reg"),
            tuned=40,
            detector=faster_rcnn_tiny(),
            train=training_in_seconds(learning_rate=0.0015),
            schedule=ScheduleConfig(proxy=(400,), final=400, start=2000),
        )
    raise InputError(f"{detector!r} has no such table; use fcos or faster_rcnn")
