"""Do the stages predict?  Every stage's score of the same losses, beside what these losses reach in the end."""

import dataclasses
import math
import statistics
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from cse_jax.language import population, zoo
from cse_jax.language.canonical import canonical
from cse_jax.language.expression import Expression
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import Space
from cse_jax.sampling.random_trees import Shape
from cse_jax.sampling.variation import offspring
from cse_jax.screening import verification
from cse_jax.screening.funnel import relative_gain, screen_population
from cse_jax.screening.simulation import simulate
from cse_jax.screening.verification import Property
from cse_jax.search.config import CalibrationConfig, FilterConfig, SearchConfig
from cse_jax.search.ledger import Ledger
from cse_jax.search.pipeline import train_default
from cse_jax.search.progress import Progress
from cse_jax.search.task import LossPair, Part
from cse_jax.search.trainer import Purpose, Trainer
from cse_jax.search.trials import Trials

TOP = 5
STAGES: tuple[Purpose, ...] = ("probe", "overfit", "proxy")  # the trainings before the end
SCREEN = "screen"  # prediction-space gain times AP of the heads, by which candidates are ranked before a training
RANKED = "screen x overfit"  # by which they are ranked before the proxy task


@dataclasses.dataclass
class JudgedLoss:
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
      losses: the losses.
      stages: how well each stage agrees with the end.
      ceiling: Kendall's tau of one seed of the end with the others.
    """

    losses: list[JudgedLoss]
    stages: list[Agreement]
    ceiling: float


def draw(
    config: CalibrationConfig, space: Space, texts: Sequence[str], filters: FilterConfig, *, units: str, seed: int
) -> list[JudgedLoss]:
    """The losses of one branch: good, mediocre and bad ones, each behaviour once.

    Args:
      config: how many of which kind.
      space: their space.
      texts: hand-made formulas.
      filters: thresholds, and whether gradients are matched.
      units: of boxes.
      seed: of the population and of the draws.
    """
    known = zoo.known(space)
    chosen = [JudgedLoss(formula, name) for name, formula in known.items()]
    chosen += [JudgedLoss(canonical(parse(text, space)), "hand-made") for text in texts]
    verdicts = verification.verify([c.formula for c in chosen], space, units=units)
    key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(f"calibration/{space.name}".encode())))
    parents = population.encode([*zoo.hand_made(space).values()], space)
    tokens = np.asarray(
        offspring(
            key, parents, space, Shape(max_nodes=filters.max_nodes), config.population, crossover_rate=0.4,
            mutation_rate=0.5,
        )
    )  # fmt: skip
    screened = screen_population(
        tokens,
        space,
        reference=zoo.default(space),
        seen={v.fingerprint: str(c.formula) for v, c in zip(verdicts, chosen, strict=True) if v.fingerprint},
        sign_flip=filters.sign_flip,
        match_gradient=True,
        simulation_tolerance=-math.inf,
        units=units,
        seed=seed,
    )
    judged = sorted((c for c in screened.candidates if c.stage == "simulation"), key=lambda c: c.simulation)
    places = np.linspace(0, len(judged) - 1, min(config.generated, len(judged))).round().astype(int)
    chosen += [JudgedLoss(judged[k].formula, "generated") for k in places]
    chosen += _rejected(tokens, space, config.rejected, filters, units=units)
    weigh(chosen, space, filters, units=units, seed=seed)
    return chosen


def _rejected(tokens: np.ndarray, space: Space, count: int, filters: FilterConfig, *, units: str) -> list[JudgedLoss]:
    """The first formulas of a population that are finite and depend on the prediction, and yet don't converge."""
    failed = verification.judge(tokens, space, units=units).failed
    wrong = (failed >= Property.MONOTONE).all(1) & (failed != Property.NONE).all(1)
    _, first = np.unique(population.hashes(tokens, space), return_index=True)
    rows = np.intersect1d(first, np.flatnonzero(wrong))
    found = []
    for row, formula in zip(rows, population.decode(tokens[rows[: 4 * count]], space), strict=False):
        (simulation,) = simulate([formula], space, units=units)
        if math.isfinite(simulation.after) and simulation.gradient > 0.0 and len(found) < count:
            found.append(JudgedLoss(canonical(formula), f"rejected: {Property(int(failed[row, 0])).name.lower()}"))
    return found


def weigh(losses: Sequence[JudgedLoss], space: Space, filters: FilterConfig, *, units: str, seed: int) -> None:
    """Scores by margin and prediction-space gain; matches gradients of all but the known losses."""
    formulas = [zoo.default(space), *(c.formula for c in losses)]
    reference, *simulations = simulate(formulas, space, units=units, seed=seed)
    margins = verification.margins([c.formula for c in losses], space, units=units)
    known = zoo.known(space)
    for loss, simulation, margin in zip(losses, simulations, margins, strict=True):
        loss.scores = {"margin": float(margin), "simulation": relative_gain(simulation, reference)}
        if margin < 0.0:
            loss.rejected.append("margin")
        if not loss.scores["simulation"] >= filters.simulation_tolerance:
            loss.rejected.append("simulation")
        matched = reference.gradient / simulation.gradient if simulation.gradient > 0.0 else math.nan
        if filters.scale != "none" and loss.origin not in known and math.isfinite(matched):
            loss.weight = float(f"{matched:.4g}")


def run(
    config: CalibrationConfig, sizes: SearchConfig, *, trainer: Trainer, ledger: Ledger, progress: Progress
) -> dict[str, Calibration]:
    """Judges the losses of both branches by every stage, trains them to the end, and compares, by space name.

    Args:
      config: which losses.
      sizes: the search whose stages are calibrated: seed, workers and thresholds.
      trainer: trains the detector.
      ledger: remembers the trainings.
      progress: hears of them.

    Raises:
      LedgerError: the ledger can't be written.
      SearchFailed: the default losses can't be trained.
    """
    trials = Trials(trainer, ledger, progress, workers=sizes.workers)
    task = trainer.task
    texts: dict[Part, tuple[str, ...]] = {"cls": config.classification, "box": config.regression}
    progress.activity("drawing losses")
    drawn: dict[Part, list[JudgedLoss]] = {
        part: draw(config, task.space(part), given, sizes.filters, units=task.box_units, seed=sizes.seed)
        for part, given in texts.items()
    }
    everyone = sum(map(len, drawn.values()))
    progress.expect(
        {purpose: everyone * len(trainer.horizons(purpose)) for purpose in STAGES} | {"final": everyone * config.seeds}
    )
    train_default(sizes, trials=trials)
    calibrations = {}
    for part, losses in drawn.items():
        space = task.space(part)
        pairs = [task.replaced(part, c.formula, c.weight) for c in losses]
        seconds = _judge(losses, pairs, sizes, trials)
        jobs = [(pair, sizes.seed + k) for k in range(config.seeds) for pair in pairs]
        outcomes = list(trials.run(jobs, purpose="final", what=f"{space.name}: trainings to the end"))
        for k, loss in enumerate(losses):
            loss.final = tuple(outcome.ap for outcome in outcomes[k :: len(losses)])
        stages = [agreement(losses, stage, took) for stage, took in seconds.items()]
        calibrations[space.name] = Calibration(losses, stages, _ceiling(losses))
    return calibrations


def _judge(
    losses: Sequence[JudgedLoss],
    pairs: Sequence[LossPair],
    sizes: SearchConfig,
    trials: Trials,
) -> dict[str, float]:
    """Scores by every stage that trains; seconds per loss of each stage.

    After the last horizon of a stage, and where a search halves, the product of the scores so far is one of its own: by
    it candidates are ranked (``Candidate.promise``).
    """
    seconds = {"margin": math.nan, "simulation": math.nan}
    so_far = np.array([c.scores["simulation"] for c in losses])
    for purpose in STAGES:
        horizons = trials.trainer.horizons(purpose)
        for horizon in horizons:
            stage, last = f"{purpose} {horizon}", horizon == horizons[-1]
            jobs = [(pair, sizes.seed) for pair in (trials.trainer.task.default, *pairs)]
            default, *outcomes = trials.run(jobs, purpose=purpose, what=stage, horizon=horizon)
            seconds[stage] = statistics.fmean(outcome.seconds for outcome in outcomes) / sizes.workers
            scores = np.array([outcome.ap if math.isfinite(outcome.ap) else 0.0 for outcome in outcomes])
            _note(losses, stage, scores, _bar(purpose, default.ap, sizes.filters, last=last))
            if purpose == "proxy" and not last:
                halving, product = f"halving at {horizon}", so_far * scores
                _note(losses, halving, product, float(np.median(product)))
                seconds[halving] = math.nan
        if purpose == "probe":
            so_far = so_far * scores
            for loss, score in zip(losses, so_far, strict=True):
                loss.scores[SCREEN] = float(score)
                if loss.rejected:
                    loss.rejected.append(SCREEN)
            seconds[SCREEN] = math.nan
        elif purpose == "overfit":
            so_far = so_far * scores
            _note(losses, RANKED, so_far, -math.inf)
            seconds[RANKED] = math.nan
    return seconds


def _note(losses: Sequence[JudgedLoss], stage: str, scores: Float[np.ndarray, " n"], bar: float) -> None:
    """Writes down a stage's scores, and whom it rejects."""
    for loss, score in zip(losses, scores, strict=True):
        loss.scores[stage] = float(score)
        if score < bar:
            loss.rejected.append(stage)


def _bar(purpose: Purpose, default: float, filters: FilterConfig, *, last: bool) -> float:
    """The AP below which a search would drop a loss."""
    if purpose == "proxy":
        return -math.inf
    if purpose == "overfit":
        return filters.overfit_tolerance * default
    return (filters.probe_tolerance if last else filters.early_probe_tolerance) * default


def _ceiling(losses: Sequence[JudgedLoss]) -> float:
    """Kendall's tau of one seed's final AP with the mean of the others': what no cheaper score can be asked to beat."""
    table = np.nan_to_num([c.final for c in losses])
    if table.shape[1] < 2:
        return math.nan
    others = [np.delete(table, k, 1).mean(1) for k in range(table.shape[1])]
    return statistics.fmean(kendall_tau(table[:, k], mean) for k, mean in enumerate(others))


def agreement(losses: Sequence[JudgedLoss], stage: str, seconds: float = math.nan) -> Agreement:
    """Compares a stage's scores with the final AP."""
    truth = np.array([c.truth for c in losses], float)
    scores = np.array([c.scores.get(stage, math.nan) for c in losses], float)
    judged = np.flatnonzero(np.isfinite(scores))
    best = set(_best(truth))
    return Agreement(
        stage,
        len(judged),
        kendall_tau(scores[judged], truth[judged]),
        len(best & set(judged[_best(scores[judged])].tolist())) / TOP,
        sum(stage in losses[k].rejected for k in best),
        sum(stage in c.rejected for c in losses),
        seconds,
    )


def kendall_tau(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Kendall's tau-b; NaN for fewer than two values, or where all are the same."""
    from scipy import stats  # which takes long to import

    result: Any = stats.kendalltau(a, b)
    return float(result.statistic) if len(a) > 1 else math.nan


def _best(values: Float[np.ndarray, " n"]) -> list[int]:
    return np.argsort(-values, kind="stable")[:TOP].tolist()
