"""The default search: FCOS on digit scenes, in minutes on 2 cores.

    python launch/search.py
"""

import dataclasses

from cse_jax.branch import BranchConfig
from cse_jax.final import FinalConfig
from cse_jax.search import SearchConfig
from detectors.data.pipeline import DataConfig
from detectors.models.fcos import FCOSConfig, fcos_tiny
from detectors.trainer import ScheduleConfig
from detectors.training import TrainConfig


@dataclasses.dataclass
class Config:
    """Everything that a search depends on."""

    name: str = "default"
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    detector: FCOSConfig = dataclasses.field(default_factory=fcos_tiny)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)


def get_config() -> Config:
    return Config(
        search=SearchConfig(
            classification=BranchConfig(generations=2, population=10_000, offspring=4_000, optimisations=6, proxies=3),
            regression=BranchConfig(generations=2, population=5_000, offspring=2_000, optimisations=4, proxies=2),
            final=FinalConfig(seeds=3, branches=False),
        ),
        train=TrainConfig(
            optimiser="adamw", learning_rate=0.003, warmup_steps=30, warmup_ratio=0.1, decay_at=(0.75, 0.92)
        ),
        schedule=ScheduleConfig(verify=60, proxy=300, final=300),
    )
