"""What a strategy is: it sees a pool of losses and the APs of those trained so far, and says which to train next."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

COMPONENTS = 16


class Observation(NamedTuple):
    """A training that a strategy is told of.

    Attributes:
      index: of the loss in its pool.
      ap: that it reached on the select split, 0 to 1; 0 after a failure.
    """

    index: int
    ap: float


@dataclasses.dataclass(frozen=True)
class Pool:
    """Losses to choose from, by what is known of each before it is trained.

    Attributes:
      features: place of each loss among the behaviours (see ``compress``); near ones behave alike.
      simulation: gain in prediction-space simulation, as a share of the default loss's; this and the following are NaN
        where a stage has not judged a loss, or could not.
      probe: AP of output layers on fixed features, 0 to 1.
      overfit: AP after training on one image per category, 0 to 1.
    """

    features: Float[np.ndarray, "n d"]
    simulation: Float[np.ndarray, " n"]
    probe: Float[np.ndarray, " n"]
    overfit: Float[np.ndarray, " n"]

    @classmethod
    def unscored(cls, features: Float[np.ndarray, "n d"]) -> "Pool":
        """A pool whose losses no stage has judged."""
        nothing = np.full(len(features), math.nan)
        return cls(features, nothing, nothing, nothing)

    def untried(self, told: Sequence[Observation]) -> Int[np.ndarray, " m"]:
        """The losses that nothing is told of, in the order of the pool."""
        return np.setdiff1d(np.arange(len(self.features)), [each.index for each in told])

    @property
    def promise(self) -> Float[np.ndarray, " n"]:
        """Simulated gain times probe AP, by which a search ranks before it trains whole detectors.

        A stage that has judged no loss of the pool is left out; 0 for a loss that one of the others has not judged.
        """
        scores = np.ones(len(self.features))
        for stage in (self.simulation, self.probe):
            if np.isfinite(stage).any():
                scores = scores * np.nan_to_num(stage, nan=0.0, posinf=0.0, neginf=0.0)
        return scores


@runtime_checkable
class Strategy(Protocol):
    """Says which losses of a pool to train next: a function of its arguments and settings, without memory."""

    def propose(self, pool: Pool, told: Sequence[Observation], count: int, rng: np.random.Generator) -> list[int]:
        """The losses to train next, the first one first.

        Args:
          pool: to choose from.
          told: the trainings so far, in their order, at most one for each loss.
          count: how many losses to propose.
          rng: of all that is random.

        Returns:
          Indices of ``count`` losses without repetition that nothing is told of, or of all of these if they are fewer.
        """
        ...


def compress(
    *behaviours: Float[np.ndarray, "_ d"], components: int = COMPONENTS
) -> list[Float[np.ndarray, "_ {components}"]]:
    """Places of losses by their behaviours: principal components, compressed so that no few losses are most of it.

    Places can be compared within one call only.

    Args:
      behaviours: of one or more pools (``screening.verification.behaviours``), of one space and unit of boxes.
      components: how many; those beyond the rank of the behaviours are 0.
    """
    together = np.concatenate(behaviours).astype(np.float64)
    together -= together.mean(0)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # on matrices of this size threads only wait for each other
        _, directions = np.linalg.eigh(together.T @ together)  # far quicker than the singular values of tall matrices
    places = together @ directions[:, ::-1][:, :components]
    places = np.pad(places, ((0, 0), (0, components - places.shape[1])))
    places = np.arcsinh(places / (places.std() or 1.0))
    return np.split(places, np.cumsum([len(each) for each in behaviours])[:-1])
