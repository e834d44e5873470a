"""The published losses on another data set than digit scenes: BCCD blood cells at 160 x 120 pixels.

python launch/compare.py --config=configs/experiments/data_sets.py:fcos --config.data.root=/data/BCCD
python launch/compare.py --config=configs/experiments/data_sets.py:faster_rcnn --config.data.root=/data/BCCD

The data set is the folder BCCD of https://github.com/Shenggan/BCCD_Dataset.  Cost and AP are in docs/results.md.
"""

from cse_jax.errors import InputError
from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.models.fcos import fcos_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import ComparisonRun, bccd_at_120

_BOXES = ("IoU = | IoU", "-log IoU = | -log IoU", "DIoU = | diou_loss", "CIoU = | ciou_loss")


def get_config(detector: str = "fcos") -> ComparisonRun:
    if detector == "fcos":
        return ComparisonRun(
            name="data_sets_fcos",
            pairs=("CE = CE |", *_BOXES, "B_cls = B_cls |", "B_reg = | B_reg", "B = B_cls | B_reg"),
            tuned=40,
            detector=fcos_tiny(classes=3),
            train=training_in_seconds(learning_rate=0.002),
            schedule=ScheduleConfig(proxy=(400,), final=400, start=1000),
            data=bccd_at_120(),
        )
    if detector == "faster_rcnn":
        return ComparisonRun(
            name="data_sets_faster_rcnn",
            pairs=("CEI = CEI |", *_BOXES, "A_cls = A_cls |", "A_reg = | A_reg", "A = A_cls | A_reg"),
            tuned=40,
            detector=faster_rcnn_tiny(classes=3),
            train=training_in_seconds(learning_rate=0.0015),
            schedule=ScheduleConfig(proxy=(400,), final=400, start=1000),
            data=bccd_at_120(),
        )
    raise InputError(f"{detector!r} has no such table; use fcos or faster_rcnn")
