"""What a table tells a search of the same spaces before its first training."""

import math

from cse_jax.loss_table.analysis import complete
from cse_jax.loss_table.table import LossTable, LossTableError
from cse_jax.search.choosing import Tried
from cse_jax.search.task import PARTS, Part, Task


def tried(table: LossTable, task: Task) -> dict[Part, list[Tried]]:
    """The losses of a table that a search may meet, with their mean AP on the select split at the last horizon.

    Args:
      table: trained losses; those that the verification rejects are left out, as in a search.
      task: of the search; a part whose losses are of another space in the table has no entry.

    Raises:
      LossTableError: no part of the table is of use.
    """
    found: dict[Part, list[Tried]] = {}
    for part in filter(table.of, PARTS):
        losses, select, _, _ = complete(table, part)
        kept = [
            Tried(loss.formula, float(ap), loss.scores.get("simulation", math.nan))
            for loss, ap in zip(losses, select[:, :, -1].mean(1), strict=True)
            if not loss.is_rejected and loss.formula.space == task.space(part)
        ]
        if kept:
            found[part] = kept
    if not found:
        raise LossTableError("the table of config.prior has no trained losses of the detector's spaces")
    return found
