"""Hand-made and published losses as formulas of the search spaces.

Published formulas are the authors' strings, verbatim (CSE-AutoLoss, ICLR 2021).  The 0.25 / 0.75 balance of the focal
loss multiplies outside a formula, as in the authors' code.
"""

from cse_jax.expression import Expression
from cse_jax.parsing import parse
from cse_jax.spaces import Space

_HAND_MADE: dict[str, dict[str, str]] = {
    "multi_class": {
        "CE": "-dot(y, log(softmax(x)))",
        "CEI": "-dot(w * y, log(softmax(x)))",
    },
    "binary_class": {
        "CE": "-(y * log(sigmoid(x)) + ny * log(1 - sigmoid(x)))",
        "CEI": "-(q * log(sigmoid(x)) + ny * log(1 - sigmoid(x)))",
        "focal": "-(y * ((1 - sigmoid(x)) * (1 - sigmoid(x)) * log(sigmoid(x)))"
        " + ny * (sigmoid(x) * sigmoid(x) * log(1 - sigmoid(x))))",
    },
    "box": {
        "IoU": "1 - i / u",
        "-log IoU": "-log(i / u)",
        "GIoU": "1 - i / u + (e - u) / e",
    },
}

_PUBLISHED: dict[str, dict[str, str]] = {
    "multi_class": {"A_cls": "Neg(Dot(Mul(Y,Add(1,Sin(Z))),Log(Softmax(X))))"},
    "binary_class": {
        "B_cls": "Neg(Add(Mul(Q,Mul(Add(1,Serf(Sig(NY))),Log(Sig(X)))),Mul(Add(Sgdf(X),Neg(Q)),"
        "Mul(Add(Add(1,Neg(Q)),Neg(Add(1,Neg(Sig(X))))),Log(Add(1,Neg(Sig(X))))))))"
    },
    "box": {
        "A_reg": "Add(1,Neg(Add(Div(I,U),Neg(Div(Add(E,Neg(Add(I,2))),E)))))",
        "B_reg": "Neg(Div(Add(Div(Neg(Add(Neg(E),Add(1,I))),Neg(Add(3,Add(2,U)))),"
        "Add(Div(E,E),Div(Neg(E),Neg(1)))),Neg(Add(Div(Neg(Add(U,Div(I,1))),Neg(3)),Neg(E)))))",
    },
}


_DEFAULTS = {"multi_class": "CE", "binary_class": "focal", "box": "GIoU"}


def default(space: Space) -> Expression:
    """The loss that detectors usually train with: CE (two-stage), focal (one-stage), GIoU."""
    return hand_made(space)[_DEFAULTS[space.name]]


def default_name(space: Space) -> str:
    """The name of ``default``."""
    return _DEFAULTS[space.name]


def hand_made(space: Space) -> dict[str, Expression]:
    """The field's usual losses that the space can express, by name."""
    return {name: parse(text, space) for name, text in _HAND_MADE.get(space.name, {}).items()}


def published(space: Space) -> dict[str, Expression]:
    """The losses published by CSE-AutoLoss for the space, by name."""
    return {name: parse(text, space) for name, text in _PUBLISHED.get(space.name, {}).items()}


def known(space: Space) -> dict[str, Expression]:
    """All losses of this module for the space, by name."""
    return hand_made(space) | published(space)


def find(text: str, space: Space) -> Expression:
    """A loss by its name in this module, or else read as a formula."""
    return known(space).get(text) or parse(text, space)
