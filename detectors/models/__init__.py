"""Detectors in Flax NNX."""

from collections.abc import Callable

from flax import nnx

from detectors.models.atss import ATSS, ATSSConfig
from detectors.models.cascade_rcnn import CascadeRCNN, CascadeRCNNConfig
from detectors.models.faster_rcnn import FasterRCNN, FasterRCNNConfig
from detectors.models.fcos import FCOS, FCOSConfig
from detectors.models.mask_rcnn import MaskRCNN, MaskRCNNConfig

DETECTORS = {
    ATSSConfig: ATSS,
    CascadeRCNNConfig: CascadeRCNN,
    FCOSConfig: FCOS,
    FasterRCNNConfig: FasterRCNN,
    MaskRCNNConfig: MaskRCNN,
}


def build_detector(
    config: ATSSConfig | CascadeRCNNConfig | FCOSConfig | FasterRCNNConfig | MaskRCNNConfig,
) -> tuple[type[nnx.Module], Callable[[nnx.Rngs], nnx.Module]]:
    """The detector class of a config, and the function that makes the detector from random numbers."""
    detector = DETECTORS[type(config)]
    return detector, lambda rngs: detector(config, rngs=rngs)
