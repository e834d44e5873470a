"""How sure a score is: noise between seeds, and ranks in which differences within the noise don't count."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

T = TypeVar("T")


def seed_noise(aps: Sequence[Sequence[float]]) -> float:
    """Standard deviation of one training's AP that neither its loss nor its seed explains; NaN if nothing tells.

    Args:
      aps: of each loss, with the same seeds in the same order.  Rows with a failed training or another number of seeds
        than most are left out.  With one loss only, the plain deviation between its seeds.
    """
    whole = [row for row in aps if len(row) > 1 and all(map(math.isfinite, row))]
    if not whole:
        return math.nan
    seeds = max({len(row) for row in whole}, key=[len(row) for row in whole].count)
    table = np.array([row for row in whole if len(row) == seeds])
    if len(table) == 1:
        return float(table.std(ddof=1))
    return pooled_noise(table)


def pooled_noise(table: Float[np.ndarray, "rows seeds"]) -> float:
    """Standard deviation of one training, from what is left of a table without the means of its rows and columns.

    The model is additive: a training's AP is the sum of its loss's share, its seed's share and noise of one size.  The
    residuals have (rows - 1) * (seeds - 1) degrees of freedom.  Source: Scheffe, The Analysis of Variance (1959),
    section 4.2.

    Args:
      table: AP of each loss with each seed, all finite, at least two of either.  A loss that stands twice in it would
        make the noise look small.
    """
    rows, seeds = table.shape
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    return float(math.sqrt((residuals**2).sum() / ((rows - 1) * (seeds - 1))))


def standard_error(noise: float, seeds: int) -> float:
    """Of a mean over so many seeds."""
    return noise / math.sqrt(seeds)


def ranked(
    items: Sequence[T], *, score: Callable[[T], float], error: float, complexity: Callable[[T], tuple]
) -> list[T]:
    """Best first; among those that are within the noise of the best one left, the simplest.

    Args:
      items: what to rank.
      score: higher is better.
      error: standard error of each score; two scores tie if they differ by less than that of their difference.  NaN: no
        ties but exact ones.
      complexity: smaller is simpler; decides ties.
    """
    margin = math.sqrt(2.0) * error if math.isfinite(error) else 0.0
    left, order = list(items), []
    while left:
        best = max(score(item) for item in left)
        tied = [item for item in left if score(item) >= best - margin]
        order.append(min(tied, key=lambda item: (*complexity(item), -score(item))))
        left.remove(order[-1])
    return order
