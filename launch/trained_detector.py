"""The detector that a script is asked for: that of a training, or one with torchvision's weights."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cse_jax.errors import InputError
from detectors.evaluation import inference
from detectors.models.detector import Detector
from detectors.training.run_config import TrainRun
from detectors.weights.pretrained import PretrainedFasterRCNN


class TrainedDetector(NamedTuple):
    """A detector, and where it comes from.

    Attributes:
      config: of its training, or of the pretrained detector.
      model: the detector.
      origin: the checkpoint, or the file of weights.
      folder: of the training, or where one of this config would be.
      from_training: whether it is a training's.
    """

    config: TrainRun | PretrainedFasterRCNN
    model: Detector
    origin: pathlib.Path
    folder: pathlib.Path
    from_training: bool

    def label_names(self, categories: Callable[[], Sequence[str]]) -> tuple[str, ...]:
        """The names of its labels: the config's, else the training's, else those of the data.

        Raises: as ``inference.label_names``.
        """
        given = getattr(self.config, "label_names", None)
        folder = self.folder if self.from_training else None
        return given or inference.label_names(self.config.detector.classes, categories, folder)


def check(*, checkpoint: str | None, weights: str | None) -> None:
    """Raises InputError for flags that do not go together."""
    if weights and checkpoint:
        raise InputError("give either --weights or --checkpoint")


def find(
    config: TrainRun | PretrainedFasterRCNN, *, workdir: str | None, checkpoint: str | None, weights: str | None
) -> TrainedDetector:
    """The detector that the flags ask for.

    Raises:
      UserError: there is none, or it is of another config.
    """
    folder = pathlib.Path(workdir or pathlib.Path("runs") / config.name)
    if weights:
        origin = pathlib.Path(weights)
        model = inference.loaded(config.detector, origin, config.data.normalisation)
    else:
        inference.check_trained_with(folder, config)
        origin = inference.find_checkpoint(folder, checkpoint)
        model = inference.restored(config.detector, origin, config.data.normalisation)
    return TrainedDetector(config, model, origin, folder, from_training=not weights)
