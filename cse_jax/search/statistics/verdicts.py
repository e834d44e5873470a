"""Whether one loss is better than each of some others, from a table of AP by loss and seed.

All losses are trained with the same seeds, so differences are paired.  The noise comes from the residuals of the whole
table (``noise.pooled_noise``), differences are judged by Student's t with the residuals' degrees of freedom, and the
comparisons are corrected for their number: intervals hold simultaneously with at least 95 %, p-values are Holm's.
"""

import dataclasses
import enum
import math
import types
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from cse_jax.search.statistics import planning
from cse_jax.search.statistics.noise import pooled_noise
from cse_jax.search.statistics.shrinkage import Shrunk, shrink


class Verdict(enum.StrEnum):
    """What may be said of a difference."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SHOWN = "not shown"
    UNKNOWN = "noise unknown"  # a single seed
    FAILED = "not compared"  # a training of either loss failed


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One loss against another.

    Attributes:
      difference: mean over the seeds, in AP; NaN if a training of either failed.
      error: standard error of the difference.
      low, high: the corrected 95 % interval.
      p: two-sided, adjusted by Holm for all comparisons of the family.
      verdict: better or worse if the interval excludes 0.
      noise: standard deviation of one training.
      rows, seeds, others: distinct losses without a failed training; seeds; comparisons in the family.
      shrunk: the difference as it is to be believed; NaN where that was not asked for.
    """

    difference: float
    error: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    verdict: Verdict = Verdict.FAILED
    noise: float = math.nan
    rows: int = 0
    seeds: int = 0
    others: int = 0
    shrunk: Shrunk = Shrunk(math.nan, math.nan, math.nan)

    def seeds_needed(self, difference: float | None = None) -> int | None:
        """Seeds that would show a true difference of this size (of the measured size if None) with 80 % power.

        None if the noise is unknown, the difference is 0, or they are too many to be trained.
        """
        size = self.difference if difference is None else difference
        if not (size and math.isfinite(size) and math.isfinite(self.noise)):
            return None
        return planning.seeds_needed(size, self.noise, rows=self.rows, others=self.others)

    def reversed(self) -> "Comparison":
        """The other loss against this one."""
        verdicts = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
        difference, deviation, probability = self.shrunk
        return dataclasses.replace(
            self,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            verdict=verdicts.get(self.verdict, self.verdict),
            shrunk=Shrunk(-difference, deviation, 1.0 - probability),
        )

    @property
    def smallest_shown(self) -> float:
        """The smallest true difference that this comparison shows with 80 % power; NaN if the noise is unknown."""
        if not math.isfinite(self.noise):
            return math.nan
        return planning.smallest_shown(self.noise, rows=self.rows, seeds=self.seeds, others=self.others)


def against_each(
    table: Float[np.ndarray, "rows seeds"],
    row: int,
    others: Sequence[int],
    *,
    signals: Mapping[int, float] = types.MappingProxyType({}),
) -> list[Comparison]:
    """One row against each of some others.

    Intervals are Bonferroni's, so all hold at once with 95 % or more (Dunn, JASA 56, 1961): half the width is Student's
    t at the level 0.05 / (2 * comparisons), times the standard error.  Holm's p-values (Scand. J. Statist. 6, 1979)
    bound the same error and are never larger than Bonferroni's; where the two disagree, the interval has the word.

    Args:
      table: AP of each loss with each seed; NaN for a failed training.  Losses are distinct.
      row: which one is compared.
      others: with which.
      signals: of the rows whose difference is to be shrunk, the variance of its prior, as ``shrink`` takes it.

    Returns:
      For each of the others, the row's difference to it.  A row with a failed training is not compared, and takes no
      part in the noise and in the number of comparisons.
    """
    whole = np.asarray(np.isfinite(table).all(axis=1))
    compared = [other for other in others if whole[row] and whole[other]]
    if not compared:
        return [Comparison(math.nan) for _ in others]
    kept, seeds = table[whole], table.shape[1]
    differences = {other: float((table[row] - table[other]).mean()) for other in compared}
    if seeds == 1:
        single = {o: Comparison(d, verdict=Verdict.UNKNOWN, seeds=1) for o, d in differences.items()}
        return [single.get(other, Comparison(math.nan)) for other in others]
    noise, degrees = pooled_noise(kept), (len(kept) - 1) * (seeds - 1)
    error = noise * math.sqrt(2.0 / seeds)
    adjusted = holm([_two_sided(d, error, degrees) for d in differences.values()])
    reach = planning.critical(degrees, len(compared)) * error
    found = {}
    for (other, d), p in zip(differences.items(), adjusted, strict=True):
        low, high = d - reach, d + reach
        verdict = Verdict.BETTER if low > 0.0 else Verdict.WORSE if high < 0.0 else Verdict.NOT_SHOWN
        believed = shrink(d, error, signals[other], degrees) if other in signals else Comparison.shrunk
        found[other] = Comparison(d, error, low, high, p, verdict, noise, len(kept), seeds, len(compared), believed)
    return [found.get(other, Comparison(math.nan)) for other in others]


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for their number; all that are at most a level are rejected with that family-wise error.

    The smallest is multiplied by the number of tests, the next by one less, and so on; none is below one before it.
    Source: Holm, Scand. J. Statist. 6 (1979).
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for place, k in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - place) * p[k]))
        adjusted[k] = largest
    return adjusted


def _two_sided(difference: float, error: float, degrees: int) -> float:
    from scipy import special

    if error == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return float(2.0 * special.stdtr(degrees, -abs(difference) / error))
