"""What the two classification spaces share: sweeps of one logit, and random logits with labels.

Paths stay within |logit| <= 12 and are evaluated in float64, so that no gradient vanishes by underflow.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

SWEEP = np.linspace(12.0, -12.0, 13)
OTHERS = ((0.0, 0.0), (1.0, -2.0), (-4.0, -3.0), (3.0, 2.0))
RATE = 0.5  # logits, for a step of gradient descent
ROWS, CLASSES = 64, 4


def sweep(
    others: tuple[float, ...], moving: int, *, label: int | None
) -> tuple[Float[np.ndarray, "p c"], Float[np.ndarray, "p c"]]:
    """Logits and tangents of a path: class ``moving`` goes from its good end to its bad one, ``others`` are fixed."""
    sign = 1.0 if moving == label else -1.0
    logits = np.tile(np.insert(np.asarray(others), moving, 0.0), (len(SWEEP), 1))
    tangent = np.zeros_like(logits)
    logits[:, moving] = sign * SWEEP
    tangent[:, moving] = -sign
    return logits, tangent


def path_name(*, moving: int, label: int | None, background: bool, quality: str) -> str:
    """What happens on a path."""
    what = "the label's logit falls" if moving == label else "another class's logit rises"
    return f"{what} ({'background' if background else 'foreground'} row, {quality})"


def random_rows(
    seed: int,
) -> tuple[Float[Array, "n c"], Int[np.ndarray, " n"], Bool[np.ndarray, " n"], Float[np.ndarray, "n c"]]:
    """Random logits, their labels, which rows are background (a third), and IoUs, which are 1 on background rows."""
    rng = np.random.default_rng(seed)
    background = np.arange(ROWS) % 3 == 0
    label = np.where(background, CLASSES - 1, rng.integers(0, CLASSES - 1, ROWS))
    iou = rng.uniform(0.3, 1.0, (ROWS, 1)).astype(np.float32)
    logits = rng.normal(0.0, 1.5, (ROWS, CLASSES)).astype(np.float32)
    iou = np.where(background[:, None], 1.0, iou).astype(np.float32)
    return jnp.asarray(logits), label, background, np.broadcast_to(iou, logits.shape)


def balanced(right: Bool[Array, "*n"], positive: Bool[np.ndarray, "*n"]) -> Float[Array, ""]:
    """Mean of the accuracies on positives and on negatives."""
    return 0.5 * (jnp.sum(right * positive) / positive.sum() + jnp.sum(right * ~positive) / (~positive).sum())
