"""The networks that make features of images: residual ones and MobileNetV1."""

from flax import nnx

from detectors.models.mobilenet import MobileNetConfig, MobileNetV1
from detectors.models.resnet import ResNet, ResNetConfig

# Configs have ``strides`` and ``channels`` of the features, and ``is_frozen(path)``: whether a parameter, given by its
# path below the network, keeps the values it was loaded with.  For messages they have ``weights``: a file of weights
# and where it is from, and ``frozen``: the field that says what is frozen.
BackboneConfig = ResNetConfig | MobileNetConfig
Backbone = ResNet | MobileNetV1


def build_backbone(config: BackboneConfig, *, rngs: nnx.Rngs) -> Backbone:
    """The network of a config, with random weights."""
    if isinstance(config, MobileNetConfig):
        return MobileNetV1(config, rngs=rngs)
    return ResNet(config, rngs=rngs)
