"""Search through every stage in about a minute on 2 cores, to show that it runs.

python launch/search.py --config=configs/search/one_minute.py

Such short trainings do not tell losses apart, so no candidate is rejected for its AP on one image per category, and the
result means nothing.
"""

import dataclasses

from cse_jax.search.config import BranchConfig, FilterConfig, FinalConfig, SearchConfig
from detectors.data.datasets import DataConfig
from detectors.data.digit_scenes import DigitScenesConfig
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun


def get_config() -> SearchRun:
    branch = BranchConfig(generations=1, population=1_000, max_overfit=2, max_proxy=2, proxy_seeds=1, parents=1)
    return SearchRun(
        name="one_minute",
        search=SearchConfig(
            classification=branch,
            regression=dataclasses.replace(branch),  # or a flag would change both
            filters=FilterConfig(overfit_tolerance=0.0),
            final=FinalConfig(seeds=1, fit_weights=(2.0,), branches=False),
        ),
        train=training_in_seconds(learning_rate=0.003, warmup_steps=10),
        schedule=ScheduleConfig(probe=(10, 20), probe_images=24, overfit=30, proxy=(20, 40), final=40),
        data=DataConfig(digit_scenes=DigitScenesConfig(train_images=200, select_images=40, test_images=40)),
    )
