"""Does the cascade predict?  Every stage's score of the same losses, beside what these losses reach in the end."""

import dataclasses
import math
import statistics
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy import stats

from cse_jax.language import population, spaces, zoo
from cse_jax.language.canonical import canonical
from cse_jax.language.expression import Expression
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import Space
from cse_jax.reporting.monitor import Monitor
from cse_jax.sampling.random_trees import Shape
from cse_jax.sampling.variation import offspring
from cse_jax.screening import verification
from cse_jax.screening.funnel import relative_gain, screen
from cse_jax.screening.simulation import simulate
from cse_jax.screening.verification import Property
from cse_jax.search.ledger import Ledger
from cse_jax.search.racing import FilterConfig
from cse_jax.search.run import SearchConfig
from cse_jax.search.trials import LossPair, Trainer, Trials, default_pair, with_loss

TOP = 5
SCREEN = "screen"  # prediction-space gain times AP of the heads, by which candidates are ranked before a training
RANKED = "screen x verify"  # by which they are ranked before the proxy task


@dataclasses.dataclass
class CalibrationConfig:
    """Which losses a calibration trains, in each branch.

    Attributes:
      classification, regression: formulas written by hand, beside the known losses of the space.
      generated: losses drawn from a screened population of descendants of the hand-made ones, evenly over the range
        of what prediction-space simulation says of them, the bad ones included.
      rejected: formulas drawn from those that the gate rejects although they are finite.
      population: formulas that they are drawn from.
      seeds: trainings of each loss to the end.
    """

    classification: tuple[str, ...] = ()
    regression: tuple[str, ...] = ()
    generated: int = 10
    rejected: int = 2
    population: int = 20_000
    seeds: int = 3


@dataclasses.dataclass
class Contestant:
    """A loss that every stage judges, and that is trained to the end.

    Attributes:
      formula: the loss.
      origin: where it comes from.
      weight: factor that matches its gradient to the default loss's.
      scores: by stage, higher is better; NaN where a stage could not judge it.
      rejected: the stages that would have thrown it out.
      final: AP on the test split, by seed.
    """

    formula: Expression
    origin: str
    weight: float = 1.0
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    rejected: list[str] = dataclasses.field(default_factory=list)
    final: tuple[float, ...] = ()

    @property
    def truth(self) -> float:
        """Mean AP on the test split; 0 for a loss whose training diverged."""
        return statistics.fmean(ap if math.isfinite(ap) else 0.0 for ap in self.final)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well a stage's scores agree with the final AP.

    Attributes:
      stage: whose scores.
      count: losses that the stage judged.
      tau: Kendall's tau-b over them.
      precision: share of the stage's best five among the true best five.
      lost: how many of the true best five the stage would have thrown out.
      rejected: how many of all losses it would have thrown out.
      seconds: of the stage, per loss.
    """

    stage: str
    count: int
    tau: float
    precision: float
    lost: int
    rejected: int
    seconds: float


class Calibration(NamedTuple):
    """One branch.

    Attributes:
      contestants: the losses.
      stages: how well each stage agrees with the end.
      ceiling: Kendall's tau of one seed of the end with the others.
    """

    contestants: list[Contestant]
    stages: list[Agreement]
    ceiling: float


def draw(
    config: CalibrationConfig, space: Space, texts: Sequence[str], cascade: FilterConfig, *, units: str, seed: int
) -> list[Contestant]:
    """The losses of one branch: good, mediocre and bad ones, each behaviour once.

    Args:
      config: how many of which kind.
      space: their space.
      texts: hand-made formulas.
      cascade: thresholds, and whether gradients are matched.
      units: of boxes.
      seed: of the population and of the draws.
    """
    known = zoo.known(space)
    chosen = [Contestant(formula, name) for name, formula in known.items()]
    chosen += [Contestant(canonical(parse(text, space)), "hand-made") for text in texts]
    verdicts = verification.verify([c.formula for c in chosen], space, units=units)
    key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(f"calibration/{space.name}".encode())))
    parents = population.encode([*zoo.hand_made(space).values()], space)
    tokens = np.asarray(
        offspring(
            key, parents, space, Shape(max_nodes=cascade.max_nodes), config.population, crossover_rate=0.4,
            mutation_rate=0.5,
        )
    )  # fmt: skip
    screened = screen(
        tokens,
        space,
        reference=zoo.default(space),
        seen={v.fingerprint: str(c.formula) for v, c in zip(verdicts, chosen, strict=True) if v.fingerprint},
        sign_flip=cascade.sign_flip,
        match_gradient=True,
        simulation_tolerance=-math.inf,
        units=units,
        seed=seed,
    )
    judged = sorted((c for c in screened.candidates if c.stage == "simulated"), key=lambda c: c.prediction)
    places = np.linspace(0, len(judged) - 1, min(config.generated, len(judged))).round().astype(int)
    chosen += [Contestant(judged[k].formula, "generated") for k in places]
    chosen += _rejected(tokens, space, config.rejected, cascade, units=units)
    weigh(chosen, space, cascade, units=units, seed=seed)
    return chosen


def _rejected(tokens: np.ndarray, space: Space, count: int, cascade: FilterConfig, *, units: str) -> list[Contestant]:
    """The first formulas of a population that are finite and depend on the prediction, and yet don't converge."""
    failed = verification.judge(tokens, space, units=units).failed
    wrong = (failed >= Property.MONOTONE).all(1) & (failed != Property.NONE).all(1)
    _, first = np.unique(population.hashes(tokens, space), return_index=True)
    rows = np.intersect1d(first, np.flatnonzero(wrong))
    found = []
    for row, formula in zip(rows, population.decode(tokens[rows[: 4 * count]], space), strict=False):
        (simulation,) = simulate([formula], space, units=units)
        if math.isfinite(simulation.after) and simulation.gradient > 0.0 and len(found) < count:
            found.append(Contestant(canonical(formula), f"rejected: {Property(int(failed[row, 0])).name.lower()}"))
    return found


def weigh(contestants: Sequence[Contestant], space: Space, cascade: FilterConfig, *, units: str, seed: int) -> None:
    """Scores by margin and prediction-space gain; matches gradients of all but the known losses."""
    formulas = [zoo.default(space), *(c.formula for c in contestants)]
    reference, *simulations = simulate(formulas, space, units=units, seed=seed)
    margins = verification.margins([c.formula for c in contestants], space, units=units)
    known = zoo.known(space)
    for contestant, simulation, margin in zip(contestants, simulations, margins, strict=True):
        contestant.scores = {"margin": float(margin), "prediction": relative_gain(simulation, reference)}
        if margin < 0.0:
            contestant.rejected.append("margin")
        if not contestant.scores["prediction"] >= cascade.simulation_tolerance:
            contestant.rejected.append("prediction")
        matched = reference.gradient / simulation.gradient if simulation.gradient > 0.0 else math.nan
        if cascade.scale != "none" and contestant.origin not in known and math.isfinite(matched):
            contestant.weight = float(f"{matched:.4g}")


def run(
    config: CalibrationConfig,
    sizes: SearchConfig,
    *,
    cls_space: Space,
    box_weight: float,
    units: str,
    trainer: Trainer,
    ledger: Ledger,
    monitor: Monitor,
) -> dict[str, "Calibration"]:
    """Judges the losses of both branches by every stage, trains them to the end, and compares, by space name.

    Args:
      config: which losses.
      sizes: the search whose stages are calibrated: seed, workers and thresholds.
      cls_space, box_weight, units: of the detector, as for ``cse_jax.search.run.run``.
      trainer: trains the detector.
      ledger: remembers the trainings.
      monitor: shows progress.

    Raises:
      LedgerError: the ledger can't be written.
    """
    trials = Trials(trainer, ledger, monitor, workers=sizes.workers)
    base = default_pair(cls_space, box_weight)
    branches = ((cls_space, config.classification), (spaces.BOX, config.regression))
    monitor.activity("drawing losses")
    drawn = {
        space: draw(config, space, texts, sizes.cascade, units=units, seed=sizes.seed) for space, texts in branches
    }
    everyone = sum(map(len, drawn.values()))
    monitor.expect(
        {purpose: everyone * len(trainer.horizons(purpose)) for purpose in ("probe", "verify", "proxy")}
        | {"final": everyone * config.seeds}
    )
    # Before anything is probed: it leaves the features.
    list(trials.run([(base, sizes.seed)], purpose="proxy", what="default losses, proxy task"))
    calibrations = {}
    for space, contestants in drawn.items():
        pairs = [with_loss(base, c.formula, c.weight) for c in contestants]
        seconds = _judge(contestants, pairs, base, sizes, trials)
        jobs = [(pair, sizes.seed + k) for k in range(config.seeds) for pair in pairs]
        outcomes = list(trials.run(jobs, purpose="final", what=f"{space.name}: trainings to the end"))
        for k, contestant in enumerate(contestants):
            contestant.final = tuple(outcome.ap for outcome in outcomes[k :: len(contestants)])
        stages = [agreement(contestants, stage, took) for stage, took in seconds.items()]
        calibrations[space.name] = Calibration(contestants, stages, _ceiling(contestants))
    return calibrations


def _judge(
    contestants: Sequence[Contestant],
    pairs: Sequence[LossPair],
    base: LossPair,
    sizes: SearchConfig,
    trials: Trials,
) -> dict[str, float]:
    """Scores by every stage that trains; seconds per loss of each stage.

    After the last horizon of a stage, and where a search halves, the product of the scores so far is one of its own: by
    it candidates are ranked (``Candidate.promise``).
    """
    seconds = {"margin": math.nan, "prediction": math.nan}
    so_far = np.array([c.scores["prediction"] for c in contestants])
    for purpose in ("probe", "verify", "proxy"):
        horizons = trials.trainer.horizons(purpose)
        for horizon in horizons:
            stage, last = f"{purpose} {horizon}", horizon == horizons[-1]
            jobs = [(pair, sizes.seed) for pair in (base, *pairs)]
            default, *outcomes = trials.run(jobs, purpose=purpose, what=stage, horizon=horizon)
            seconds[stage] = statistics.fmean(outcome.seconds for outcome in outcomes) / sizes.workers
            scores = np.array([outcome.ap if math.isfinite(outcome.ap) else 0.0 for outcome in outcomes])
            _note(contestants, stage, scores, _bar(purpose, default.ap, sizes.cascade, last=last))
            if purpose == "proxy" and not last:
                halving, product = f"halving at {horizon}", so_far * scores
                _note(contestants, halving, product, float(np.median(product)))
                seconds[halving] = math.nan
        if purpose == "probe":
            so_far = so_far * scores
            for contestant, score in zip(contestants, so_far, strict=True):
                contestant.scores[SCREEN] = float(score)
                if contestant.rejected:
                    contestant.rejected.append(SCREEN)
            seconds[SCREEN] = math.nan
        elif purpose == "verify":
            so_far = so_far * scores
            _note(contestants, RANKED, so_far, -math.inf)
            seconds[RANKED] = math.nan
    return seconds


def _note(contestants: Sequence[Contestant], stage: str, scores: Float[np.ndarray, " n"], bar: float) -> None:
    """Writes down a stage's scores, and whom it rejects."""
    for contestant, score in zip(contestants, scores, strict=True):
        contestant.scores[stage] = float(score)
        if score < bar:
            contestant.rejected.append(stage)


def _bar(purpose: str, default: float, cascade: FilterConfig, *, last: bool) -> float:
    """Below which AP a search would go on with none of these losses."""
    if purpose == "proxy":
        return -math.inf
    if purpose == "verify":
        return cascade.overfit_tolerance * default
    return (cascade.probe_tolerance if last else cascade.early_probe_tolerance) * default


def _ceiling(contestants: Sequence[Contestant]) -> float:
    """Kendall's tau of one seed's final AP with the mean of the others': what no cheaper score can be asked to beat."""
    table = np.nan_to_num([c.final for c in contestants])
    if table.shape[1] < 2:
        return math.nan
    others = [np.delete(table, k, 1).mean(1) for k in range(table.shape[1])]
    return statistics.fmean(kendall_tau(table[:, k], mean) for k, mean in enumerate(others))


def agreement(contestants: Sequence[Contestant], stage: str, seconds: float = math.nan) -> Agreement:
    """Compares a stage's scores with the final AP."""
    truth = np.array([c.truth for c in contestants])
    scores = np.array([c.scores.get(stage, math.nan) for c in contestants])
    judged = np.flatnonzero(np.isfinite(scores))
    best = set(_best(truth))
    return Agreement(
        stage,
        len(judged),
        kendall_tau(scores[judged], truth[judged]),
        len(best & set(judged[_best(scores[judged])].tolist())) / TOP,
        sum(stage in contestants[k].rejected for k in best),
        sum(stage in c.rejected for c in contestants),
        seconds,
    )


def kendall_tau(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Kendall's tau-b; NaN for fewer than two values, or where all are the same."""
    return float(stats.kendalltau(a, b).statistic) if len(a) > 1 else math.nan


def _best(values: Float[np.ndarray, " n"]) -> list[int]:
    return np.argsort(-values, kind="stable")[:TOP].tolist()
