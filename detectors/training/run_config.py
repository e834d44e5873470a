"""The configs of a search and of a training: everything that their results depend on."""

import dataclasses
import math

from cse_jax.search.branch import BranchConfig
from cse_jax.search.calibration import CalibrationConfig
from cse_jax.search.comparison import FinalConfig
from cse_jax.search.racing import FilterConfig
from cse_jax.search.run import SearchConfig
from detectors.data.datasets import DataConfig
from detectors.data.settings import BatchConfig
from detectors.models.atss import ATSSConfig, atss_tiny
from detectors.models.cascade_rcnn import CascadeRCNNConfig, cascade_rcnn_tiny
from detectors.models.faster_rcnn import FasterRCNNConfig, faster_rcnn_tiny
from detectors.models.fcos import FCOSConfig, fcos_tiny
from detectors.models.mask_rcnn import MaskRCNNConfig, mask_rcnn_tiny
from detectors.training.initial_weights import WeightsConfig
from detectors.training.search_trainer import ScheduleConfig
from detectors.training.step import TrainConfig


def search_in_minutes() -> SearchConfig:
    """Sizes of a search in minutes where trainings take seconds: both branches, three seeds in the final comparison."""
    return SearchConfig(
        classification=BranchConfig(generations=2, population=20_000, offspring=5_000, optimisations=8, proxies=4),
        regression=BranchConfig(generations=2, population=10_000, offspring=3_000, optimisations=6, proxies=4),
        cascade=FilterConfig(later_overfit_tolerance=0.9),
        final=FinalConfig(seeds=3, branches=False),
    )


def training_in_seconds(learning_rate: float, *, warmup_steps: int = 30) -> TrainConfig:
    """Optimisation that learns the most from scratch in a few hundred small steps."""
    return TrainConfig(
        optimiser="adamw",
        batch_size=8,
        learning_rate=learning_rate,
        rate_batch=0,
        warmup_steps=warmup_steps,
        warmup_ratio=0.1,
        decay_at=(0.75, 0.92),
    )


@dataclasses.dataclass
class FCOSRun:
    """A search with FCOS; each training starts from ``weights``."""

    name: str = "fcos"
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    detector: FCOSConfig = dataclasses.field(default_factory=fcos_tiny)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    data: BatchConfig = dataclasses.field(default_factory=DataConfig)
    weights: WeightsConfig = dataclasses.field(default_factory=WeightsConfig)


@dataclasses.dataclass
class FasterRCNNRun(FCOSRun):
    """A search with Faster R-CNN."""

    name: str = "faster_rcnn"
    detector: FasterRCNNConfig = dataclasses.field(default_factory=faster_rcnn_tiny)


@dataclasses.dataclass
class CalibrationRun(FCOSRun):
    """A calibration of the stages of a search with FCOS."""

    name: str = "calibration"
    calibration: CalibrationConfig = dataclasses.field(default_factory=CalibrationConfig)


@dataclasses.dataclass
class LossConfig:
    """The losses of a training.

    Attributes:
      cls: name with or without hyper-parameters (``varifocal_loss``, ``focal_loss(gamma=1.5)``), or a formula; empty
        for the detector's usual.
      box: likewise.
      cls_weight: factor on the classification loss.
      box_weight: factor on the box loss; None for the detector's usual.
    """

    cls: str = ""
    box: str = ""
    cls_weight: float = 1.0
    box_weight: float | None = None


@dataclasses.dataclass
class TrainRun:
    """A training of FCOS.

    Attributes:
      name: of the run's folder.
      loss: classification and box loss.
      detector, train, data: model, optimisation and images.
      weights: what the training starts from.
      epochs: length of the training, if ``steps`` is 0.
      steps: length of the training; 0 for ``epochs``.
      evaluate_epochs: epochs between evaluations on the select split; 0 for none.
      save_every: steps between the checkpoints from which an interrupted training goes on; 0 for none.
      seed: of weights and batches.
    """

    name: str = "fcos"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    detector: FCOSConfig = dataclasses.field(default_factory=fcos_tiny)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    data: BatchConfig = dataclasses.field(default_factory=DataConfig)
    weights: WeightsConfig = dataclasses.field(default_factory=WeightsConfig)
    epochs: float = 12.0
    steps: int = 0
    evaluate_epochs: int = 1
    save_every: int = 1000
    seed: int = 0

    def length(self, images: int) -> tuple[int, int]:
        """Steps of the training and of an epoch over so many images.

        Raises:
          ValueError: the training has no length.
        """
        epoch = max(1, images // self.train.batch_size)
        steps = self.steps or math.ceil(self.epochs * epoch)
        if steps < 1:
            raise ValueError(f"The training has no step: config.steps={self.steps}, config.epochs={self.epochs}")
        return steps, epoch


@dataclasses.dataclass
class FasterRCNNTrainRun(TrainRun):
    """A training of Faster R-CNN."""

    name: str = "faster_rcnn"
    detector: FasterRCNNConfig = dataclasses.field(default_factory=faster_rcnn_tiny)


@dataclasses.dataclass
class CascadeRCNNTrainRun(TrainRun):
    """A training of Cascade R-CNN."""

    name: str = "cascade_rcnn"
    detector: CascadeRCNNConfig = dataclasses.field(default_factory=cascade_rcnn_tiny)


@dataclasses.dataclass
class MaskRCNNTrainRun(TrainRun):
    """A training of Mask R-CNN; its data need masks (``data.mask_stride``)."""

    name: str = "mask_rcnn"
    detector: MaskRCNNConfig = dataclasses.field(default_factory=mask_rcnn_tiny)


@dataclasses.dataclass
class ATSSTrainRun(TrainRun):
    """A training of ATSS."""

    name: str = "atss"
    detector: ATSSConfig = dataclasses.field(default_factory=atss_tiny)
