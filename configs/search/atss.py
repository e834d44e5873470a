"""Search for ATSS on digit scenes: the binary-class space with boxes in pixels, otherwise as in default.py.

python launch/search.py --config=configs/search/atss.py

Cost and AP were not measured.
"""

from detectors.models.atss import atss_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        name="atss",
        search=search_in_minutes(),
        detector=atss_tiny(),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(overfit=80, proxy=(200, 400), final=400, start=2000),
    )
