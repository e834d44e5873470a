"""Detectors in Flax NNX."""

from collections.abc import Callable

from flax import nnx

from cse_jax.ranges import validate
from detectors.models.atss import ATSS, ATSSConfig
from detectors.models.cascade_rcnn import CascadeRCNN, CascadeRCNNConfig
from detectors.models.detector import Detector
from detectors.models.faster_rcnn import FasterRCNN, FasterRCNNConfig
from detectors.models.fcos import FCOS, FCOSConfig
from detectors.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from detectors.structures import Normalisation

DetectorConfig = ATSSConfig | CascadeRCNNConfig | FCOSConfig | FasterRCNNConfig | MaskRCNNConfig

DETECTORS: dict[type[DetectorConfig], type[Detector]] = {
    ATSSConfig: ATSS,
    CascadeRCNNConfig: CascadeRCNN,
    FCOSConfig: FCOS,
    FasterRCNNConfig: FasterRCNN,
    MaskRCNNConfig: MaskRCNN,
}


def build_detector(
    config: DetectorConfig, normalisation: Normalisation = Detector.normalisation
) -> tuple[type[Detector], Callable[[nnx.Rngs], Detector]]:
    """The detector class of a config, and the function that makes the detector from random numbers.

    Args:
      config: its config.
      normalisation: of its images (``BatchConfig.normalisation``).

    Raises:
      InputError: the config is wrong.
    """
    validate(config, "detector")
    detector = DETECTORS[type(config)]

    def build(rngs: nnx.Rngs) -> Detector:
        model = detector(config, rngs=rngs)
        model.normalisation = normalisation
        return model

    return detector, build
