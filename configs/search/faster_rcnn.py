"""Faster R-CNN on digit scenes: the multi-class space, otherwise as the default.

python launch/search.py --config=configs/search/faster_rcnn.py
"""

from detectors.training.run_config import FasterRCNNRun, search_in_minutes, training_in_seconds
from detectors.training.search_trainer import ScheduleConfig


def get_config() -> FasterRCNNRun:
    return FasterRCNNRun(
        name="faster_rcnn",
        search=search_in_minutes(),
        train=training_in_seconds(learning_rate=0.0015),
        schedule=ScheduleConfig(verify=80, proxy=(180, 500), final=500),
    )
