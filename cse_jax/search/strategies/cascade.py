"""The strategy ``cascade``: the order in which a search's stages rank losses, whatever the trainings say."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cse_jax.search.strategies.strategy import Observation, Pool


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Proposes the untried losses of the most promise; equal ones in random order."""

    def propose(self, pool: Pool, told: Sequence[Observation], count: int, rng: np.random.Generator) -> list[int]:
        """See ``Strategy.propose``."""
        left = rng.permutation(pool.untried(told))
        return left[np.argsort(-pool.promise[left], kind="stable")][:count].tolist()
