"""The config of a training: everything that its result depends on."""

import dataclasses
import math
from typing import Annotated

from cse_jax.errors import InputError
from cse_jax.ranges import Amount, Count, Range, Seed
from detectors.data.datasets import DataConfig
from detectors.data.settings import BatchConfig
from detectors.models import DetectorConfig
from detectors.models.fcos import fcos_tiny
from detectors.training.initial_weights import WeightsConfig
from detectors.training.step import TrainConfig


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
    cls_weight: Amount = 1.0
    box_weight: Amount | None = None


@dataclasses.dataclass
class TrainRun:
    """A training of any detector.

    Attributes:
      name: of the run's folder.
      loss: classification and box loss.
      detector, train, data: model, optimisation and images.
      weights: what the training starts from.
      epochs: length of the training, if ``steps`` is 0.
      steps: length of the training; 0 for ``epochs``.
      evaluate_epochs: epochs between evaluations on the select split; 0 for none.
      save_every: steps between the checkpoints from which an interrupted training resumes; 0 for none.
      seed: of weights and batches.
    """

    name: str = "fcos"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    detector: DetectorConfig = dataclasses.field(default_factory=fcos_tiny)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    data: BatchConfig = dataclasses.field(default_factory=DataConfig)
    weights: WeightsConfig = dataclasses.field(default_factory=WeightsConfig)
    epochs: Annotated[float, Range(least=0, most=100_000)] = 12.0
    steps: Count = 0
    evaluate_epochs: Count = 1
    save_every: Count = 1000
    seed: Seed = 0

    def check(self) -> None:
        """Raises InputError for a training without length."""
        if not self.steps and not self.epochs:
            raise InputError("steps=0 and epochs=0 make a training without a step; set one of them")

    def length(self, images: int) -> tuple[int, int]:
        """Steps of the training and of an epoch over so many images."""
        epoch = max(1, images // self.train.batch_size)
        return self.steps or math.ceil(self.epochs * epoch), epoch
