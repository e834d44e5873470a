"""Pairs of losses as people write them: ``focal | 1 - i / u x0.5``."""

import math
import re
from collections.abc import Callable

from cse_jax.errors import InputError
from cse_jax.language import zoo
from cse_jax.language.parsing import FormulaError
from cse_jax.language.spaces import Space
from cse_jax.search.task import PARTS, LibraryLoss, LossPair, Task

_NAMED = re.compile(r"((?:[^=|()]|\([^=|()]*\))*)=")  # within brackets "=" gives a hyper-parameter
_FACTOR = re.compile(r"\sx(\d[\d.eE+-]*)\s*$")  # after a blank: no formula ends like that


def read_pair(
    text: str, task: Task, library: Callable[[str, Space], LibraryLoss | None] = lambda text, space: None
) -> tuple[str, LossPair]:
    """The pair that a text names: classification loss, bar, box loss, each with a factor on its usual weight if wanted.

    A loss is a name (``CE``, ``B_reg``, ``ciou_loss``) or a formula; the default one where nothing is written.

    Args:
      text: as ``"B_cls | B_reg"``, ``"focal x2 | GIoU"``, ``"squared = | 1 - i / u * (i / u)"``.
      task: of the detector.
      library: finds a loss that is no formula by its text, if there is one.

    Returns:
      What the pair is called, the whole text if it has no name, and the losses.

    Raises:
      InputError: it is no pair, or a part of it no loss of its space.
    """
    named = _NAMED.match(text)
    name, losses = (named[1], text[named.end() :]) if named else ("", text)
    parts = losses.split("|")
    if len(parts) != 2:
        raise InputError(f"{text!r} is no pair of losses: write classification | box, as in 'CE | 1 - i / u x0.5'")
    pair = task.default
    for part, written in zip(PARTS, parts, strict=True):
        found = _FACTOR.search(written)
        loss = (written[: found.start()] if found else written).strip() or zoo.default_name(task.space(part))
        try:
            chosen = library(loss, task.space(part)) or zoo.find(loss, task.space(part))
            pair = task.replaced(part, chosen, _factor(found, text), pair)
        except FormulaError as error:
            raise InputError(f"in the pair {text!r}, the {part} loss {loss!r}: {error}") from error
    return name.strip() or text.strip(), pair


def _factor(found: re.Match[str] | None, text: str) -> float:
    if found is None:
        return 1.0
    try:
        factor = float(found[1])
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0.0):
        raise InputError(f"in the pair {text!r}, x{found[1]} is no factor: write a positive number, as in x0.5")
    return factor
