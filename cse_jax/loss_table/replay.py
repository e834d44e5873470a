"""Replays: what a strategy would have found, had it chosen which losses of a table are trained.

A replay tells the strategy one seed's APs on the select split, noise included, and judges what it finds by the other
seeds on the test split.  A table makes thousands of searches cost nothing.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from cse_jax.errors import InputError
from cse_jax.loss_table.analysis import NEAR, complete
from cse_jax.loss_table.table import LossTable, TableLoss
from cse_jax.screening.verification import behaviours
from cse_jax.search.statistics import seed_noise
from cse_jax.search.strategies import Observation, Pool, Prior, Strategy, compress
from cse_jax.search.task import Part

BATCH = 5  # losses that are trained before a strategy is asked again
TRAINED = (1, 2, 5, 10, 20, 50, 100, 200, 400)
WITHIN = 0.005  # AP: what is this near to the best loss is as good
_RESAMPLED = 1000


@dataclasses.dataclass(frozen=True)
class Case:
    """A pool of losses whose APs are all known.

    Attributes:
      pool: the losses.
      told: AP on the select split that a training with each of the ``s`` seeds has reached.
      truth: by the seed that is told, the mean AP of the other seeds on the test split, less the default loss's; of the
        same seed if there is only one.
      noise: standard deviation of one training's AP, NaN if it is unknown.
      prior: what a table of another run has found.
    """

    pool: Pool
    told: Float[np.ndarray, "s n"]
    truth: Float[np.ndarray, "s n"]
    noise: float
    prior: Prior | None = None


@dataclasses.dataclass(frozen=True)
class Replays:
    """What many replays of one strategy have found.

    Attributes:
      values: true AP, beyond the default loss's, of the loss that is the best by what is told after each training.
      regrets: how far that is below the best of the pool.
      seconds: all of them took.
    """

    values: Float[np.ndarray, "r m"]
    regrets: Float[np.ndarray, "r m"]
    seconds: float

    @property
    def needed(self) -> Float[np.ndarray, " r"]:
        """Trainings until the loss that is found is within ``WITHIN`` of the best; infinite where it never is."""
        near = self.regrets <= WITHIN
        return np.where(near.any(1), near.argmax(1) + 1.0, np.inf)


def case(table: LossTable, part: Part, *, units: str, prior: LossTable | None = None) -> Case:
    """What a table knows of a part's losses; those that the verification rejects are left out, as in a search.

    Args:
      table: trained losses; those that lack a seed are left out.
      part: of the detector.
      units: unit of length of its boxes, one of the space's.
      prior: a table of another task, of the same spaces.

    Raises:
      InputError: the default loss, or another one, has not been trained with all seeds.
    """
    losses, select, test, place = _of(table, part)
    groups, others = [losses], None
    if prior is not None:
        other, others, _, _ = _of(prior, part)
        groups.append(other)
    found = [behaviours([loss.formula for loss in group], losses[0].formula.space, units=units) for group in groups]
    pools = [_pool(group, places) for group, places in zip(groups, compress(*found), strict=True)]
    truth = np.stack([np.delete(test, s, 1).mean(1) if test.shape[1] > 1 else test[:, 0] for s in range(test.shape[1])])
    truth = truth - truth[:, [place]]
    noise = seed_noise(select[truth.mean(0) >= -NEAR].tolist())
    start = None
    if others is not None:
        start = Prior(pools[1], [Observation(k, float(ap)) for k, ap in enumerate(others.mean(1))])
    return Case(pools[0], select.T, truth, noise, start)


def replay(
    strategy: Strategy, known: Case, seed: int, rng: np.random.Generator, *, batch: int = BATCH, most: int = TRAINED[-1]
) -> Int[np.ndarray, " m"]:
    """The order in which a strategy trains the losses of a pool.

    Args:
      strategy: to replay.
      known: its pool, and what it is told.
      seed: place of the seed whose APs it is told.
      rng: of the strategy.
      batch: losses that it proposes at once.
      most: losses that are trained, or all of the pool.
    """
    told: list[Observation] = []
    most = min(most, len(known.pool.features))
    while len(told) < most:
        for index in strategy.propose(known.pool, told, min(batch, most - len(told)), rng):
            told.append(Observation(index, float(known.told[seed, index])))
    return np.array([each.index for each in told], int)


def replays(
    make: Callable[[], Strategy], known: Case, *, count: int, seconds: float = math.inf, most: int = TRAINED[-1]
) -> Replays:
    """Many replays of a strategy, the seeds in turns.

    Args:
      make: the strategy.
      known: its pool, and what it is told.
      count: of replays.
      seconds: after which no further replay begins; at least one is made with each seed.
      most: losses that each trains.
    """
    started, values, regrets, seeds = time.monotonic(), [], [], len(known.told)
    for number in range(max(count, seeds)):
        if number >= seeds and time.monotonic() - started > seconds:
            break
        seed = number % seeds
        order = replay(make(), known, seed, np.random.default_rng(number), most=most)
        values.append(_found(known, seed, order))
        regrets.append(known.truth[seed].max() - values[-1])
    return Replays(np.array(values), np.array(regrets), time.monotonic() - started)


def interval(samples: Float[np.ndarray, "r m"]) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "2 m"]]:
    """Means over replays, and the ends of their 95 % intervals by the bootstrap.

    They say how sure the mean over replays is, and not how another table would differ.
    """
    weights = np.random.default_rng(0).multinomial(len(samples), np.full(len(samples), 1.0 / len(samples)), _RESAMPLED)
    means = weights @ samples / len(samples)
    return samples.mean(0), np.quantile(means, (0.025, 0.975), axis=0)


def random_regret(truth: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The expected regret of random order after each training, where what is told is the truth."""
    n, best = len(truth), np.sort(truth)[::-1]
    missed, expected = np.ones(n), np.zeros(n)  # by the number of trainings: chance that all better ones are missed
    trained = np.arange(1, n + 1)
    for k in range(n):
        hit = np.minimum(1.0, trained / (n - k))
        expected += missed * hit * best[k]
        missed *= 1.0 - hit
    return best[0] - expected


def _of(
    table: LossTable, part: Part
) -> tuple[list[TableLoss], Float[np.ndarray, "n s"], Float[np.ndarray, "n s"], int]:
    """The losses of a replay, their APs on either split at the last horizon, and the place of the default loss."""
    losses, select, test, place = complete(table, part)
    kept = [k for k, loss in enumerate(losses) if not loss.is_rejected]
    if place < 0 or len(kept) < 2:
        raise InputError(
            f"replays of {part} need the default loss and another one, trained with all seeds; the table holds "
            f"{len(kept)} such losses, the default loss {'' if place >= 0 else 'not '}among them"
        )
    return [losses[k] for k in kept], select[kept, :, -1], test[kept, :, -1], kept.index(place)


def _pool(losses: Sequence[TableLoss], features: Float[np.ndarray, "n d"]) -> Pool:
    """What is known before a whole detector is trained: the scores of simulation and probe."""
    stages = [stage for stage in losses[0].scores if stage.startswith("probe")][-1:]
    scores = [np.array([loss.scores.get(stage, math.nan) for loss in losses]) for stage in ("simulation", *stages)]
    nothing = np.full(len(losses), math.nan)
    return Pool(features, scores[0], scores[1] if stages else nothing, nothing)


def _found(known: Case, seed: int, order: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """True AP of the loss that is the best so far by what was told."""
    told = known.told[seed, order]
    leads = np.concatenate([[True], told[1:] > np.maximum.accumulate(told)[:-1]])
    leader = np.maximum.accumulate(np.where(leads, np.arange(len(order)), 0))
    return known.truth[seed, order[leader]]
