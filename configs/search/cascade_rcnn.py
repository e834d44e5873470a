"""Search for Cascade R-CNN on digit scenes: one loss for its three stages, otherwise as in faster_rcnn.py.

python launch/search.py --config=configs/search/cascade_rcnn.py

Cost and AP were not measured.
"""

from detectors.models.cascade_rcnn import cascade_rcnn_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        name="cascade_rcnn",
        search=search_in_minutes(),
        detector=cascade_rcnn_tiny(),
        train=training_in_seconds(learning_rate=0.0015),
        schedule=ScheduleConfig(overfit=80, proxy=(200, 400), final=400, start=2000),
    )
