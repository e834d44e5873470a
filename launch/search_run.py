"""The configs of a search and of a calibration: a search of ``cse_jax`` with a detector of ``detectors``."""

import dataclasses

from cse_jax.search.config import BranchConfig, CalibrationConfig, FilterConfig, FinalConfig, SearchConfig
from detectors.data.datasets import DataConfig
from detectors.data.settings import BatchConfig
from detectors.models import DetectorConfig
from detectors.models.fcos import fcos_tiny
from detectors.training.initial_weights import WeightsConfig
from detectors.training.search_trainer import ScheduleConfig
from detectors.training.step import TrainConfig


def search_in_minutes() -> SearchConfig:
    """Sizes of a search in minutes where trainings take seconds: both branches, three seeds in the final comparison."""
    return SearchConfig(
        classification=BranchConfig(generations=2, population=20_000, offspring=5_000, max_overfit=8, max_proxy=4),
        regression=BranchConfig(generations=2, population=10_000, offspring=3_000, max_overfit=6, max_proxy=4),
        filters=FilterConfig(later_overfit_tolerance=0.9),
        final=FinalConfig(seeds=3, branches=False),
    )


@dataclasses.dataclass
class SearchRun:
    """A search with any detector.

    Attributes:
      name: of the run's folder.
      search: sizes and thresholds.
      detector, train, data: model, optimisation and images.
      schedule: length of the trainings.
      weights: what each training starts from.
    """

    name: str = "search"
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    detector: DetectorConfig = dataclasses.field(default_factory=fcos_tiny)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    data: BatchConfig = dataclasses.field(default_factory=DataConfig)
    weights: WeightsConfig = dataclasses.field(default_factory=WeightsConfig)


@dataclasses.dataclass
class CalibrationRun(SearchRun):
    """A calibration of the stages of a search."""

    name: str = "calibration"
    calibration: CalibrationConfig = dataclasses.field(default_factory=CalibrationConfig)
