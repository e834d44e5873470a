"""FCOS on digit scenes: both branches, controls and a final comparison on 2 cores.

python launch/search.py
"""

from cse_jax.branch import BranchConfig, CascadeConfig
from cse_jax.final import FinalConfig
from cse_jax.search import SearchConfig
from detectors.run_config import FCOSRun
from detectors.trainer import ScheduleConfig
from detectors.training import TrainConfig


def get_config() -> FCOSRun:
    return FCOSRun(
        name="default",
        search=SearchConfig(
            classification=BranchConfig(generations=2, population=20_000, offspring=5_000, optimisations=8, proxies=3),
            regression=BranchConfig(generations=2, population=10_000, offspring=3_000, optimisations=6, proxies=2),
            cascade=CascadeConfig(later_tolerance=0.9),
            final=FinalConfig(seeds=3, branches=False),
        ),
        train=TrainConfig(
            optimiser="adamw",
            batch_size=8,
            learning_rate=0.002,
            warmup_steps=30,
            warmup_ratio=0.1,
            decay_at=(0.75, 0.92),
        ),
        schedule=ScheduleConfig(verify=40, proxy=550, final=700),
    )
