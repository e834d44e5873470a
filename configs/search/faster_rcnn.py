"""Search for Faster R-CNN on digit scenes: the multi-class space, otherwise as in default.py.

python launch/search.py --config=configs/search/faster_rcnn.py
"""

from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        detector=faster_rcnn_tiny(),
        name="faster_rcnn",
        search=search_in_minutes(),
        train=training_in_seconds(learning_rate=0.0015),
        schedule=ScheduleConfig(overfit=80, proxy=(200, 400), final=400, start=2000),
    )
