"""Search for FCOS on digit scenes: both branches, controls and a final comparison, in minutes on 2 cores.

python launch/search.py

Cost and AP are in docs/benchmarks.md.
"""

from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        name="default",
        search=search_in_minutes(),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(overfit=80, proxy=(200, 400), final=400, start=2000),
    )
