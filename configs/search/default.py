"""FCOS on digit scenes: both branches, controls and a final comparison, in minutes on 2 cores.

python launch/search.py
"""

from detectors.training.run_config import FCOSRun, search_in_minutes, training_in_seconds
from detectors.training.search_trainer import ScheduleConfig


def get_config() -> FCOSRun:
    return FCOSRun(
        name="default",
        search=search_in_minutes(),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(verify=80, proxy=(200, 550), final=700),
    )
