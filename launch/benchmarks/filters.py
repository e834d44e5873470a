"""How many losses must be trained until one is good, with none of the filters and with more of them.

A table of trained losses has formulas that the verification rejects, ones that only the simulation rejects, and ones
that pass both; a random population of formulas says how often each kind is drawn.  The expected number of trainings is
the inverse of the probability that a loss that gets so far is good.
"""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks import tables
from benchmarks.report import Report
from cse_jax.language.spaces import Space
from cse_jax.loss_table import LossTable
from cse_jax.loss_table.analysis import Complete, complete
from cse_jax.screening.funnel import screen
from cse_jax.search.config import FilterConfig

_KINDS = {"generated", "weak", "rejected"}
_WITHIN = (0.0, 0.005, 0.02)  # AP below the default loss, at most
_SIZES = {"smallest": 2_000, "small": 200_000, "full": 1_000_000}  # random formulas


def measure(report: Report, *, size: str, rounds: int, table: str | None = None) -> None:
    """A table for each part of the losses in a table of trained losses.

    Args:
      report: where the figures go.
      size: how many random formulas say how often each kind is drawn.
      rounds: not used.
      table: file of a table of trained losses; all that come with the package by default.

    Raises:
      InputError: there is no table.
    """
    for name, held in tables.chosen(table):
        for part in ("cls", "box"):
            losses = held.of(part)
            if not {loss.kind for loss in losses} >= _KINDS:
                report.say(f"{name} lacks {part} losses that some filter rejects")
                continue
            space = losses[0].formula.space
            shares = _shares(space, _SIZES[size])
            converge, gain = (f"{share:.2%}" for share in shares)
            report.say(f"{name}, {part}: {converge} of random formulas converge; {gain} of these pass the simulation")
            for row in rows(held, part, shares):
                report.row(f"{name}, {part}: trainings until a loss is so good", row)


def rows(held: LossTable, part, shares: tuple[float, float]) -> list[dict]:
    """A row for each filter and distance to the default loss.

    Args:
      held: the table.
      part: of which losses.
      shares: of the random formulas that pass the verification, and of these that pass the simulation as well.
    """
    known = complete(held, part)
    truth = known.test[:, :, -1].mean(1)
    kinds = np.array([loss.kind for loss in known.losses])
    passed = kinds == "generated"
    verified, simulated = shares
    groups = [(passed, simulated), (kinds == "weak", 1.0 - simulated)]
    mixtures = {
        "none": [(mask, share * verified) for mask, share in groups] + [(kinds == "rejected", 1.0 - verified)],
        "verification": groups,
        "and simulation": [(passed, 1.0)],
    }
    bars = FilterConfig()
    for stage, share in (("probe", bars.probe_tolerance), ("overfit", bars.overfit_tolerance)):
        if any(name.startswith(stage) for name in known.losses[known.default].scores):
            passed = passed & _reach(known, stage, share)
            mixtures[f"and {stage}"] = [(passed, 1.0)]
    found = []
    for distance in _WITHIN:
        good = truth >= truth[known.default] - distance
        for name, mixture in mixtures.items():
            low, middle, high = (sum(share * p for share, p in each) for each in _mixed(good, mixture))
            found.append(
                {
                    "AP below the default at most": distance,
                    "filters": name,
                    "losses": sum(int(mask.sum()) for mask, _ in mixture),
                    "good": sum(int((good & mask).sum()) for mask, _ in mixture),
                    "trainings": _inverse(middle),
                    "at least": _inverse(high),
                    "at most": _inverse(low),
                }
            )
    return found


def _mixed(good: np.ndarray, mixture: Sequence[tuple[np.ndarray, float]]):
    """The shares with the 95 % interval (Clopper and Pearson, Biometrika 26, 1934) and the estimate of each kind."""
    from scipy import stats

    of_kind = []
    for mask, share in mixture:
        count, hits = int(mask.sum()), int((good & mask).sum())
        low = float(stats.beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
        high = float(stats.beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0
        of_kind.append((share, (low, hits / count if count else math.nan, high)))
    return [[(share, figures[k]) for share, figures in of_kind] for k in range(3)]


def _inverse(p: float) -> float | None:
    return 1.0 / p if p > 0.0 else None


def _reach(known: Complete, stage: str, share: float) -> np.ndarray:
    """Which losses reach a share of the default loss's score at the end of a stage."""
    last = [name for name in known.losses[known.default].scores if name.startswith(stage)][-1]
    scores = np.array([loss.scores.get(last, math.nan) for loss in known.losses])
    return np.nan_to_num(scores) >= share * scores[known.default]


def _shares(space: Space, count: int) -> tuple[float, float]:
    """Of random formulas, those that converge; of their behaviours, those that pass the simulation."""
    screened = screen(space, count)
    counts = screened.counts()
    distinct = counts["distinct"]
    return counts["verification"] / counts["generated"], counts["simulation"] / distinct if distinct else math.nan
