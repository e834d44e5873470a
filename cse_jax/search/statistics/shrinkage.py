"""How much of a difference to believe, when its loss is the best of many: empirical Bayes with a normal prior.

Most losses of a search are about as good as the default one, so a difference that was measured is on average larger
than the true one.  The prior of a loss's difference to the default is normal around 0; its variance is what the proxy
task's differences have beyond their noise.  Source: Efron, Large-Scale Inference (2010), sections 1.2 and 1.3.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Shrunk(NamedTuple):
    """A difference as it is to be believed; NaN where nothing tells.

    Attributes:
      difference: mean of the posterior, in AP.
      deviation: its standard deviation.
      probability: of a true difference above 0.
    """

    difference: float
    deviation: float
    probability: float


def signal_variance(differences: Sequence[float], error: float) -> float:
    """Variance of the true differences to a reference: what the measured ones have around 0 beyond their noise.

    Args:
      differences: of the losses to the reference, in AP; at least two tell something, else NaN.
      error: standard error of each.
    """
    if len(differences) < 2 or not math.isfinite(error) or not all(map(math.isfinite, differences)):
        return math.nan
    return max(0.0, statistics.fmean(d * d for d in differences) - error**2)


def shrink(difference: float, error: float, signal: float, degrees: int) -> Shrunk:
    """The posterior of a true difference.

    Where the prior is unknown, it is flat: the difference stays as it is, and the probability is Student's t.

    Args:
      difference: as measured, in AP.
      error: its standard error.
      signal: variance of the prior; NaN if unknown.
      degrees: of freedom of the error.
    """
    if not (math.isfinite(difference) and math.isfinite(error)):
        return Shrunk(math.nan, math.nan, math.nan)
    if not math.isfinite(signal):
        from scipy import stats

        chance = float(stats.t.cdf(difference / error, degrees)) if error else _step(difference)
        return Shrunk(difference, error, chance)
    total = signal + error**2
    share = signal / total if total else 0.0
    shrunk, deviation = share * difference, math.sqrt(share) * error
    chance = statistics.NormalDist().cdf(shrunk / deviation) if deviation else _step(shrunk)
    return Shrunk(shrunk, deviation, chance)


def _step(value: float) -> float:
    return 0.5 if value == 0.0 else float(value > 0.0)
