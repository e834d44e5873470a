"""Residual networks (He et al. 2016), NHWC, from ResNet-101 down to one for 96-pixel images."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cse_jax.errors import InputError
from cse_jax.ranges import Amount, Items, Positive, Range
from detectors.models.convolution import convolve, convolve_unfolded
from detectors.models.norms import FrozenBatchNorm, GroupNorm, is_norm
from detectors.ops.padding import Extent
from detectors.structures import AnyArray

_HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass
class ResNetConfig:
    """A residual network.

    Attributes:
      depths: blocks per stage.
      widths: output channels per stage (before the bottleneck's factor of 4).
      bottleneck: 1x1, 3x3, 1x1 blocks instead of two 3x3.
      stem_width: channels of the stem.
      stem_kernel, stem_stride: of the stem's convolution.
      stem_pool: whether a 3x3 max-pooling of stride 2 follows.
      stem_as_product: compute the stem as a matrix product over unfolded patches.  This is the same convolution.  For 3
        channels at stride 4 XLA's own is several times slower on CPUs, but needs no memory for the patches.
      norm: ``"gn"`` (trains from scratch) or ``"frozen_bn"`` (statistics fixed, for pretrained weights).
      norm_groups: groups of the group norm.
      norm_eps: added to variances; 0 in torchvision's R-CNNs trained on COCO.
      frozen_affine: whether scale and bias of all frozen batch norms are frozen (FCOS), not only those of the frozen
        stages.
      stride_in_1x1: stride in the bottleneck's first convolution (caffe) instead of the second (torchvision).
      frozen_stages: -1 trains everything, 0 freezes the stem, k the stages up to the k-th as well.
      outputs: stages whose features are returned, counted from 1.
    """

    depths: Annotated[tuple[Positive, ...], Items()] = (3, 4, 6, 3)
    widths: Annotated[tuple[Positive, ...], Items()] = (64, 128, 256, 512)
    bottleneck: bool = True
    stem_width: Positive = 64
    stem_kernel: Positive = 7
    stem_stride: Positive = 2
    stem_pool: bool = True
    stem_as_product: bool = False
    norm: Literal["gn", "frozen_bn"] = "frozen_bn"
    norm_groups: Positive = 32
    norm_eps: Amount = 1e-5
    frozen_affine: bool = False
    stride_in_1x1: bool = False
    frozen_stages: Annotated[int, Range(least=-1, most=100)] = 1
    outputs: Annotated[tuple[Positive, ...], Items(increasing=True)] = (2, 3, 4)

    weights: ClassVar[str] = "resnet50-0676ba61.pth (from https://download.pytorch.org/models/)"
    frozen: ClassVar[str] = "frozen_stages"

    def check(self) -> None:
        """Raises InputError for stages or groups that don't fit."""
        if len(self.depths) != len(self.widths):
            raise InputError(f"depths={self.depths} and widths={self.widths} must have an item for each stage")
        if max(self.outputs) > len(self.depths):
            raise InputError(f"outputs={self.outputs} must be stages from 1 to {len(self.depths)}")
        if self.norm == "gn" and any(width % self.norm_groups for width in (self.stem_width, *self.widths)):
            raise InputError(
                f"norm_groups={self.norm_groups} must divide stem_width={self.stem_width} and widths={self.widths}"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each returned feature map."""
        factor = 4 if self.bottleneck else 1
        return tuple(self.widths[stage - 1] * factor for stage in self.outputs)

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each returned feature map, pixels."""
        stem = self.stem_stride * (2 if self.stem_pool else 1)
        return tuple(stem * 2 ** (stage - 1) for stage in self.outputs)

    def is_frozen(self, path: Sequence[str | int]) -> bool:
        """Whether a parameter, given by its path below the network, keeps the values it was loaded with."""
        if self.frozen_affine and self.norm == "frozen_bn" and is_norm(path):
            return True
        if self.frozen_stages < 0:
            return False
        if str(path[0]).startswith("stem"):
            return True
        return path[0] == "stages" and int(path[1]) < self.frozen_stages


def resnet50(**changes) -> ResNetConfig:
    """ResNet-50."""
    return ResNetConfig(**changes)


def resnet101(**changes) -> ResNetConfig:
    """ResNet-101."""
    return ResNetConfig(depths=(3, 4, 23, 3), **changes)


def resnet18(**changes) -> ResNetConfig:
    """ResNet-18."""
    return ResNetConfig(depths=(2, 2, 2, 2), bottleneck=False, **changes)


def resnet34(**changes) -> ResNetConfig:
    """ResNet-34."""
    return ResNetConfig(depths=(3, 4, 6, 3), bottleneck=False, **changes)


def small(**changes) -> ResNetConfig:
    """A network for images of 200 to 400 pixels that trains from scratch in minutes on a CPU."""
    config = ResNetConfig(
        depths=(1, 1, 1, 1),
        widths=(24, 48, 96, 192),
        bottleneck=False,
        stem_width=24,
        norm="gn",
        norm_groups=8,
        frozen_stages=-1,
    )
    return dataclasses.replace(config, **changes)


def tiny(**changes) -> ResNetConfig:
    """A network for images of about 96 pixels that trains from scratch in seconds."""
    config = ResNetConfig(
        depths=(1, 1, 1),
        widths=(24, 48, 96),
        bottleneck=False,
        stem_width=24,
        stem_stride=4,
        stem_pool=False,
        stem_as_product=True,
        norm="gn",
        norm_groups=4,
        frozen_stages=-1,
        outputs=(2, 3),
    )
    return dataclasses.replace(config, **changes)


def _norm(config: ResNetConfig, channels: int, rngs: nnx.Rngs) -> GroupNorm | FrozenBatchNorm:
    if config.norm == "gn":
        return GroupNorm(channels, config.norm_groups, epsilon=config.norm_eps, rngs=rngs)
    return FrozenBatchNorm(channels, eps=config.norm_eps)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, rngs: nnx.Rngs, function: Callable[..., Array] = convolve
) -> nnx.Conv:
    pad = kernel // 2
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        stride,
        padding=[(pad, pad)] * 2,
        use_bias=False,
        kernel_init=_HE,
        conv_general_dilated=function,
        rngs=rngs,
    )


class Block(nnx.Module):
    """A residual block, basic or bottleneck."""

    def __init__(self, config: ResNetConfig, inputs: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        if config.bottleneck:
            outputs = 4 * width
            first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
            plan = [(inputs, width, 1, first), (width, width, 3, second), (width, outputs, 1, 1)]
        else:
            outputs = width
            plan = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.strides = tuple(layer[3] for layer in plan)
        self.convs = nnx.List([_conv(*layer, rngs) for layer in plan])
        self.norms = nnx.List([_norm(config, layer[1], rngs) for layer in plan])
        if stride != 1 or inputs != outputs:
            self.shortcut = _conv(inputs, outputs, 1, stride, rngs)
            self.shortcut_norm = _norm(config, outputs, rngs)
        else:
            self.shortcut = self.shortcut_norm = None

    @property
    def stride(self) -> int:
        """Of the block as a whole."""
        return math.prod(self.strides)

    def __call__(self, x: Float[Array, "b h w c"], extent: Extent) -> Float[Array, "b h2 w2 d"]:
        residual = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            residual = self.shortcut_norm(self.shortcut(x), extent.strided(self.stride))
        last = len(self.convs) - 1
        for k, (conv, norm, stride) in enumerate(zip(self.convs, self.norms, self.strides, strict=True)):
            extent = extent.strided(stride)
            x = norm(conv(x), extent)
            x = jax.nn.relu(x if k < last else x + residual)
        return x


class ResNet(nnx.Module):
    """A residual network that returns the features of the configured stages."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        function = convolve_unfolded if config.stem_as_product else convolve
        self.stem = _conv(3, config.stem_width, config.stem_kernel, config.stem_stride, rngs, function)
        self.stem_norm = _norm(config, config.stem_width, rngs)
        inputs, stages = config.stem_width, []
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            blocks = []
            for k in range(depth):
                stride = 2 if k == 0 and stage > 0 else 1
                blocks.append(Block(config, inputs, width, stride, rngs=rngs))
                inputs = width * (4 if config.bottleneck else 1)
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)

    def __call__(self, image: Float[AnyArray, "b h w 3"], extent: Extent) -> list[Float[Array, "b _h _w _c"]]:
        """Features, finest first.

        Args:
          image: normalised and zero-padded.
          extent: of the images, pixels.
        """
        extent = extent.strided(self.config.stem_stride)
        x = jax.nn.relu(self.stem_norm(self.stem(jnp.asarray(image)), extent))
        if self.config.stem_pool:
            pads = [(1, 1), (1, 1)]
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=pads)  # pyright: ignore[reportArgumentType]  # unannotated
            extent = extent.strided(2)
            x = extent.clear(x)  # the pooled windows reach beyond the image
        features = []
        for stage, blocks in enumerate(self.stages, start=1):
            for block in blocks:
                x = block(x, extent)
                extent = extent.strided(block.stride)
            if stage in self.config.outputs:
                features.append(x)
        return features
