"""Random sampling of positives and negatives with static shapes, for one image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from detectors.structures import AnyArray


class Sample(NamedTuple):
    """Chosen boxes: positives, then negatives, then padding."""

    index: Int[Array, " k"]
    positive: Bool[Array, " k"]
    valid: Bool[Array, " k"]


def sample(
    key: jax.Array, positive: Bool[AnyArray, " n"], negative: Bool[AnyArray, " n"], *, count: int, fraction: float
) -> Sample:
    """Draws up to ``count * fraction`` positives and fills up with negatives, without replacement.

    Args:
      key: random key of this image alone.
      positive, negative: what may be drawn.
      count: length of the sample.
      fraction: largest share of positives.
    """
    noise = jax.random.uniform(key, positive.shape)
    total = positive.shape[0]
    most = min(int(count * fraction), total)
    priority, chosen = lax.top_k(jnp.where(positive, noise, -1.0), most)
    positives = (priority >= 0.0).sum()
    other_priority, others = lax.top_k(jnp.where(negative, noise, -1.0), min(count, total))
    negatives = (other_priority >= 0.0).sum()
    slot = jnp.arange(count)
    is_positive = slot < positives
    behind = slot - positives
    place = jnp.where(is_positive, slot, most + jnp.clip(behind, 0, others.shape[0] - 1))
    index = jnp.concatenate([chosen, others])[place]
    return Sample(index, is_positive, is_positive | ((behind >= 0) & (behind < negatives)))
