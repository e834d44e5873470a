"""Search for Mask R-CNN on digit scenes: otherwise as in faster_rcnn.py. What is compared is the AP of boxes.

python launch/search.py --config=configs/search/mask_rcnn.py

Cost and AP of the search were not measured; a training's noise is in docs/benchmarks.md.
"""

from detectors.data.datasets import DataConfig
from detectors.models.mask_rcnn import mask_rcnn_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        name="mask_rcnn",
        search=search_in_minutes(),
        detector=mask_rcnn_tiny(),
        train=training_in_seconds(learning_rate=0.0015),
        schedule=ScheduleConfig(overfit=80, proxy=(200, 400), final=400, start=2000),
        data=DataConfig(mask_stride=1),
    )
