"""Feature pyramid networks (Lin et al. 2017)."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cse_jax.ranges import Count, Positive
from detectors.models.convolution import Conv
from detectors.ops.padding import Extent


@dataclasses.dataclass
class FPNConfig:
    """A feature pyramid.

    Attributes:
      channels: of every level.
      extra: ``"none"``, ``"max_pool"`` (R-CNN: one more level), or ``"conv"`` (FCOS: convolutions on the last output).
      extra_levels: how many levels to add.
      relu_before_extra: ReLU before each further extra convolution after the first (FCOS).
    """

    channels: Positive = 256
    extra: Literal["none", "max_pool", "conv"] = "conv"
    extra_levels: Count = 2
    relu_before_extra: bool = True

    def strides(self, backbone: tuple[int, ...]) -> tuple[int, ...]:
        """Strides of all levels, pixels, from those of the backbone's outputs."""
        added = 0 if self.extra == "none" else self.extra_levels
        return backbone + tuple(backbone[-1] * 2 ** (k + 1) for k in range(added))


class FPN(nnx.Module):
    """Top-down pathway with lateral connections, and extra coarse levels."""

    def __init__(self, config: FPNConfig, inputs: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.config = config

        def conv(channels: int, kernel: int, stride: int = 1) -> nnx.Conv:
            pad = kernel // 2
            return Conv(
                channels,
                config.channels,
                (kernel, kernel),
                stride,
                padding=[(pad, pad)] * 2,
                kernel_init=nnx.initializers.xavier_uniform(),
                rngs=rngs,
            )

        self.lateral = nnx.List([conv(channels, 1) for channels in inputs])
        self.output = nnx.List([conv(config.channels, 3) for _ in inputs])
        added = config.extra_levels if config.extra == "conv" else 0
        self.extra = nnx.List([conv(config.channels, 3, 2) for _ in range(added)])

    def __call__(
        self, features: list[Float[Array, "b _h _w _c"]], extents: Sequence[Extent]
    ) -> list[Float[Array, "b _h2 _w2 d"]]:
        """All levels, finest first.

        Args:
          features: of the backbone.
          extents: of the images on each level.
        """
        merged = [e.clear(lateral(x)) for lateral, x, e in zip(self.lateral, features, extents, strict=False)]
        for level in range(len(merged) - 1, 0, -1):
            _, height, width, _ = merged[level - 1].shape
            merged[level - 1] = merged[level - 1] + _upsampled(merged[level], (height, width))
        levels = [e.clear(output(x)) for output, x, e in zip(self.output, merged, extents, strict=False)]
        for k, conv in enumerate(self.extra):
            x = jax.nn.relu(levels[-1]) if k > 0 and self.config.relu_before_extra else levels[-1]
            levels.append(extents[len(levels)].clear(conv(x)))
        if self.config.extra == "max_pool":
            for _ in range(self.config.extra_levels):
                levels.append(levels[-1][:, ::2, ::2])
        return levels


def _upsampled(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Each cell repeated by the same number of rows and columns, and cropped to a size.

    ``jax.image.resize`` to the nearest would gather, and its gradient would be a scatter.
    """
    b, h, w, c = x.shape
    rows, columns = -(-size[0] // h), -(-size[1] // w)
    repeated = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, rows, w, columns, c))
    return repeated.reshape(b, h * rows, w * columns, c)[:, : size[0], : size[1]]
