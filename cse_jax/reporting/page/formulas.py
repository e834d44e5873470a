"""Formulas as a page shows them: rendered, and as text to copy."""

import functools

from cse_jax.export import definitions
from cse_jax.export.typesetting import to_mathml
from cse_jax.language.expression import Expression
from cse_jax.reporting.page.markup import Markup, scrolled, tag


def shown(formula: Expression) -> Markup:
    """The formula in mathematical notation and as text."""
    return Markup(scrolled(_rendered(formula), label="formula") + tag("p", tag("code", str(formula))))


@functools.lru_cache(maxsize=256)
def _rendered(formula: Expression) -> Markup:
    """As MathML, which browsers set and screen readers speak."""
    found = to_mathml(formula, after=definitions.in_mathml(formula))
    return Markup(found.replace("<mo>&#8290;</mo>", '<mo lspace="0.15em">&#8290;</mo>'))  # factors a little apart
