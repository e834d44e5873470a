"""cse_jax: discovers loss functions for object detection by convergence-simulation driven search."""

from cse_jax import spaces
from cse_jax.expression import Expression
from cse_jax.gate import Verdict, verify
from cse_jax.parsing import FormulaError, parse
from cse_jax.printing import to_authors, to_infix

__all__ = ["Expression", "FormulaError", "Verdict", "parse", "spaces", "to_authors", "to_infix", "verify"]
