"""The networks that make features of images: residual ones and MobileNetV1."""

from typing import Protocol

from flax import nnx
from jaxtyping import Array, Float

from detectors.models.mobilenet import MobileNetConfig, MobileNetV1
from detectors.models.resnet import ResNet, ResNetConfig

BackboneConfig = ResNetConfig | MobileNetConfig


class Backbone(Protocol):
    """What detectors and training need of a backbone.

    Its config has ``strides`` and ``channels`` of the features, and ``is_frozen(path)``: whether a parameter, by its
    path below the network, stays as it was loaded.
    """

    config: BackboneConfig

    def __call__(self, image: Float[Array, "b h w 3"]) -> list[Float[Array, "b _h _w _c"]]:
        """Features, finest first."""


def build_backbone(config: BackboneConfig, *, rngs: nnx.Rngs) -> Backbone:
    """The network of a config, with random weights."""
    return (MobileNetV1 if isinstance(config, MobileNetConfig) else ResNet)(config, rngs=rngs)
