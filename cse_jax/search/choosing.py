"""Which candidates of a generation train whole detectors: a strategy chooses, told of what the search has trained."""

import zlib
from collections.abc import Sequence

import numpy as np

from cse_jax.language.spaces import Space
from cse_jax.screening.candidate import Candidate
from cse_jax.screening.verification import behaviours
from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.strategies import Observation, Pool, Strategy, compress


def choose(
    strategy: Strategy,
    candidates: Sequence[Candidate],
    entries: Sequence[Entry],
    count: int,
    *,
    space: Space,
    units: str,
    rng: np.random.Generator,
) -> list[Candidate]:
    """The candidates that a strategy proposes, the first one first.

    Args:
      strategy: that is asked.
      candidates: to choose from, with their scores so far.
      entries: the hall of fame, whose mean APs at the end of the proxy task the strategy is told.
      count: most candidates to choose.
      space: of all formulas.
      units: unit of length of the boxes, one of ``space.units``.
      rng: of the strategy.
    """
    if len(candidates) <= count:
        return list(candidates)
    losses = [*candidates, *entries]
    (features,) = compress(behaviours([loss.formula for loss in losses], space, units=units))
    simulation, probe = (np.array([getattr(loss, stage) for loss in losses]) for stage in ("simulation", "probe"))
    nothing = np.full(len(losses), np.nan)  # no candidate has been trained on one image per category
    told = [Observation(len(candidates) + k, entry.ap) for k, entry in enumerate(entries)]
    proposed = strategy.propose(Pool(features, simulation, probe, nothing), told, count, rng)
    return [candidates[k] for k in proposed]


def generator(seed: int, branch: str, generation: int) -> np.random.Generator:
    """The random numbers of a strategy in a generation of a branch."""
    return np.random.default_rng([seed, zlib.crc32(branch.encode()), generation])
