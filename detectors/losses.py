"""Where a candidate loss enters a detector: formulas as data, applied to logits, labels and boxes.

All functions are differentiable in the predictions and traceable in the loss, so a training step that takes
``DetectionLosses`` as an input is compiled once and then trains with any loss of the same spaces.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cse_jax import program, spaces, zoo
from cse_jax.expression import Expression
from cse_jax.program import Program
from cse_jax.spaces import Space
from detectors.ops import boxes as box_ops

AREA_EPS = 1e-7  # added to union and enclosure, as in the authors' code


class LossTerm(NamedTuple):
    """A formula as data, and the weight it is multiplied by."""

    program: Program
    weight: Float[Array, ""]


class DetectionLosses(NamedTuple):
    """The two losses of a detector's final head; a region proposal network keeps its own."""

    cls: LossTerm
    box: LossTerm


def term(expression: Expression, weight: float = 1.0) -> LossTerm:
    """A formula, compiled, with its weight."""
    return LossTerm(program.compile_expression(expression), jnp.float32(weight))


def default_losses(cls_space: Space, *, box_weight: float = 1.0) -> DetectionLosses:
    """The usual losses: CE (two-stage) or focal (one-stage) with GIoU.

    Args:
      cls_space: the detector's classification space.
      box_weight: weight of the box loss; 10 is usual for decoded boxes in R-CNN, 1 for FCOS.
    """
    return DetectionLosses(term(zoo.default(cls_space)), term(zoo.default(spaces.BOX), box_weight))


def binary_class_loss(
    loss: LossTerm,
    *,
    logits: Float[Array, "n c"],
    quality: Float[Array, "n c"],
    labels: Float[Array, "n c"],
    alpha: float = 0.25,
) -> Float[Array, "n c"]:
    """Sigmoid classification loss per element, in a one-stage head.

    Args:
      loss: formula of ``spaces.BINARY_CLASS``.
      logits: class scores.
      quality: detached IoU of the decoded box with its target at the ground-truth class, 0 elsewhere.
      labels: 1 at the ground-truth class, 0 elsewhere.
      alpha: weight of positives, ``1 - alpha`` of negatives; it multiplies outside the formula (authors' code).
    """
    inputs = {"X": logits, "Q": quality, "PY": labels, "NY": 1.0 - labels}
    balance = alpha * labels + (1.0 - alpha) * (1.0 - labels)
    return program.evaluate(spaces.BINARY_CLASS, loss.program, inputs) * balance * loss.weight


def multi_class_loss(
    loss: LossTerm,
    *,
    logits: Float[Array, "n k"],
    labels: Float[Array, "n k"],
    iou: Float[Array, " n"],
) -> Float[Array, " n"]:
    """Softmax classification loss per RoI, in a two-stage head.

    Args:
      loss: formula of ``spaces.MULTI_CLASS``.
      logits: class scores; ``k`` is the number of classes and one for the background, which comes last.
      labels: one-hot.
      iou: detached IoU of the decoded box with its target; 1 for background rows (authors' code).
    """
    inputs = {"X": logits, "Y": labels, "Z": jnp.broadcast_to(iou[:, None], logits.shape)}
    return program.evaluate(spaces.MULTI_CLASS, loss.program, inputs).sum(-1) * loss.weight


def box_loss(loss: LossTerm, *, predicted: Float[Array, "n 4"], target: Float[Array, "n 4"]) -> Float[Array, " n"]:
    """Box regression loss per box.

    Args:
      loss: formula of ``spaces.BOX``.
      predicted: boxes, in the unit that the detector feeds its loss (pixels, or strides for FCOS).
      target: boxes, in the same unit.
    """
    intersection, union, enclosure = box_ops.overlap(predicted, target)
    inputs = {"I": intersection, "U": union + AREA_EPS, "E": enclosure + AREA_EPS}
    return program.evaluate(spaces.BOX, loss.program, inputs) * loss.weight
