"""What a formula does not say: the unit of its boxes, and what stands outside of it."""

import numpy as np

from cse_jax.language import spaces
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64

_UNITS = {
    "pixels": "boxes in pixels of the resized image, as in the search",
    "strides": "boxes in strides of their level (pixels divided by the stride), as in the search",
    "": "boxes in the unit of the search: pixels in R-CNN and ATSS, strides of their level in FCOS",
}
_BALANCE = (
    "Balance: outside of the formula; unless set otherwise, the search weights the elements of the label by 0.25 and "
    "the others by 0.75 (alpha)."
)

_WEIGHT = "Weight: losses on decoded boxes usually have a weight of 10 in R-CNN, and of 1 or 2 in one-stage detectors."


def usage(expression: Expression, units: str = "") -> list[str]:
    """Lines about units and balance.

    Args:
      expression: the formula.
      units: unit of length of its boxes, ``"pixels"`` or ``"strides"``; empty if that is not known.
    """
    if expression.space == spaces.BINARY_CLASS:
        return [_BALANCE]
    if expression.space != spaces.BOX:
        return []
    weight = [] if units else [_WEIGHT]
    if _is_unit_free(expression):
        return [*weight, "Units: the value is the same whatever the unit of the boxes is."]
    other = "In another unit it is another loss; boxes between 0 and 1 must be scaled to that one."
    return [*weight, f"Units: {_UNITS[units]}. {other}"]


def client_units(expression: Expression, units: str) -> str:
    """The unit that a client gives boxes in: strides only if the loss was found in strides and depends on it."""
    in_strides = units == "strides" and expression.space == spaces.BOX and not _is_unit_free(expression)
    return "strides" if in_strides else "pixels"


def _is_unit_free(expression: Expression) -> bool:
    """Whether boxes twice as large have the same loss."""
    rng = np.random.default_rng(0)
    i, more, outside = np.exp(rng.normal(3.0, 2.0, (3, 256)))
    areas = {"I": i, "U": i + more, "E": i + more + outside}
    with float64():
        once, scaled = (
            np.asarray(expression.evaluate({name: side**2 * area for name, area in areas.items()})) for side in (1, 16)
        )
    return bool(np.allclose(once, scaled, rtol=1e-9, atol=0.0))
