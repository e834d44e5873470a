"""Losses of the gradient harmonising mechanism (Li, Liu and Wang, AAAI 2019).

An entry is weighted by how rare the size of its gradient is in the batch.  Shapes, masks and weights are as in the
other losses; both also return the state of their moving average.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cse_jax.losses._classification import binary_cross_entropy
from cse_jax.losses._masking import hide, settle


def _harmonise(
    norms: Float[Array, "*b n k"],
    mask: Bool[Array, "*b n"] | None,
    *,
    bins: int,
    momentum: float,
    counts: Float[Array, " bins"] | None,
) -> tuple[Float[Array, "*b n k"], Float[Array, " bins"]]:
    """Weights ``N / (M * count)`` that even out how often each gradient norm occurs (equations 3 to 6).

    N is the number of unmasked entries and M the number of bins that hold any, as in MMDetection; the paper has the
    number of all bins.  The number of bins is fixed and every entry is binned, so shapes are static.

    Args:
      norms: gradient norms in [0, 1]; they are binned, so no gradient flows through the weights.
      mask: rows to count; all by default.
      bins: number of bins of equal width.
      momentum: of the moving average of counts over steps; 0 takes the counts of these norms alone.
      counts: moving average after the last step; zeros by default, where MMDetection starts.

    Returns:
      The weights, and the moving average after this step.  Bins without entries keep theirs.
    """
    valid = jnp.ones(norms.shape, bool) if mask is None else jnp.broadcast_to(mask[..., None], norms.shape)
    index = jnp.minimum((norms * bins).astype(jnp.int32), bins - 1)
    # Counted in integers: a sum of ones in float32 sticks at 2**24, which a batch of dense predictions can reach.
    held = jnp.zeros(bins, jnp.int32).at[index].add(valid.astype(jnp.int32))
    occupied = held > 0
    before = jnp.zeros(bins, norms.dtype) if counts is None else counts
    counts = jnp.where(occupied, momentum * before + (1.0 - momentum) * held.astype(norms.dtype), before)
    total = jnp.sum(held).astype(norms.dtype)
    share = total / jnp.maximum(jnp.sum(occupied), 1)
    weights = jnp.where(occupied, share / jnp.where(occupied, counts, 1.0), 0.0)
    return weights[index], counts


def ghm_c_loss(
    logits: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    *,
    bins: int = 30,
    momentum: float = 0.0,
    counts: Float[Array, " bins"] | None = None,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> tuple[Float[Array, "*b n c"], Float[Array, " bins"]]:
    """Gradient harmonised classification loss, GHM-C (Li, Liu and Wang, AAAI 2019, equation 7).

    The mean of the result over all unmasked entries is the loss of the paper.  An entry's value depends on the whole
    batch through the density of ``|sig(x) - y|``; no gradient flows through that density.

    Args:
      logits: class scores.
      labels: 0 or 1.
      bins: number of bins of the gradient norm.
      momentum: of the moving average of the bins' counts; 0.75 in MMDetection's RetinaNet, 0 for none.
      counts: moving average that the last step returned; zeros by default, where MMDetection starts.
      mask: rows to keep; the others are not counted either.
      weights: factor per box; it multiplies afterwards and changes no count.

    Returns:
      ``beta BCE(x, y)`` per box and class, and the moving average of the counts for the next step.
    """
    logits, labels = hide(mask, logits, labels)
    norms = jnp.abs(jax.nn.sigmoid(logits) - labels)
    beta, counts = _harmonise(norms, mask, bins=bins, momentum=momentum, counts=counts)
    return settle(beta * binary_cross_entropy(logits, labels), mask, weights), counts


def ghm_r_loss(
    predictions: Float[Array, "*b n 4"],
    targets: Float[Array, "*b n 4"],
    *,
    mu: float = 0.02,
    bins: int = 10,
    momentum: float = 0.0,
    counts: Float[Array, " bins"] | None = None,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> tuple[Float[Array, "*b n 4"], Float[Array, " bins"]]:
    """Gradient harmonised regression loss, GHM-R (Li, Liu and Wang, AAAI 2019, equations 9 to 11).

    The mean of the result over all unmasked coordinates is the loss of the paper.  A coordinate's value depends on the
    whole batch through the density of ``|d| / sqrt(d^2 + mu^2)``; no gradient flows through that density.

    Args:
      predictions: encoded offsets.
      targets: encoded offsets.
      mu: where the authentic smooth L1 ``sqrt(d^2 + mu^2) - mu`` turns from a parabola to a line; above 0.
      bins: number of bins of the gradient norm.
      momentum: of the moving average of the bins' counts; 0.7 in MMDetection's RetinaNet, 0 for none.
      counts: moving average that the last step returned; zeros by default, where MMDetection starts.
      mask: rows to keep; the others are not counted either.
      weights: factor per box; it multiplies afterwards and changes no count.

    Returns:
      ``beta (sqrt(d^2 + mu^2) - mu)`` per coordinate, and the moving average of the counts for the next step.
    """
    predictions, targets = hide(mask, predictions, targets)
    difference = predictions - targets
    root = jnp.sqrt(difference * difference + mu * mu)
    norms = jnp.abs(difference) / root
    beta, counts = _harmonise(norms, mask, bins=bins, momentum=momentum, counts=counts)
    return settle(beta * (root - mu), mask, weights), counts
