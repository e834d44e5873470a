"""Classification losses.

Shapes: ``b`` batch axes (any number, also none), ``n`` boxes or points, ``c`` classes.  Softmax losses count the
background among the classes and give one value per box; sigmoid losses give one per box and class.  ``mask`` and
``weights`` have one entry per box: a masked row gives 0, and no gradient whatever it holds.  IoU and quality are
targets: no gradient flows into them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cse_jax.language.operators import OPERATORS
from cse_jax.losses._masking import hide, settle

_serf = OPERATORS["Serf"].fn
_sgdf = OPERATORS["Sgdf"].fn


def _binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return -(targets * jax.nn.log_sigmoid(logits) + (1.0 - targets) * jax.nn.log_sigmoid(-logits))


def _balance(labels: jax.Array, alpha: float | None) -> jax.Array:
    return jnp.ones_like(labels) if alpha is None else alpha * labels + (1.0 - alpha) * (1.0 - labels)


def cross_entropy(
    logits: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Softmax cross entropy (CE) of two-stage heads.

    Args:
      logits: class scores, background included.
      labels: one-hot, or any distribution over the classes.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``-sum_c y log softmax(x)`` per box.
    """
    logits, labels = hide(mask, logits, labels)
    return settle(-jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1), mask, weights)


def binary_cross_entropy(
    logits: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n c"]:
    """Sigmoid cross entropy of one-stage heads.

    Args:
      logits: class scores.
      labels: 0 or 1, or a probability.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``-(y log sig(x) + (1-y) log(1-sig(x)))`` per box and class.
    """
    logits, labels = hide(mask, logits, labels)
    return settle(_binary_cross_entropy(logits, labels), mask, weights)


def iou_weighted_cross_entropy(
    logits: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    iou: Float[Array, "*b n"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Softmax cross entropy weighted by the IoU (CEI; Liu et al., CSE-AutoLoss, ICLR 2021).

    Args:
      logits: class scores, background included.
      labels: one-hot.
      iou: IoU of the decoded box with its target; 1 for background rows.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``-w sum_c y log softmax(x)`` per box.
    """
    logits, labels, iou = hide(mask, logits, labels, jax.lax.stop_gradient(iou))
    return settle(-iou * jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1), mask, weights)


def iou_weighted_binary_cross_entropy(
    logits: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    quality: Float[Array, "*b n c"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n c"]:
    """Sigmoid cross entropy with its positives weighted by the IoU (CEI of one-stage heads).

    Args:
      logits: class scores.
      labels: 0 or 1.
      quality: IoU of the decoded box with its target at the ground-truth class, 0 elsewhere.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``-(q log sig(x) + (1-y) log(1-sig(x)))`` per box and class.
    """
    logits, labels, quality = hide(mask, logits, labels, jax.lax.stop_gradient(quality))
    loss = -(quality * jax.nn.log_sigmoid(logits) + (1.0 - labels) * jax.nn.log_sigmoid(-logits))
    return settle(loss, mask, weights)


def poly1_cross_entropy(
    logits: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    *,
    epsilon: float = -1.0,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """PolyLoss-1 of softmax cross entropy (Leng et al., ICLR 2022): CE with another first Taylor coefficient.

    Args:
      logits: class scores, background included.
      labels: one-hot.
      epsilon: what is added to the coefficient of ``1 - p``; the paper has -1 for detection, 2 for ImageNet.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``CE + epsilon (1 - p)`` per box, ``p`` being the probability of the label.
    """
    logits, labels = hide(mask, logits, labels)
    cross = -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)
    wrong = jnp.sum(labels * (1.0 - jax.nn.softmax(logits)), axis=-1)
    return settle(cross + epsilon * wrong, mask, weights)


def focal_loss(
    logits: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n c"]:
    """Sigmoid focal loss (Lin et al., ICCV 2017, equation 5).

    Args:
      logits: class scores.
      labels: 0 or 1.
      alpha: weight of positives, ``1 - alpha`` of negatives; None leaves both at 1.
      gamma: how strongly well classified entries are weighted down, at least 0.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``-alpha_t (1 - p_t)^gamma log p_t`` per box and class.
    """
    logits, labels = hide(mask, logits, labels)
    signed = (2.0 * labels - 1.0) * logits
    # (1 - p_t)^gamma through the logarithm: 1 - p_t is 0 in float32 from a logit of 17, and its power has no gradient.
    modulation = jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    return settle(-_balance(labels, alpha) * modulation * jax.nn.log_sigmoid(signed), mask, weights)


def quality_focal_loss(
    logits: Float[Array, "*b n c"],
    quality: Float[Array, "*b n c"],
    *,
    beta: float = 2.0,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n c"]:
    """Quality focal loss (Li et al., Generalized Focal Loss, NeurIPS 2020, equation 4).

    Args:
      logits: class scores.
      quality: IoU of the decoded box with its target at the ground-truth class, 0 elsewhere.
      beta: exponent of the distance to the target, at least 1.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``|q - sig(x)|^beta BCE(x, q)`` per box and class; MMDetection sums over the classes.
    """
    logits, quality = hide(mask, logits, jax.lax.stop_gradient(quality))
    distance = jnp.abs(quality - jax.nn.sigmoid(logits))
    return settle(distance**beta * _binary_cross_entropy(logits, quality), mask, weights)


def varifocal_loss(
    logits: Float[Array, "*b n c"],
    quality: Float[Array, "*b n c"],
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n c"]:
    """Varifocal loss (Zhang et al., VarifocalNet, CVPR 2021, equation 2).

    Args:
      logits: class scores.
      quality: IoU of the decoded box with its target at the ground-truth class, 0 elsewhere.
      alpha: weight of negatives.
      gamma: how strongly well classified negatives are weighted down, at least 0.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``q BCE(x, q)`` where q > 0, ``-alpha p^gamma log(1 - p)`` elsewhere, per box and class.
    """
    logits, quality = hide(mask, logits, jax.lax.stop_gradient(quality))
    modulation = alpha * jnp.exp(gamma * jax.nn.log_sigmoid(logits))
    factor = jnp.where(quality > 0.0, quality, modulation)
    return settle(factor * _binary_cross_entropy(logits, quality), mask, weights)


def cse_autoloss_a_cls(
    logits: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    iou: Float[Array, "*b n"],
    *,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Classification branch of CSE-AutoLoss-A, searched on Faster R-CNN (Liu et al., ICLR 2021).

    Args:
      logits: class scores, background included.
      labels: one-hot.
      iou: IoU of the decoded box with its target; 1 for background rows.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``-(1 + sin w) sum_c y log softmax(x)`` per box.
    """
    logits, labels, iou = hide(mask, logits, labels, jax.lax.stop_gradient(iou))
    return settle(-(1.0 + jnp.sin(iou)) * jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1), mask, weights)


def cse_autoloss_b_cls(
    logits: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    quality: Float[Array, "*b n c"],
    *,
    alpha: float | None = None,
    mask: Bool[Array, "*b n"] | None = None,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n c"]:
    """Classification branch of CSE-AutoLoss-B, searched on FCOS (Liu et al., ICLR 2021).

    ``erf`` and ``gd`` are the authors' S-shaped curves, scaled to (0, 1) with derivative 1/4 at 0.

    Args:
      logits: class scores.
      labels: 0 or 1.
      quality: IoU of the decoded box with its target at the ground-truth class, 0 elsewhere.
      alpha: weight of positives, ``1 - alpha`` of negatives; 0.25 in the authors' training code, None for the formula.
      mask: rows to keep.
      weights: factor per box.

    Returns:
      ``-[q (1 + erf(sig(1-y))) log sig(x) + (gd(x) - q)(sig(x) - q) log(1 - sig(x))]`` per box and class.
    """
    logits, labels, quality = hide(mask, logits, labels, jax.lax.stop_gradient(quality))
    positive = quality * (1.0 + _serf(jax.nn.sigmoid(1.0 - labels))) * jax.nn.log_sigmoid(logits)
    distance = (_sgdf(logits) - quality) * (jax.nn.sigmoid(logits) - quality)
    loss = -(positive + distance * jax.nn.log_sigmoid(-logits))
    return settle(_balance(labels, alpha) * loss, mask, weights)
