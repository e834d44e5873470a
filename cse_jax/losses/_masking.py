"""How every loss of this package treats ``mask`` and ``weights``: one entry per box, over all trailing axes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def _per_box(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def hide(mask: Bool[Array, "*b n"] | None, *arrays: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    """Inputs with 0 in the masked rows, so that whatever padding holds reaches neither a loss nor its gradient."""
    if mask is None:
        return arrays
    return tuple(jnp.where(_per_box(mask, a), a, 0.0) for a in arrays)


def settle(
    loss: Float[Array, "..."], mask: Bool[Array, "*b n"] | None, weights: Float[Array, "*b n"] | None
) -> Float[Array, "..."]:
    """The loss times ``weights``, and 0 in the masked rows."""
    if weights is not None:
        (weights,) = hide(mask, weights)
        loss = loss * _per_box(weights, loss)
    return hide(mask, loss)[0]
