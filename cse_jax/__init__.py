"""cse_jax: discovers loss functions for object detection by convergence-simulation driven search."""

from cse_jax.language import spaces
from cse_jax.language.expression import Expression, to_authors, to_infix
from cse_jax.language.parsing import FormulaError, parse
from cse_jax.screening.verification import Verdict, verify

__all__ = ["Expression", "FormulaError", "Verdict", "parse", "spaces", "to_authors", "to_infix", "verify"]
