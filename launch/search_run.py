"""The configs of a search and of a table of losses: the search of ``cse_jax`` with a detector of ``detectors``."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from cse_jax.errors import InputError
from cse_jax.loss_table.config import LossTableConfig
from cse_jax.ranges import Count, Items, Positive
from cse_jax.search.config import BranchConfig, FilterConfig, FinalConfig, SearchConfig
from detectors.data.datasets import DataConfig, open_dataset
from detectors.data.settings import BatchConfig
from detectors.data.voc import VocData
from detectors.models import DetectorConfig, build_detector
from detectors.models.fcos import fcos_tiny
from detectors.training.initial_weights import WeightsConfig, starting_from
from detectors.training.schedule import ScheduleConfig
from detectors.training.search_trainer import DetectorTrainer, task_of
from detectors.training.step import TrainConfig, jit_detector

TASK = ("detector", "train", "schedule", "data", "weights")  # what a training depends on, beside its losses


def search_in_minutes() -> SearchConfig:
    """Sizes of a search in minutes where trainings take seconds: both branches, four seeds in the final comparison.

    Only twice a default loss's usual weight is tried: for the other loss that is much like half of its own.
    """
    few = {"generations": 2, "max_probe": 32, "max_proxy": 3, "proxy_seeds": 1}
    return SearchConfig(
        classification=BranchConfig(population=20_000, offspring=5_000, max_overfit=6, **few),
        regression=BranchConfig(population=10_000, offspring=3_000, max_overfit=5, **few),
        filters=FilterConfig(later_overfit_tolerance=0.9),
        final=FinalConfig(seeds=4, fit_weights=(2.0,), branches=False),
    )


def bccd_at_120() -> VocData:
    """BCCD blood cells at 160 x 120 pixels: 252 photographs to train on, 40 to select on and 72 to test on."""
    return VocData(
        train=("trainval",),
        test=("test",),
        select_images=40,
        names=("RBC", "WBC", "Platelets"),
        max_boxes=40,
        short_side=120,
        long_side=160,
        cache=True,
    )


@dataclasses.dataclass
class DetectorRun:
    """What all runs say of the detector that they train.

    Attributes:
      name: of the run's folder or file.
      detector, train, data: model, optimisation and images.
      schedule: length of the trainings.
      weights: what each training starts from.
    """

    name: str = ""
    detector: DetectorConfig = dataclasses.field(default_factory=fcos_tiny)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    data: BatchConfig = dataclasses.field(default_factory=DataConfig)
    weights: WeightsConfig = dataclasses.field(default_factory=WeightsConfig)


@dataclasses.dataclass
class SearchRun(DetectorRun):
    """A search with any detector.

    Attributes:
      search: sizes and thresholds.
      prior: table of trained losses that the strategy ``surrogate`` starts from: the name of one that comes with the
        package, or a file of launch/loss_table.py; empty for none.
    """

    name: str = "search"
    prior: str = ""
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)

    def check(self) -> None:
        """Raises InputError for a prior that no strategy starts from."""
        for branch in (self.search.classification, self.search.regression):
            if self.prior and branch.generations and branch.strategy != "surrogate":
                raise InputError(f"prior={self.prior!r} needs the strategy 'surrogate', not {branch.strategy!r}")


def of_trainings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a search's config, as plain data, on which its trainings depend; the rest is how it searched."""
    return {name: config.get(name) for name in TASK} | {"search": {"seed": config.get("search", {}).get("seed")}}


@dataclasses.dataclass
class ComparisonRun(SearchRun):
    """Pairs of losses on the task of a search.

    Attributes:
      pairs: as ``launch/compare.py`` takes them; the last one is compared with the rest.
      seeds: trainings of each.
      tuned: trainings of a random search over hyper-parameters of usual losses, whose best is a row; 0 for no such row.
    """

    name: str = "comparison"
    pairs: Annotated[tuple[str, ...], Items(0)] = ()
    seeds: Positive = 8
    tuned: Count = 0


@dataclasses.dataclass
class LossTableRun(DetectorRun):
    """A table of trained losses of any detector; ``schedule.table`` has its horizons.

    Attributes:
      parts: which losses of the detector to vary, ``"cls"`` and ``"box"``.
      table: which losses, how often.
      filters: how they are weighted, and the largest formula.
    """

    name: str = "loss_table"
    parts: Annotated[tuple[Literal["cls", "box"], ...], Items()] = ("cls", "box")
    table: LossTableConfig = dataclasses.field(default_factory=LossTableConfig)
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)


def trainer_of(
    config: SearchRun | LossTableRun, folder: pathlib.Path, *, selects: bool = True, own_starts: bool = False
) -> DetectorTrainer:
    """The trainer of a run; its models go to ``checkpoints`` in the folder.

    Args:
      config: of the run.
      folder: of the run.
      selects: whether it selects among losses, which takes a split of its own.
      own_starts: as of ``DetectorTrainer``.

    Raises:
      InputError: the data doesn't fit the detector, or has no split to select on.
    """
    data = open_dataset(config.data)
    data.check_classes(config.detector.classes)
    if selects and data.select is data.test:
        raise InputError(
            "The search would select on the split that its final table reports: keep images of train for that, "
            f"--config.data.select_images={len(data.train) // 10}"
        )
    detector, build = build_detector(config.detector, config.data.normalisation)
    return DetectorTrainer(
        starting_from(jit_detector(build, config.train), build, config.weights),
        build,
        config.train,
        data,
        config.schedule,
        is_output=detector.is_output,
        task=task_of(detector),
        flip=config.data.flip,
        workers=config.data.workers,
        seed=config.search.seed if isinstance(config, SearchRun) else config.table.seed,
        own_starts=own_starts,
        checkpoints=folder / "checkpoints",
    )
