"""Detectors in Flax NNX."""

from collections.abc import Callable

from flax import nnx

from detectors.models.fcos import FCOS, FCOSConfig


def build_detector(config: FCOSConfig) -> tuple[type[nnx.Module], Callable[[nnx.Rngs], nnx.Module]]:
    """The detector class of a config, and the function that makes the detector from random numbers."""
    detectors = {FCOSConfig: FCOS}
    detector = detectors[type(config)]
    return detector, lambda rngs: detector(config, rngs=rngs)
