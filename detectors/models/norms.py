"""Batch normalisation with fixed statistics, and which parameters belong to a normalisation layer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class FrozenBatchNorm(nnx.Module):
    """Batch normalisation with fixed statistics; its scale and bias train unless their stage is frozen."""

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))
        self.eps = eps

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
        return x * factor.astype(x.dtype) + (self.bias[...] - self.mean[...] * factor).astype(x.dtype)


def is_norm(path: Sequence[str | int]) -> bool:
    """Whether a parameter, given by its path, belongs to a normalisation layer."""
    return any(str(part).endswith(("norm", "norms")) for part in path)
