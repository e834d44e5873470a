"""The strategy ``evolution``: the best losses so far are parents, and what resembles them is trained next.

The published search (CSE-AutoLoss, ICLR 2021) breeds formulas.  A pool holds given losses, so an
offspring is one of these: a mutation is near its parent's behaviour, a crossover near a point between two parents.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cse_jax.search.strategies.strategy import Observation, Pool


@dataclasses.dataclass(frozen=True)
class Evolution:
    """Proposes offspring of the best losses so far.

    Attributes:
      parents: losses of the highest AP that breed.
      crossover: share of proposals that are the untried loss nearest to a random point on the segment between the
        behaviours of two random parents.
      mutation: share of proposals that are drawn from the untried losses nearest to a random parent.  The rest, and all
        of them as long as there are no parents, is drawn from all untried losses.
      neighbours: of a parent, from which its mutation is drawn.
    """

    parents: int = 3
    crossover: float = 0.3
    mutation: float = 0.3
    neighbours: int = 5

    def propose(self, pool: Pool, told: Sequence[Observation], count: int, rng: np.random.Generator) -> list[int]:
        """See ``Strategy.propose``."""
        best = sorted(told, key=lambda each: -each.ap)[: self.parents]
        places = pool.features[[each.index for each in best]]
        left, chosen = pool.untried(told), []
        while len(left) and len(chosen) < count:
            kind = rng.random()
            if not best or kind >= self.crossover + self.mutation:
                pick = rng.integers(len(left))
            elif kind < self.crossover and len(best) > 1:
                one, other = places[rng.choice(len(best), 2, replace=False)]
                pick = _distances(pool, left, one + rng.random() * (other - one)).argmin()
            else:
                nearest = np.argsort(_distances(pool, left, places[rng.integers(len(best))]), kind="stable")
                pick = rng.choice(nearest[: self.neighbours])
            chosen.append(int(left[pick]))
            left = np.delete(left, pick)
        return chosen


def _distances(pool: Pool, left: np.ndarray, point: np.ndarray) -> np.ndarray:
    return ((pool.features[left] - point) ** 2).sum(1)
