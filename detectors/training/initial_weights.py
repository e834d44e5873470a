"""What a training starts from: random weights, a backbone trained on ImageNet, or a whole detector of torchvision."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from cse_jax.errors import InputError
from detectors import weights
from detectors.models.detector import Detector, abstract_detector
from detectors.models.mobilenet import MobileNetV1
from detectors.training.step import JittedDetector, TrainState


@dataclasses.dataclass
class WeightsConfig:
    """Weights that a training starts from.

    Attributes:
      file: a .safetensors or .pth file, for a MobileNetV1 an .npz file; empty for random weights.
      whole: whether the file holds a whole detector of torchvision, for a config of ``torchvision_settings``, and not
        only a backbone.
      bgr: whether the network in the file reads blue, green, red (caffe); its first kernel's channels are reversed.
    """

    file: str = ""
    whole: bool = False
    bgr: bool = False


def load(detector: Detector, config: WeightsConfig) -> None:
    """Fills a detector in place with what the file holds.

    Args:
      detector: made, or abstract (``nnx.eval_shape``).
      config: the file.

    Raises:
      MissingWeightsError: there is no such file; the message says where to get it.
      TensorFileError, WeightsError: the file cannot be read, or does not fit; one message lists all mismatches.
      InputError: the backbone needs weights and none are given, or torchvision has no such detector.
    """
    backbone = detector.backbone
    if not config.file:
        settings = backbone.config
        if settings.norm == "frozen_bn":
            raise InputError(
                "The backbone's batch norms have frozen statistics, which random weights do not fit. Give a file, "
                f"--config.weights.file={settings.weights}, or train from scratch: --config.detector.backbone.norm=gn "
                f"--config.detector.backbone.{settings.frozen}=-1."
            )
        return
    if config.whole:
        weights.load_whole(detector, config.file)
        return
    if isinstance(backbone, MobileNetV1):
        weights.load_mobilenet(backbone, config.file)
        return
    weights.load_resnet(backbone, config.file)
    if config.bgr:
        backbone.stem.kernel[...] = backbone.stem.kernel[...][:, :, ::-1]


def starting_from(
    compiled: JittedDetector, build: Callable[[nnx.Rngs], Detector], config: WeightsConfig
) -> JittedDetector:
    """The same functions, but ``init`` takes from the file what it holds, and draws only the rest at random.

    Args:
      compiled: the detector's functions.
      build: makes the detector from random numbers.
      config: the file.

    Raises:
      As ``load``.
    """
    detector = abstract_detector(build)
    load(detector, config)
    if not config.file:
        return compiled
    _, *loaded = nnx.split(detector, nnx.Param, ...)

    def init(seed: int) -> TrainState:
        state = compiled.init(seed)
        params, rest = (
            jax.tree.map(lambda random, read: read if isinstance(read, jax.Array) else random, *pair)
            for pair in zip((state.params, state.rest), loaded, strict=True)
        )
        params, rest = jax.device_put((jax.tree.map(jnp.copy, params), rest), state.step.sharding)
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        return state._replace(params=params, rest=rest, ema=ema)

    return compiled._replace(init=init)
