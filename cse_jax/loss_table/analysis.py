"""What a table says: how noisy its trainings are, which stages predict their outcome, how good the best losses are."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cse_jax.language import zoo
from cse_jax.loss_table.table import LossTable, TableLoss
from cse_jax.search.config import FilterConfig
from cse_jax.search.statistics import Comparison, Shrunk, against_each, seed_noise, shrink, signal_variance
from cse_jax.search.task import Part

TOP = 5
NEAR = 0.1  # AP: losses that are further below the default loss are told apart by any training
LEVEL = 0.02  # AP: losses that are this near to the default have noise like its own; worse ones have more
SCREEN = "simulation x probe"  # by which candidates are ranked before a whole detector is trained
RANKED = "simulation x probe x overfit"  # by which they are ranked before the proxy task


@dataclasses.dataclass(frozen=True)
class Noise:
    """How well trainings of a length tell losses apart; APs are those of the test split.

    Attributes:
      steps: length of the training.
      default: mean AP of the default loss.
      noise: standard deviation of one training's AP that neither loss nor seed explains.
      signal: standard deviation between the losses' true APs, of those within ``NEAR`` AP of the default loss.
      spread: that of all losses.
      tau: Kendall's tau of one training's AP on the select split with the mean on the test split at the last horizon,
        taken over the other seeds; of the losses near the default.
    """

    steps: int
    default: float
    noise: float
    signal: float
    spread: float
    tau: float


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well a stage's scores agree with the AP that trainings reach.

    Attributes:
      stage: whose scores.
      count: losses that the stage judged.
      tau: Kendall's tau-b over them.
      near_tau: the same over the losses within ``NEAR`` AP of the default loss.
      precision: share of the stage's best five among the true best five.
      lost: how many of the true best five the stage would have thrown out.
      rejected: how many of all losses it would have thrown out.
    """

    stage: str
    count: int
    tau: float
    near_tau: float
    precision: float
    lost: int
    rejected: int


@dataclasses.dataclass(frozen=True)
class Best:
    """The loss that one half of the evidence finds best, judged by the other half.

    Attributes:
      loss: the loss with the best mean over all seeds and both splits' select part.
      selected: mean difference to the default loss on the select split, by which it was chosen.
      judged: mean difference to the default loss on the test split of the losses that each seed alone would choose,
        with the other seeds: what selection among all losses of the table is worth.
      error: standard error of ``judged`` from the noise between seeds.
      shrunk: the loss's difference on the test split, as it is to be believed of the best of so many.
    """

    loss: TableLoss
    selected: float
    judged: float
    error: float
    shrunk: Shrunk


class Between(NamedTuple):
    """How far two tables agree on the order of the losses that both have trained with all of their seeds.

    Attributes:
      count, near_count: of these losses, and of those within ``NEAR`` AP of the default loss in both tables.
      tau, near_tau: Kendall's tau of their mean test APs; noise in either table lowers it.
    """

    count: int
    near_count: int
    tau: float
    near_tau: float


class Complete(NamedTuple):
    """The losses of a part that have been trained with all seeds.

    Attributes:
      losses: these.
      select, test: their APs on either split.
      default: the number of the default loss among them; -1 if it is not there.
    """

    losses: list[TableLoss]
    select: Float[np.ndarray, "n s h"]
    test: Float[np.ndarray, "n s h"]
    default: int

    def within(self, distance: float) -> Bool[np.ndarray, " n"]:
        """Which losses end so many AP below the default loss at most."""
        truth = self.test[:, :, -1].mean(1)
        return truth >= truth[self.default] - distance

    @property
    def order(self) -> Int[np.ndarray, " n"]:
        """The places of the losses, that with the best mean AP at the end on the select split first."""
        return np.argsort(-self.select[:, :, -1].mean(1), kind="stable")

    @property
    def near(self) -> Bool[np.ndarray, " n"]:
        """Which losses end within ``NEAR`` AP of the default loss, or above it."""
        return self.within(NEAR)


def complete(table: LossTable, part: Part) -> Complete:
    """The losses of a part that have been trained with all seeds of the table."""
    seeds = table.seeds(part)
    select, test = (table.aps(part, seeds, split=split) for split in ("select", "test"))
    keep = np.flatnonzero(np.isfinite(test).all((1, 2)))
    losses = [table.of(part)[k] for k in keep]
    defaults = (k for k, loss in enumerate(losses) if _is_default(loss))
    return Complete(losses, select[keep], test[keep], next(defaults, -1))


def _is_default(loss: TableLoss) -> bool:
    return loss.formula == zoo.default(loss.formula.space) and loss.weight == 1.0


def noise_by_length(table: LossTable, part: Part) -> list[Noise]:
    """One entry for each horizon."""
    known = complete(table, part)
    _, select, test, place = known
    near, found = known.near, []
    for k, steps in enumerate(table.horizons):
        at = test[:, :, k]
        noise = seed_noise(at[near].tolist())
        signal, spread = (_deviation(aps.mean(1), noise / math.sqrt(test.shape[1])) for aps in (at[near], at))
        tau = _tau_with_others(select[near, :, k], test[near, :, -1])
        found.append(Noise(steps, float(at[place].mean()), noise, signal, spread, tau))
    return found


def agreements(table: LossTable, part: Part, filters: FilterConfig) -> list[Agreement]:
    """One entry for each stage of a search; the trainings' own horizons are stages of the proxy task."""
    known = complete(table, part)
    losses, select, test, place = known
    truth, near = test[:, :, -1].mean(1), known.near
    scores = {stage: np.array([loss.scores.get(stage, math.nan) for loss in losses]) for stage in losses[place].scores}
    bars = {stage: _bar(stage, list(scores), values[place], filters) for stage, values in scores.items()}
    rejected = {stage: _rejected(stage, values, bars[stage], losses) for stage, values in scores.items()}
    nobody = np.zeros(len(truth), bool)
    probes = [stage for stage in scores if stage.startswith("probe")]
    if probes:
        scores[SCREEN] = np.nan_to_num(scores["simulation"]) * np.nan_to_num(scores[probes[-1]])
        overfits = [stage for stage in scores if stage.startswith("overfit")]
        if overfits:
            scores[RANKED] = scores[SCREEN] * np.nan_to_num(scores[overfits[-1]])
    found = [_agreement(stage, values, truth, near, rejected.get(stage, nobody)) for stage, values in scores.items()]
    if test.shape[1] > 1:
        others = test[:, 1:, -1].mean(1)
        for k, steps in enumerate(table.horizons):
            found.append(_agreement(f"training {steps}, one seed", select[:, 0, k], others, near, nobody))
    return found


def best(table: LossTable, part: Part) -> Best:
    """How far the best loss is beyond the default one."""
    losses, select, test, place = known = complete(table, part)
    select, test = select[:, :, -1], test[:, :, -1]
    level = known.within(LEVEL)
    noise, seeds = seed_noise(test[level].tolist()), test.shape[1]
    test, select = test - test[place], select - select[place]
    winner = int(known.order[0])
    judged = []
    for k in range(seeds):
        others = [n for n in range(seeds) if n != k]
        judged.append(test[select[:, k].argmax(), others].mean() if others else math.nan)
    error = math.sqrt(2.0) * noise / math.sqrt(max(1, seeds))
    means = test.mean(1)
    signal = signal_variance(np.delete(means, place)[np.delete(level, place)].tolist(), error)
    shrunk = shrink(float(means[winner]), error, signal, int(level.sum() - 1) * (seeds - 1))
    return Best(losses[winner], float(select[winner].mean()), float(np.mean(judged)), error, shrunk)


def leaders(table: LossTable, part: Part, count: int) -> list[TableLoss]:
    """The losses of a part with the best mean AP on the select split, the best first; the default one is left out."""
    known = complete(table, part)
    return [known.losses[k] for k in known.order if k != known.default][:count]


def between(table: LossTable, other: LossTable, part: Part) -> Between:
    """How far two tables agree on a part's losses."""
    one, two = complete(table, part), complete(other, part)
    places = {_name(loss): k for k, loss in enumerate(two.losses)}
    pairs = np.array([(k, places[_name(loss)]) for k, loss in enumerate(one.losses) if _name(loss) in places], int)
    first, second = pairs.reshape(-1, 2).T
    near = one.near[first] & two.near[second]
    truth, again = one.test[first, :, -1].mean(1), two.test[second, :, -1].mean(1)
    return Between(len(near), int(near.sum()), kendall_tau(truth, again), kendall_tau(truth[near], again[near]))


def default_beside_known(table: LossTable, part: Part) -> list[tuple[TableLoss, Comparison]]:
    """The default loss against each other known loss of its space, on the test split.

    The noise is that of the losses within ``LEVEL`` of the default, and of those that are compared.
    """
    losses, _, test, place = found = complete(table, part)
    names = zoo.known(losses[place].formula.space)
    known = np.array([loss.origin in names for loss in losses])
    rows: list[int] = np.flatnonzero(found.within(LEVEL) | known & found.near).tolist()
    kept = [k for k in rows if k != place and known[k]]
    of_row = {k: n for n, k in enumerate(rows)}
    compared = against_each(test[rows, :, -1], of_row[place], [of_row[k] for k in kept])
    return [(losses[k], comparison) for k, comparison in zip(kept, compared, strict=True)]


def _name(loss: TableLoss) -> tuple:
    return loss.formula, loss.weight


def kendall_tau(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Kendall's tau-b; NaN for fewer than two values, or where all are the same."""
    from scipy import stats  # which takes long to import

    return float(stats.kendalltau(a, b).statistic) if len(a) > 1 else math.nan  # pyright: ignore[reportAttributeAccessIssue]


def _deviation(means: Float[np.ndarray, " n"], error: float) -> float:
    """Standard deviation between means beyond their standard error; NaN where either is unknown."""
    if math.isnan(error) or len(means) < 2:
        return math.nan
    return math.sqrt(max(0.0, float(means.var(ddof=1)) - error**2))


def _tau_with_others(select: Float[np.ndarray, "n s"], test: Float[np.ndarray, "n s"]) -> float:
    """Kendall's tau of one seed on the select split with the mean of the others on the test split."""
    seeds = select.shape[1]
    if seeds < 2:
        return math.nan
    return float(np.mean([kendall_tau(select[:, k], np.delete(test, k, 1).mean(1)) for k in range(seeds)]))


def _bar(stage: str, stages: list[str], default: float, filters: FilterConfig) -> float:
    """The score below which a search would drop a loss."""
    if stage == "margin":
        return 0.0
    if stage == "simulation":
        return filters.simulation_tolerance
    if stage.startswith("overfit"):
        return filters.overfit_tolerance * default
    last = stage == [other for other in stages if other.startswith("probe")][-1]
    return (filters.probe_tolerance if last else filters.early_probe_tolerance) * default


def _rejected(
    stage: str, scores: Float[np.ndarray, " n"], bar: float, losses: Sequence[TableLoss]
) -> Bool[np.ndarray, " n"]:
    """Which losses a search would drop: also those whose training failed there, which have no number."""
    if stage == "margin":  # which what fails has, always
        return scores < bar
    return np.array([stage in loss.scores for loss in losses]) & ~(scores >= bar)


def _agreement(
    stage: str,
    scores: Float[np.ndarray, " n"],
    truth: Float[np.ndarray, " n"],
    near: Bool[np.ndarray, " n"],
    rejected: Bool[np.ndarray, " n"],
) -> Agreement:
    judged = np.isfinite(scores)
    top = set(_best(truth))
    own = np.flatnonzero(judged)[_best(scores[judged])].tolist()
    return Agreement(
        stage,
        int(judged.sum()),
        kendall_tau(scores[judged], truth[judged]),
        kendall_tau(scores[judged & near], truth[judged & near]),
        len(top & set(own)) / TOP,
        int(sum(bool(rejected[k]) for k in top)),
        int(rejected.sum()),
    )


def _best(values: Float[np.ndarray, " n"]) -> list[int]:
    return np.argsort(-values, kind="stable")[:TOP].tolist()
