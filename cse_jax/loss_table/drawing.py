"""Which losses a table holds: known ones, hand-made ones, and generated ones spread evenly over what losses can do."""

import math
import zlib
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int

from cse_jax.language import population, zoo
from cse_jax.language.canonical import canonical
from cse_jax.language.expression import Expression
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import Space
from cse_jax.loss_table.table import REJECTED, TableLoss
from cse_jax.sampling.random_trees import Shape, random_population
from cse_jax.sampling.variation import offspring
from cse_jax.screening import verification
from cse_jax.screening.candidate import Candidate
from cse_jax.screening.funnel import relative_gain, screen_population
from cse_jax.screening.simulation import simulate
from cse_jax.screening.verification import Property, behaviours
from cse_jax.search.config import FilterConfig
from cse_jax.search.strategies import compress
from cse_jax.search.task import Part, Task

CHUNK = 200_000  # formulas screened at once
WEAK = 0.2  # share of the generated losses that the simulation rejects


def draw(
    part: Part,
    task: Task,
    texts: Sequence[str],
    filters: FilterConfig,
    *,
    generated: int,
    rejected: int,
    population_size: int,
    seed: int,
) -> list[TableLoss]:
    """Draws losses, each behaviour once; the generated ones in an order of which every beginning is spread evenly.

    Half of the population that is screened are descendants of the hand-made losses, the other half random formulas.

    Args:
      part: which loss of a detector.
      task: what is known of the detector.
      texts: hand-made formulas beside the known ones.
      filters: whether gradients are matched, the simulation's threshold, and the largest formula.
      generated: losses from a screened population, spread over their behaviours; a fifth of them weak ones.
      rejected: finite formulas that the verification rejects.
      population_size: formulas that are screened.
      seed: of the population and of the draws.
    """
    space, units = task.space(part), task.box_units
    known = [TableLoss(part, formula, name) for name, formula in zoo.known(space).items()]
    known += [TableLoss(part, canonical(parse(text, space)), "hand-made") for text in texts]
    drawn = known = _each_once(known, space, units)
    if generated or rejected:
        candidates, failed = _screened(part, known, filters, rejected, population_size, units=units, seed=seed)
        drawn = known + _generated(part, candidates, generated, filters, units=units, seed=seed) + failed
    _weigh(drawn, space, filters, units=units, seed=seed)
    return drawn


def _generated(
    part: Part, candidates: Sequence[Candidate], count: int, filters: FilterConfig, *, units: str, seed: int
) -> list[TableLoss]:
    """Behaviours of a population, with weak ones evenly among them."""
    weak = [c.formula for c in candidates if not c.simulation >= filters.simulation_tolerance]
    good = [c.formula for c in candidates if c.simulation >= filters.simulation_tolerance]
    few = round(WEAK * count)
    drawn = []
    for origin, formulas, wanted in (("weak", weak, few), ("generated", good, count - few)):
        chosen = spread(formulas, wanted, units=units, seed=seed)
        drawn += [((k + 0.5) / len(chosen), TableLoss(part, formulas[n], origin)) for k, n in enumerate(chosen)]
    return [loss for _, loss in sorted(drawn, key=lambda placed: placed[0])]


def spread(formulas: Sequence[Expression], count: int, *, units: str, seed: int) -> list[int]:
    """Numbers of formulas whose behaviours are spread evenly: of each stratum the shortest formula near its centre.

    Strata are clusters of the compressed behaviours, in random order.

    Args:
      formulas: to choose from, of one space.
      count: how many.
      units: of boxes.
      seed: of the clusters and of the order.
    """
    from sklearn.cluster import KMeans  # which takes long to import

    if count == 0 or len(formulas) <= count:
        return list(range(min(count, len(formulas))))
    (places,) = compress(behaviours(formulas, formulas[0].space, units=units))
    clusters = KMeans(count, random_state=seed)
    strata = clusters.fit_predict(places)
    distances = clusters.transform(places).min(1)
    chosen = []
    for stratum in np.random.default_rng(seed).permutation(np.unique(strata)):
        members = np.flatnonzero(strata == stratum)
        near = members[distances[members] <= np.quantile(distances[members], 0.25)]
        chosen.append(int(min(near, key=lambda k: (len(formulas[k]), distances[k]))))
    return chosen


def _weigh(losses: Sequence[TableLoss], space: Space, filters: FilterConfig, *, units: str, seed: int) -> None:
    """Scores by margin and prediction-space gain; matches gradients of all but the known losses."""
    formulas = [zoo.default(space), *(c.formula for c in losses)]
    reference, *simulations = simulate(formulas, space, units=units, seed=seed)
    margins = verification.margins([c.formula for c in losses], space, units=units)
    known = zoo.known(space)
    for loss, simulation, margin in zip(losses, simulations, margins, strict=True):
        loss.scores = {"margin": float(margin), "simulation": relative_gain(simulation, reference)}
        matched = reference.gradient / simulation.gradient if simulation.gradient > 0.0 else math.nan
        if filters.scale != "none" and loss.origin not in known and math.isfinite(matched):
            loss.weight = float(f"{matched:.4g}")


def _each_once(losses: Sequence[TableLoss], space: Space, units: str) -> list[TableLoss]:
    """The losses without those that behave as an earlier one."""
    verdicts = verification.verify([loss.formula for loss in losses], space, units=units)
    names = [v.fingerprint or f"no fingerprint {k}" for k, v in enumerate(verdicts)]
    return [loss for k, loss in enumerate(losses) if names[k] not in names[:k]]


def _screened(
    part: Part,
    known: Sequence[TableLoss],
    filters: FilterConfig,
    rejected: int,
    population_size: int,
    *,
    units: str,
    seed: int,
) -> tuple[list[Candidate], list[TableLoss]]:
    """New behaviours of a population, and finite formulas that the verification rejects."""
    space = known[0].formula.space
    verdicts = verification.verify([loss.formula for loss in known], space, units=units)
    seen = {v.fingerprint: str(loss.formula) for v, loss in zip(verdicts, known, strict=True) if v.fingerprint}
    candidates: list[Candidate] = []
    failed: list[TableLoss] = []
    for number, start in enumerate(range(0, population_size, CHUNK)):
        tokens = _population(space, min(CHUNK, population_size - start), filters, seed, number)
        screened = screen_population(
            tokens, space, seen=seen, sign_flip=filters.sign_flip, match_gradient=False,
            simulation_tolerance=-math.inf, units=units, seed=seed,
        )  # fmt: skip
        fresh = [c for c in screened.candidates if c.stage == "simulation"]
        candidates += fresh
        seen |= {c.fingerprint: str(c.formula) for c in fresh}
        if len(failed) < rejected:
            failed += _rejected(part, tokens, space, rejected - len(failed), units=units)
    return candidates, failed


def _population(space: Space, count: int, filters: FilterConfig, seed: int, number: int) -> Int[np.ndarray, "n m"]:
    name = np.uint32(zlib.crc32(f"loss table/{space.name}/{number}".encode()))
    key = jax.random.fold_in(jax.random.key(seed), name)
    shape = Shape(max_nodes=filters.max_nodes)
    parents = population.encode([*zoo.hand_made(space).values()], space)
    bred, _ = offspring(key, parents, space, shape, count // 2, crossover_rate=0.4, mutation_rate=0.6)
    new = np.asarray(random_population(key, space, shape, count - count // 2))
    width = max(bred.shape[1], new.shape[1])
    return np.concatenate(
        [np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=population.PAD) for a in (bred, new)]
    )


def _rejected(part: Part, tokens: Int[np.ndarray, "n m"], space: Space, count: int, *, units: str) -> list[TableLoss]:
    """The first formulas of a population that are finite and depend on the prediction, and yet don't converge."""
    failed = verification.judge(tokens, space, units=units).failed
    wrong = (failed >= Property.MONOTONE).all(1) & (failed != Property.NONE).all(1)
    _, first = np.unique(population.hashes(tokens, space), return_index=True)
    rows = np.intersect1d(first, np.flatnonzero(wrong))[: 4 * count]
    formulas = population.decode(tokens[rows], space)
    found = []
    for row, formula, simulation in zip(rows, formulas, simulate(formulas, space, units=units), strict=True):
        if math.isfinite(simulation.after) and simulation.gradient > 0.0 and len(found) < count:
            fails = Property(int(failed[row, 0])).name.lower()
            found.append(TableLoss(part, canonical(formula), f"{REJECTED}: {fails}"))
    return found
