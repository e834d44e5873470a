"""Where a loss enters a detector: formulas as data or losses of the library, applied to logits, labels and boxes.

All functions are differentiable in the predictions.  A formula is traced, so a training step that takes
``DetectionLosses`` as an input is compiled once and then trains with any formula of the same spaces.  It is compiled
again for each library loss, but never for another weight.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cse_jax.language import interpreter, program, spaces, zoo
from cse_jax.language.expression import Expression
from cse_jax.language.parsing import FormulaError
from cse_jax.language.program import Program
from cse_jax.language.spaces import Space
from cse_jax.language.spaces.box import AREA_EPS
from cse_jax.search.task import LibraryLoss
from detectors import named_losses
from detectors.named_losses import LossError, NamedLoss
from detectors.ops import boxes as box_ops

USUAL_ON_OFFSETS = 1.0  # weight of losses on encoded offsets


class LossTerm(NamedTuple):
    """A formula as data, and the weight it is multiplied by."""

    program: Program
    weight: Float[Array, ""]


class DetectionLosses(NamedTuple):
    """The two losses of a detector's final head; a region proposal network keeps its own."""

    cls: LossTerm | NamedLoss
    box: LossTerm | NamedLoss


def term(expression: Expression, weight: float = 1.0, *, stable: bool = True) -> LossTerm:
    """A formula, compiled (``stable`` as ``compile_expression`` takes it), with its weight."""
    return LossTerm(program.compile_expression(expression, stable=stable), jnp.float32(weight))


def as_term(loss: Expression | LibraryLoss, weight: float, *, stable: bool = True) -> LossTerm | NamedLoss:
    """A loss of a pair, as a detector takes it: a formula or the function that its text names."""
    if isinstance(loss, LibraryLoss):
        return resolve(loss.text, loss.space, weight)
    return term(loss, weight, stable=stable)


def library_loss(text: str, space: Space) -> LibraryLoss | None:
    """The function of ``cse_jax.losses`` that a text names; None for the text of a formula.

    Raises:
      LossError: the function is of another space, or a hyper-parameter is unknown or of the wrong type.
    """
    found = named_losses.read(text, space)
    return found and LibraryLoss(text.strip(), space, USUAL_ON_OFFSETS if found.on_offsets else None)


def default_losses(cls_space: Space, *, box_weight: float = 1.0) -> DetectionLosses:
    """The usual losses: CE (two-stage) or focal (one-stage) with GIoU.

    Args:
      cls_space: the detector's classification space.
      box_weight: weight of the box loss; 10 is usual for decoded boxes in R-CNN, 1 for FCOS.
    """
    return DetectionLosses(term(zoo.default(cls_space)), term(zoo.default(spaces.BOX), box_weight))


def resolve(text: str, space: Space, weight: float = 1.0, *, stable: bool = True) -> LossTerm | NamedLoss:
    """The loss that a text names.

    Args:
      text: a library loss with or without hyper-parameters (``varifocal_loss``, ``focal_loss(gamma=1.5)``), a loss of
        ``cse_jax.language.zoo`` (``CEI``), or a formula.
      space: the space that the loss must belong to.
      weight: factor on the loss.
      stable: of a formula, as ``compile_expression`` takes it.

    Raises:
      LossError, FormulaError: it is none of these; the message says what was expected and names the nearest loss.
    """
    named = named_losses.read(text, space, weight)
    if named is not None:
        return named
    try:
        return term(zoo.find(text.strip(), space), weight, stable=stable)
    except FormulaError as error:
        hint = named_losses.hint(text, space)
        if not hint:
            raise
        formulas = ", ".join(zoo.known(space))
        message = f"{text.strip()!r} names no loss: {hint}; formulas by name are {formulas}.\nAs a formula: {error}"
        raise LossError(message) from error


def resolve_pair(
    cls_space: Space,
    *,
    cls: str = "",
    box: str = "",
    cls_weight: float = 1.0,
    box_weight: float | None = None,
    usual_box_weight: float = 1.0,
    stable: bool = True,
) -> DetectionLosses:
    """The losses of a detector, by name or formula.

    Args:
      cls_space: the detector's classification space.
      cls, box: as ``resolve`` reads them; the defaults of the spaces if empty.
      cls_weight: factor on the classification loss.
      box_weight: factor on the box loss; by default 1 for losses on encoded offsets, else ``usual_box_weight``.
      usual_box_weight: the detector's weight of losses on decoded boxes.
      stable: of formulas, as ``compile_expression`` takes it.

    Raises:
      LossError, FormulaError: a text names no loss of its space.
    """
    cls, box = cls or zoo.default_name(cls_space), box or zoo.default_name(spaces.BOX)
    if box_weight is None:
        named = named_losses.read(box, spaces.BOX)
        box_weight = USUAL_ON_OFFSETS if named and named.on_offsets else usual_box_weight
    return DetectionLosses(
        resolve(cls, cls_space, cls_weight, stable=stable), resolve(box, spaces.BOX, box_weight, stable=stable)
    )


def binary_class_loss(
    loss: LossTerm | NamedLoss,
    *,
    logits: Float[Array, "*b n c"],
    quality: Float[Array, "*b n c"],
    labels: Float[Array, "*b n c"],
    mask: Bool[Array, "*b n"] | None = None,
    alpha: float | Float[Array, ""] = 0.25,
) -> Float[Array, "*b n c"]:
    """Sigmoid classification loss per element, in a one-stage head.

    Args:
      loss: formula or library loss of ``spaces.BINARY_CLASS``.
      logits: class scores; finite in masked rows too.
      quality: detached IoU of the decoded box with its target at the ground-truth class, 0 elsewhere.
      labels: 1 at the ground-truth class, 0 elsewhere.
      mask: rows that count; the others give 0.
      alpha: weight of positives, while negatives have ``1 - alpha``.  It multiplies the value of a formula (authors'
        code) and does not apply to a library loss, which has its own balance or none.
    """
    if isinstance(loss, NamedLoss):
        return named_losses.evaluate(loss, {"logits": logits, "quality": quality, "labels": labels}, mask)
    inputs = {"X": logits, "Q": quality, "PY": labels, "NY": 1.0 - labels}
    balance = alpha * labels + (1.0 - alpha) * (1.0 - labels)
    values = interpreter.evaluate(spaces.BINARY_CLASS, loss.program, inputs) * balance * loss.weight
    return values if mask is None else jnp.where(mask[..., None], values, 0.0)


def binary_class_divisor(
    loss: LossTerm | NamedLoss, *, usual: Float[Array, ""], mask: Bool[Array, "*b n"], classes: int
) -> Float[Array, ""]:
    """The divisor of the sum of ``binary_class_loss``: the usual one, or all entries for a loss that is a mean (GHM-C).

    GHM-C (Li et al. 2019) gives every entry, easy negatives included, a weight of 1 on average.  Divided by the few
    positives it would be hundreds of times the loss of its paper.

    Args:
      loss: formula or library loss of ``spaces.BINARY_CLASS``.
      usual: the detector's divisor.
      mask: rows that count.
      classes: entries of a row.
    """
    if isinstance(loss, NamedLoss) and loss.is_mean:
        return jnp.maximum(mask.sum() * classes, 1).astype(jnp.float32)
    return usual


def multi_class_loss(
    loss: LossTerm | NamedLoss,
    *,
    logits: Float[Array, "n k"],
    labels: Float[Array, "n k"],
    iou: Float[Array, " n"],
) -> Float[Array, " n"]:
    """Softmax classification loss per RoI, in a two-stage head.

    Args:
      loss: formula or library loss of ``spaces.MULTI_CLASS``.
      logits: class scores; ``k`` is the number of classes and one for the background, which comes last.
      labels: one-hot.
      iou: detached IoU of the decoded box with its target; 1 for background rows (authors' code).
    """
    if isinstance(loss, NamedLoss):
        return named_losses.evaluate(loss, {"logits": logits, "labels": labels, "iou": iou})
    inputs = {"X": logits, "Y": labels, "Z": jnp.broadcast_to(iou[:, None], logits.shape)}
    return interpreter.evaluate(spaces.MULTI_CLASS, loss.program, inputs).sum(-1) * loss.weight


def box_loss(
    loss: LossTerm | NamedLoss,
    *,
    predicted: Float[Array, "*b n 4"],
    target: Float[Array, "*b n 4"],
    predicted_offsets: Float[Array, "*b n 4"],
    target_offsets: Float[Array, "*b n 4"],
    mask: Bool[Array, "*b n"],
) -> Float[Array, "*b n"]:
    """Box regression loss per box.

    Args:
      loss: formula or library loss of ``spaces.BOX``; a loss per coordinate is summed over the four.
      predicted: boxes, in the unit that the detector feeds its loss (pixels, or strides for FCOS).
      target: boxes, in the same unit.
      predicted_offsets: the same boxes as the head encodes them, for L1 and similar losses.
      target_offsets: the target boxes in the same encoding.
      mask: rows that count; the others give 0.
    """
    if isinstance(loss, NamedLoss):
        pair = (predicted_offsets, target_offsets) if loss.on_offsets else (predicted, target)
        values = named_losses.evaluate(loss, dict(zip(("predictions", "targets"), pair, strict=True)), mask)
        return values.sum(-1) if values.ndim > mask.ndim else values
    intersection, union, enclosure = box_ops.overlap(predicted, target)
    inputs = {"I": intersection, "U": union + AREA_EPS, "E": enclosure + AREA_EPS}
    return jnp.where(mask, interpreter.evaluate(spaces.BOX, loss.program, inputs) * loss.weight, 0.0)
