"""cse_jax: discovers loss functions for object detection by convergence-simulation driven search.

A loss is a formula of a search space (``spaces``).  ``parse`` reads one, ``evaluate`` computes it, ``verify`` and
``simulate`` say whether it can train a detector, ``screen`` writes and filters random ones, ``simplify`` and ``export``
write one down for other programs, ``search`` looks for better ones with a detector.  ``zoo`` has the known losses as
formulas, ``losses`` as functions, ``operators`` what formulas are made of.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from cse_jax import losses
from cse_jax.errors import InputError, UserError
from cse_jax.language import operators, spaces, zoo
from cse_jax.language.expression import Expression, evaluate, to_authors, to_infix
from cse_jax.language.parsing import FormulaError, parse
from cse_jax.language.spaces import Space
from cse_jax.screening.candidate import Candidate
from cse_jax.screening.funnel import Screened, screen
from cse_jax.screening.simulation import Simulation, simulate
from cse_jax.screening.verification import Verdict, verify

if TYPE_CHECKING:
    from cse_jax import export, search
    from cse_jax.export import simplify

try:
    __version__ = importlib.metadata.version("cse_jax")
except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"

__all__ = [
    "Candidate",
    "Expression",
    "FormulaError",
    "InputError",
    "Screened",
    "Simulation",
    "Space",
    "UserError",
    "Verdict",
    "__version__",
    "evaluate",
    "export",
    "losses",
    "operators",
    "parse",
    "screen",
    "search",
    "simplify",
    "simulate",
    "spaces",
    "to_authors",
    "to_infix",
    "verify",
    "zoo",
]


def __getattr__(name: str) -> Any:
    """Imports what is slow to import when it is first used."""
    if name in ("export", "search"):
        return importlib.import_module(f"cse_jax.{name}")
    if name == "simplify":
        return importlib.import_module("cse_jax.export").simplify
    raise AttributeError(f"module 'cse_jax' has no attribute {name!r}")
