"""The config of a search: everything that its result depends on."""

import dataclasses

from cse_jax.search import SearchConfig
from detectors.data.pipeline import DataConfig
from detectors.models.faster_rcnn import FasterRCNNConfig, faster_rcnn_tiny
from detectors.models.fcos import FCOSConfig, fcos_tiny
from detectors.trainer import ScheduleConfig
from detectors.training import TrainConfig


@dataclasses.dataclass
class FCOSRun:
    """A search with FCOS."""

    name: str = "fcos"
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    detector: FCOSConfig = dataclasses.field(default_factory=fcos_tiny)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)


@dataclasses.dataclass
class FasterRCNNRun(FCOSRun):
    """A search with Faster R-CNN."""

    name: str = "faster_rcnn"
    detector: FasterRCNNConfig = dataclasses.field(default_factory=faster_rcnn_tiny)
