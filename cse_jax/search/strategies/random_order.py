"""The strategy ``random``: losses in random order, which every other strategy has to beat."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cse_jax.search.strategies.strategy import Observation, Pool


@dataclasses.dataclass(frozen=True)
class RandomOrder:
    """Proposes untried losses at random, all with the same chance."""

    def propose(self, pool: Pool, told: Sequence[Observation], count: int, rng: np.random.Generator) -> list[int]:
        """See ``Strategy.propose``."""
        return rng.permutation(pool.untried(told))[:count].tolist()
