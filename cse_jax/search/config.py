"""What to search, and how much: the sizes and thresholds of a search."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from cse_jax.errors import InputError
from cse_jax.ranges import Amount, Count, Items, Positive, PositiveAmount, Range, Seed, Share, Threads
from cse_jax.screening.candidate import Filter
from cse_jax.search.strategies import named

# Where their seeds begin, above a search's own; those of tables of losses begin at 1,000.
_FINAL, _CONFIRMATION = 10_000, 1_000_000


@dataclasses.dataclass
class BranchConfig:
    """Sizes of one branch.

    Attributes:
      generations: E, generations; 0 leaves the branch out.
      population: N0, formulas of the first generation.
      offspring: N, formulas of each later generation.
      max_probe: most candidates of a generation whose output layers are trained on fixed features; if the screening
        leaves more, the strategy chooses.
      max_overfit: most candidates of a generation that are trained on one image per category.
      max_proxy: K, most candidates of a generation that begin the proxy task; the better half of them continues at each
        of its horizons.
      proxy_seeds: trainings of each candidate that reaches the end of the proxy task.
      strategy: name of what chooses, among the candidates that pass the probe, the ``max_overfit`` that train whole
        detectors: ``"surrogate"`` learns from the trainings so far, ``"cascade"`` takes the most promising ones; see
        ``cse_jax.search.strategies``.
      parents: P, members of the hall of fame that breed.
      crossover, mutation: shares of offspring made by each; the rest is new random formulas.
      seed_known: whether hand-made losses are the parents of a part of the first population.
      screened: folder of an atlas whose shortest losses are a half of the first population; empty for none.
      template: a formula in which ``?`` stands for the part that is searched, as ``-dot(y * ?, log(softmax(x)))``, and
        all else is fixed; the prediction must occur in that part.  Empty to search whole formulas.
      operators: how often operators are drawn, where it is not 1 as for all others: ``sin 0.1, exp 0``.
      nesting: how often operators may occur within others: ``log in exp 1, tanh in tanh 0``.
    """

    generations: Count = 3
    population: Positive = 10_000
    offspring: Positive = 2_000
    max_probe: Positive = 256
    max_overfit: Positive = 10
    max_proxy: Positive = 5
    proxy_seeds: Positive = 2
    strategy: str = "surrogate"
    parents: Positive = 3
    crossover: Share = 0.3
    mutation: Share = 0.3
    seed_known: bool = True
    screened: str = ""
    template: str = ""
    operators: str = ""
    nesting: str = ""

    def check(self) -> None:
        """Raises InputError for shares that exceed the whole, or names of nothing."""
        named(self.strategy)
        if self.crossover + self.mutation > 1.0:
            raise InputError(f"crossover={self.crossover} and mutation={self.mutation} must not exceed 1 together")
        if self.screened and self.template:
            raise InputError("losses of an atlas are whole formulas: give either screened or template")
        if self.screened and not pathlib.Path(self.screened).is_dir():
            raise InputError(f"screened={self.screened!r} is no folder of screened losses")


@dataclasses.dataclass
class FilterConfig:
    """Thresholds of the filters, each named after its stage.

    Attributes:
      sign_flip: keep candidates whose negation converges.
      scale: factor on every candidate: ``"prediction"`` matches its gradient to the default loss's on simulated
        predictions, ``"detector"`` in the output layers that the default losses have trained, on a batch of the data;
        ``"none"`` leaves it as it is.
      weights: further factors tried on fixed features; a candidate keeps the one that scores best there.
      simulation_tolerance: least gain in prediction-space simulation, as a share of the default loss's.
      early_probe_tolerance: least AP of output layers on fixed features at all horizons but the last, as a share of the
        default loss's at the same one.
      probe_tolerance: likewise at the last.
      overfit_tolerance: least AP on one image per category in the first generation, as a share of the default loss's.
      later_overfit_tolerance: likewise in later generations, as a share of the best loss's so far (1 as published).
      max_nodes: largest formula.
      skip: filters that reject nothing and give no score, to see what they are worth.  Neither probe nor overfit is
        trained then.
    """

    sign_flip: bool = True
    scale: Literal["prediction", "detector", "none"] = "prediction"
    weights: Annotated[tuple[PositiveAmount, ...], Items()] = (1.0,)
    simulation_tolerance: Amount = 0.5
    early_probe_tolerance: Amount = 0.5
    probe_tolerance: Amount = 0.8
    overfit_tolerance: Amount = 0.8
    later_overfit_tolerance: Amount = 1.0
    max_nodes: Annotated[int, Range(least=1, most=64)] = 40
    skip: Annotated[tuple[Filter, ...], Items(0)] = ()


@dataclasses.dataclass
class FinalConfig:
    """The final comparison.

    Attributes:
      seeds: trainings of each row, with fresh seeds.
      fit_weights: weights tried for each of the default losses on the proxy task; the best of each is a control.
        Without any there is no such row.
      branches: whether what the branches' winners make together and alone is all shown, not only the best.
      random_search: whether as many random formulas, neither bred nor made of known losses, go through the same filters
        and at most as many trainings, and the best of them is a control.  It may double the cost of both branches.
      tuned: whether hyper-parameters of fixed formulas (those of focal, quality focal and PolyLoss-1) and both weights
        are searched at random with as many steps as whole detectors may take in both branches, and the best setting is
        a control.
    """

    seeds: Positive = 3
    fit_weights: tuple[PositiveAmount, ...] = (0.5, 2.0)
    branches: bool = True
    random_search: bool = False
    tuned: bool = False


@dataclasses.dataclass
class SearchConfig:
    """What to search, and how much.

    Attributes:
      seed: of everything random: populations, simulations, network initialisation, batches.
      workers: trainings that run at once, in threads.  Results don't depend on it.
      time_limit: seconds that a training, or as many as run side by side, may take; 0 for ten times what is usual for
        its purpose and length, and 600 at least.
      classification, regression: sizes of the two branches.
      filters: thresholds of the filters.
      final: the final comparison.
    """

    seed: Seed = 0
    workers: Threads = 2
    time_limit: Amount = 0.0
    classification: BranchConfig = dataclasses.field(default_factory=BranchConfig)
    regression: BranchConfig = dataclasses.field(default_factory=BranchConfig)
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    final: FinalConfig = dataclasses.field(default_factory=FinalConfig)

    @property
    def proxy_seeds(self) -> list[int]:
        """Seeds of what is compared across branches on the proxy task: at least two, to know the noise."""
        count = max(2, self.classification.proxy_seeds, self.regression.proxy_seeds)
        return [self.seed + k for k in range(count)]

    @property
    def final_seeds(self) -> list[int]:
        """Seeds of the final table, which no selection has used: those of selections are a few from ``seed`` on."""
        return [self.seed + _FINAL + k for k in range(self.final.seeds)]

    def confirmation_seeds(self, count: int) -> list[int]:
        """Further fresh seeds, of a confirmation: neither of a selection nor of the final table."""
        return [self.seed + _CONFIRMATION + k for k in range(count)]
