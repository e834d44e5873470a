"""Normalisation of the images in a padded batch, and which parameters belong to such a layer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from detectors.ops.padding import Extent


class FrozenBatchNorm(nnx.Module):
    """Batch normalisation with fixed statistics; its scale and bias train unless their stage is frozen."""

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))
        self.eps = eps

    def __call__(self, x: Float[Array, "b h w c"], extent: Extent) -> Float[Array, "b h w c"]:
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
        # In float32, as means may be much larger than deviations.
        normalised = x.astype(jnp.float32) * factor + (self.bias[...] - self.mean[...] * factor)
        return extent.clear(normalised.astype(x.dtype))


class GroupNorm(nnx.GroupNorm):
    """Group normalisation (Wu and He 2018) whose statistics are those of the image, without the padding."""

    def __call__(self, x: Float[Array, "b h w c"], extent: Extent) -> Float[Array, "b h w c"]:
        mask = jnp.broadcast_to(extent.covers(x), x.shape)
        return jnp.where(mask, super().__call__(x, mask=mask), 0)


def is_norm(path: Sequence[str | int]) -> bool:
    """Whether a parameter, given by its path, belongs to a normalisation layer."""
    return any(str(part).endswith(("norm", "norms")) for part in path)
