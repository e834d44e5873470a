"""The losses that each space comes with, as formulas by name."""

from cse_jax.language.expression import Expression
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import Space


def default(space: Space) -> Expression:
    """The loss that detectors usually train with: CE (two-stage), focal (one-stage), GIoU."""
    return hand_made(space)[default_name(space)]


def default_name(space: Space) -> str:
    """The name of ``default``."""
    return next(iter(space.losses))


def hand_made(space: Space) -> dict[str, Expression]:
    """The field's usual losses that the space can express, by name."""
    return {name: parse(text, space) for name, text in space.losses.items()}


def published(space: Space) -> dict[str, Expression]:
    """The losses published by CSE-AutoLoss for the space, by name."""
    return {name: parse(text, space) for name, text in space.published.items()}


def known(space: Space) -> dict[str, Expression]:
    """All losses of the space, by name."""
    return hand_made(space) | published(space)


def find(text: str, space: Space) -> Expression:
    """A loss by its name in the space, or else read as a formula."""
    return known(space).get(text) or parse(text, space)
