"""Which candidates of a generation are trained: a strategy chooses, told of what this and another run have trained."""

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cse_jax.errors import InputError
from cse_jax.language.expression import Expression
from cse_jax.language.spaces import Space
from cse_jax.screening.candidate import Candidate
from cse_jax.screening.verification import behaviours
from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.strategies import Observation, Pool, Prior, Strategy, Surrogate, compress


class Tried(NamedTuple):
    """A loss that another run has trained.

    Attributes:
      formula: the loss.
      ap: that it reached there.
      simulation: its gain in prediction-space simulation, as a share of the default loss's.
    """

    formula: Expression
    ap: float
    simulation: float = math.nan


def choose(
    strategy: Strategy,
    candidates: Sequence[Candidate],
    entries: Sequence[Entry],
    count: int,
    *,
    space: Space,
    units: str,
    rng: np.random.Generator,
    tried: Sequence[Tried] = (),
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
      tried: what another run has trained, for a surrogate to start from.
    """
    if len(candidates) <= count:
        return list(candidates)
    losses = [*candidates, *entries]
    groups = [group for group in (losses, tried) if group]
    found = [behaviours([loss.formula for loss in group], space, units=units) for group in groups]
    features, *others = compress(*found)
    pool = Pool.unscored(features)
    for stage in ("simulation", "probe"):
        if any(math.isfinite(getattr(candidate, stage)) for candidate in candidates):
            pool = dataclasses.replace(pool, **{stage: np.array([getattr(loss, stage) for loss in losses])})
    for places in others:
        strategy = starting_from(strategy, places, tried)
    told = [Observation(len(candidates) + k, entry.ap) for k, entry in enumerate(entries)]
    proposed = strategy.propose(pool, told, count, rng)
    return [candidates[k] for k in proposed]


def starting_from(strategy: Strategy, places: Float[np.ndarray, "n d"], tried: Sequence[Tried]) -> Strategy:
    """The strategy with what another run has trained.

    Args:
      strategy: a surrogate.
      places: of the losses among the behaviours.
      tried: the losses.

    Raises:
      InputError: the strategy doesn't learn.
    """
    if not isinstance(strategy, Surrogate):
        raise InputError("only the strategy 'surrogate' starts from what another run has tried")
    pool = dataclasses.replace(Pool.unscored(places), simulation=np.array([loss.simulation for loss in tried]))
    return dataclasses.replace(strategy, prior=Prior(pool, [Observation(k, loss.ap) for k, loss in enumerate(tried)]))


def generator(seed: int, branch: str, generation: int) -> np.random.Generator:
    """The random numbers of a strategy in a generation of a branch."""
    return np.random.default_rng([seed, zlib.crc32(branch.encode()), generation])
