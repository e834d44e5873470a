"""Which losses a table holds, and how often each is trained."""

import dataclasses

from cse_jax.ranges import Count, Positive, Seed, Threads


@dataclasses.dataclass
class LossTableConfig:
    """A table of trained losses.

    Attributes:
      classification, regression: formulas written by hand, beside the known losses of the space.
      generated: losses of each part drawn from a screened population, spread evenly over its behaviours.
      rejected: losses of each part that the verification rejects although they are finite.
      population: formulas that they are drawn from.
      seeds: trainings of each loss.
      first_seed: the first of these seeds; searches use smaller ones.
      seed: of the draws, of probes and of trainings on one image per category.
      workers: trainings that run at once, in threads.
      stages: whether the stages of a search score each loss as well, by training heads and on one image per category.
    """

    classification: tuple[str, ...] = ()
    regression: tuple[str, ...] = ()
    generated: Count = 400
    rejected: Count = 20
    population: Positive = 1_000_000
    seeds: Positive = 2
    first_seed: Seed = 1_000
    seed: Seed = 0
    workers: Threads = 2
    stages: bool = True
