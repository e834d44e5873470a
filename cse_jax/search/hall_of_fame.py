"""The hall of fame: what reached the end of the proxy task, best first, and differences within the noise by size."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cse_jax.language.expression import Expression, to_authors
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import Space
from cse_jax.screening.candidate import Candidate
from cse_jax.search.statistics import ranked, seed_noise, standard_error


@dataclasses.dataclass(frozen=True)
class Entry:
    """A loss in the hall of fame.

    Attributes:
      formula, weight: the loss.
      aps: on the select split at the end of the proxy task, by seed.
      simulation, probe, overfit: its scores in these stages.
      generation: where it was found.
      curve: (steps, AP of the first seed) at each horizon of the proxy task.
      origin: how it came about, one of ``ancestry.ORIGINS``, then its parents in the authors' notation; empty if that
        was not recorded.
      searched: of a branch with a template, the part that was searched, in the authors' notation.
    """

    formula: Expression
    weight: float
    aps: tuple[float, ...]
    overfit: float
    generation: int
    curve: tuple[tuple[int, float], ...] = ()
    simulation: float = math.nan
    probe: float = math.nan
    origin: tuple[str, ...] = ()
    searched: str = ""

    @property
    def ap(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.aps)


def to_row(candidate: Candidate, generation: int, origin: Sequence[str] = (), searched: str = "") -> dict[str, Any]:
    """A candidate that reached the end of the proxy task, as the ledger keeps it."""
    return {
        "formula": to_authors(candidate.formula),
        "weight": candidate.weight,
        "aps": candidate.aps,
        "overfit": candidate.overfit,
        "generation": generation,
        "curve": candidate.curve,
        "simulation": candidate.simulation,
        "probe": candidate.probe,
        "origin": list(origin),
        "searched": searched,
    }


def from_row(row: Mapping[str, Any], space: Space) -> Entry:
    """The entry that ``to_row`` wrote."""
    curve = tuple((int(step), float(ap)) for step, ap in row["curve"])
    formula = parse(row["formula"], space)
    return Entry(
        formula,
        row["weight"],
        tuple(row["aps"]),
        row["overfit"],
        row["generation"],
        curve,
        row["simulation"],
        row["probe"],
        tuple(row.get("origin", ())),  # this and the next are not in older ledgers
        row.get("searched", ""),
    )


def rank(entries: Sequence[Entry], default_aps: Sequence[float], seeds: int) -> tuple[list[Entry], float]:
    """The entries in order, and the standard error of the AP of each.

    Args:
      entries: of a branch.
      default_aps: of the default losses, by seed; the noise is that of all losses, these among them.
      seeds: of each entry.
    """
    error = standard_error(seed_noise([default_aps, *(entry.aps for entry in entries)]), seeds)
    return in_order(entries, error), error


def in_order(entries: Sequence[Entry], standard_error: float) -> list[Entry]:
    """Best first; among entries that the noise between seeds does not tell apart, the shortest formula."""
    return ranked(
        entries,
        score=lambda entry: entry.ap,
        error=standard_error,
        complexity=lambda entry: (len(entry.formula), to_authors(entry.formula)),
    )
