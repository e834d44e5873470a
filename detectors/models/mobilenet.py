"""MobileNetV1 (Howard et al. 2017), NHWC: depthwise 3x3 and pointwise convolutions, as TensorFlow pads them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cse_jax.errors import InputError
from cse_jax.ranges import Items, Positive, Range
from detectors.models.convolution import Conv
from detectors.models.norms import FrozenBatchNorm, GroupNorm
from detectors.ops.padding import Extent
from detectors.structures import AnyArray

_HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
_STEM = 32  # channels
BLOCKS = (  # output channels and stride of each
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
_LAST_OF_STRIDE = {4: 3, 8: 5, 16: 11, 32: 13}  # blocks, counted from 1
_EPS = 1e-3
LAST_POINTWISE = r"blocks/12/pointwise(_norm)?/.*"  # parameters that no file has


@dataclasses.dataclass
class MobileNetConfig:
    """MobileNetV1 of full width.  Weights of ImageNet expect images of RGB / 127.5 - 1.

    Attributes:
      outputs: strides of the features, of 4, 8, 16 and 32.
      norm: ``"frozen_bn"`` (statistics fixed, scale and bias trained, for pretrained weights) or ``"gn"`` (trains from
        scratch).  The last pointwise convolution, which no file of weights has, is always followed by a group norm.
      frozen_blocks: -1 trains everything, 0 freezes the first convolution, k the blocks up to the k-th of 13 as well.
      norm_groups: groups of the group norms.
    """

    outputs: Annotated[tuple[Literal[4, 8, 16, 32], ...], Items(increasing=True)] = (8, 16, 32)
    norm: Literal["frozen_bn", "gn"] = "frozen_bn"
    frozen_blocks: Annotated[int, Range(least=-1, most=13)] = 3
    norm_groups: Positive = 32

    weights: ClassVar[str] = "mobilenet.npz (Keras's mobilenet_1_0_224_tf_no_top.h5, saved with numpy.savez)"
    frozen: ClassVar[str] = "frozen_blocks"

    def check(self) -> None:
        """Raises InputError unless all channels, multiples of the first ones, fall into groups."""
        if _STEM % self.norm_groups:
            raise InputError(f"norm_groups={self.norm_groups} must divide {_STEM}, the channels of the first layer")

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each returned feature map, pixels."""
        return tuple(self.outputs)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each returned feature map."""
        return tuple(BLOCKS[_LAST_OF_STRIDE[stride] - 1][0] for stride in self.outputs)

    def is_frozen(self, path: Sequence[str | int]) -> bool:
        """Whether a parameter, given by its path below the network, keeps the values it was loaded with."""
        if str(path[0]).startswith("stem"):
            return self.frozen_blocks >= 0
        return path[0] == "blocks" and int(path[1]) < self.frozen_blocks


def _norm(kind: str, config: MobileNetConfig, channels: int, rngs: nnx.Rngs) -> GroupNorm | FrozenBatchNorm:
    if kind == "gn":
        return GroupNorm(channels, config.norm_groups, epsilon=_EPS, rngs=rngs)
    return FrozenBatchNorm(channels, eps=_EPS)


class _Block(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norms: list, *, rngs: nnx.Rngs) -> None:
        conv = functools.partial(Conv, use_bias=False, kernel_init=_HE, rngs=rngs)
        self.stride = stride
        self.depthwise = conv(inputs, inputs, (3, 3), stride, feature_group_count=inputs)
        self.pointwise = conv(inputs, outputs, (1, 1))
        self.depthwise_norm, self.pointwise_norm = norms

    def __call__(self, x: Float[Array, "b h w c"], extent: Extent) -> Float[Array, "b h2 w2 d"]:
        extent = extent.strided(self.stride)
        x = jax.nn.relu6(self.depthwise_norm(self.depthwise(x), extent))
        return jax.nn.relu6(self.pointwise_norm(self.pointwise(x), extent))


class MobileNetV1(nnx.Module):
    """The network; returns the features of the configured strides."""

    def __init__(self, config: MobileNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.stem = Conv(3, _STEM, (3, 3), 2, use_bias=False, kernel_init=_HE, rngs=rngs)
        self.stem_norm = _norm(config.norm, config, _STEM, rngs)
        needed = BLOCKS[: _LAST_OF_STRIDE[max(config.outputs)]]
        inputs, blocks = _STEM, []
        for number, (outputs, stride) in enumerate(needed, start=1):
            last = "gn" if number == len(BLOCKS) else config.norm
            norms = [_norm(config.norm, config, inputs, rngs), _norm(last, config, outputs, rngs)]
            blocks.append(_Block(inputs, outputs, stride, norms, rngs=rngs))
            inputs = outputs
        self.blocks = nnx.List(blocks)

    def __call__(self, image: Float[AnyArray, "b h w 3"], extent: Extent) -> list[Float[Array, "b _h _w _c"]]:
        """Features, finest first.

        Args:
          image: normalised and zero-padded.
          extent: of the images, pixels.
        """
        extent = extent.strided(2)
        x = jax.nn.relu6(self.stem_norm(self.stem(jnp.asarray(image)), extent))
        wanted, features = {_LAST_OF_STRIDE[stride] for stride in self.config.outputs}, []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, extent)
            extent = extent.strided(block.stride)
            if number in wanted:
                features.append(x)
        return features
