"""Every stage of a search in about a minute on 2 cores: proves that it runs, finds nothing worth having.

So short trainings tell nothing, and reject nobody.

python launch/search.py --config=configs/search/one_minute.py
"""

import dataclasses

from cse_jax.search.branch import BranchConfig
from cse_jax.search.comparison import FinalConfig
from cse_jax.search.racing import FilterConfig
from cse_jax.search.run import SearchConfig
from detectors.data.datasets import DataConfig
from detectors.data.digit_scenes import DigitScenesConfig
from detectors.training.run_config import FCOSRun, training_in_seconds
from detectors.training.search_trainer import ScheduleConfig


def get_config() -> FCOSRun:
    branch = BranchConfig(generations=1, population=1_000, optimisations=2, proxies=2, proxy_seeds=1, parents=1)
    return FCOSRun(
        name="one_minute",
        search=SearchConfig(
            classification=branch,
            regression=dataclasses.replace(branch),  # or a flag would change both
            cascade=FilterConfig(overfit_tolerance=0.0),
            final=FinalConfig(seeds=1, fit_weights=(2.0,), branches=False),
        ),
        train=training_in_seconds(learning_rate=0.003, warmup_steps=10),
        schedule=ScheduleConfig(probe=(10, 20), probe_images=24, verify=30, proxy=(20, 40), final=40),
        data=DataConfig(digit_scenes=DigitScenesConfig(train_images=200, select_images=40, test_images=40)),
    )
