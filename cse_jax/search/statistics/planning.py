"""What a number of seeds can show: the power of a comparison, and the seeds or the difference that it takes.

The comparison is that of ``verdicts``: a table of ``rows`` losses with ``seeds`` seeds each, of which one is compared
with ``others`` others at a family-wise level of 5 %.  A difference is shown if its corrected interval is on the right
side of 0; the probability of that is Student's noncentral t.
"""

import functools
import math

LEVEL = 0.05
USUAL = 0.8  # power that is asked for
MOST_SEEDS = 10_000


@functools.cache
def critical(degrees: int, others: int, level: float = LEVEL) -> float:
    """Half the width of a corrected interval, in standard errors (Bonferroni: the level is shared by the others)."""
    from scipy import stats

    return float(stats.t.isf(level / (2 * others), degrees))


def power(difference: float, noise: float, *, rows: int, seeds: int, others: int, level: float = LEVEL) -> float:
    """The probability that a true difference is shown.

    Args:
      difference: in AP; its sign doesn't matter.
      noise: standard deviation of one training.
      rows: distinct losses in the table, from all of which the noise is taken.
      seeds: trainings of each; at least 2.
      others: losses with which one is compared.
      level: family-wise.
    """
    from scipy import stats

    if noise == 0.0:
        return 1.0 if difference else 0.0
    degrees = (rows - 1) * (seeds - 1)
    shift = abs(difference) / (noise * math.sqrt(2.0 / seeds))
    bound = critical(degrees, others, level)
    if shift - bound > 8.0:
        return 1.0
    return float(stats.nct.sf(bound, degrees, shift))


def seeds_needed(
    difference: float, noise: float, *, rows: int, others: int, level: float = LEVEL, chance: float = USUAL
) -> int | None:
    """The least seeds with which a true difference is shown with a probability; None if 10,000 don't suffice.

    Args:
      difference, noise, rows, others, level: as of ``power``.
      chance: the probability.
    """

    def suffice(seeds: int) -> bool:
        return power(difference, noise, rows=rows, seeds=seeds, others=others, level=level) >= chance

    low, high = 1, 2
    while not suffice(high):
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffice(middle) else (middle, high)
    return high


def smallest_shown(
    noise: float, *, rows: int, seeds: int, others: int, level: float = LEVEL, chance: float = USUAL
) -> float:
    """The smallest true difference, in AP, that so many seeds show with a probability; arguments as of ``power``."""
    if noise == 0.0:
        return 0.0
    low, high = 0.0, noise
    while power(high, noise, rows=rows, seeds=seeds, others=others, level=level) < chance:
        low, high = high, 2.0 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2.0
        shown = power(middle, noise, rows=rows, seeds=seeds, others=others, level=level) >= chance
        low, high = (low, middle) if shown else (middle, high)
    return high
