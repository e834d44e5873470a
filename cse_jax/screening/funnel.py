"""From many formulas to few: validity, convergence, sign flip, duplicates and prediction-space simulation."""

import dataclasses
import math
import types
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from cse_jax.errors import InputError
from cse_jax.language import population, zoo
from cse_jax.language.canonical import canonical
from cse_jax.language.expression import Expression
from cse_jax.language.spaces import Space
from cse_jax.sampling.random_trees import Shape, random_population
from cse_jax.screening import verification
from cse_jax.screening.candidate import STAGES, Candidate, Filter
from cse_jax.screening.simulation import Simulation, simulate
from cse_jax.screening.verification import Property


@dataclasses.dataclass
class Screened:
    """A screened population.

    Attributes:
      generated: formulas it had.
      rejected: how many of them failed each property first.
      candidates: those that passed the gate, each once, in order of appearance.
    """

    generated: int
    rejected: dict[str, int]
    candidates: list[Candidate]

    @property
    def survivors(self) -> list[Candidate]:
        """Those that passed everything, the shortest formula first."""
        passed = [candidate for candidate in self.candidates if candidate.passed("simulation")]
        return sorted(passed, key=lambda candidate: len(candidate.formula))

    def counts(self) -> dict[str, int]:
        """How many passed each stage; up to the gate with all their copies."""
        invalid = sum(self.rejected.get(p.name.lower(), 0) for p in verification.VALIDITY)
        counts = {"generated": self.generated, "valid": self.generated - invalid}
        counts["verification"] = sum(c.copies for c in self.candidates)
        return counts | {stage: sum(c.passed(stage) for c in self.candidates) for stage in STAGES[3:]}


def screen_population(
    tokens: Int[np.ndarray, "n m"],
    space: Space,
    *,
    reference: Expression | None = None,
    seen: Mapping[str, str] = types.MappingProxyType({}),
    sign_flip: bool = True,
    match_gradient: bool = True,
    simulation_tolerance: float = 0.5,
    units: str = "pixels",
    seed: int = 0,
    skip: Collection[Filter] = (),
) -> Screened:
    """Screens a population.

    Args:
      tokens: its formulas (see ``cse_jax.language.population``).
      space: their search space.
      reference: what simulated gains and gradients are measured against; the space's default loss unless given.
      seen: fingerprints that are not new, with the name or formula that each belongs to.
      sign_flip: keep a candidate whose negation converges, with its sign flipped, where the space has signs.
      match_gradient: weight each candidate so that its gradient matches the reference's.
      simulation_tolerance: share of the reference's gain that a simulated candidate must reach.
      units: of boxes, ``"pixels"`` or ``"strides"``.
      seed: of the simulated predictions.
      skip: filters that reject nothing and give no score.  Formulas that are not verified keep their sign.

    Returns:
      The population; candidates that passed everything have stage ``simulation`` and no reason.

    Raises:
      InputError: the reference does not improve the simulated predictions.
    """
    tokens = np.asarray(tokens)
    reference = reference or zoo.default(space)
    _, first, copies = np.unique(population.hashes(tokens, space), return_index=True, return_counts=True)
    order = np.argsort(first)
    first, copies = first[order], copies[order]
    judged = verification.judge(tokens[first], space, units=units)
    verified = judged.passed(sign_flip=sign_flip and space.can_negate)
    good = np.ones_like(verified) if "verification" in skip else verified
    failed = Counter[str]()
    for code, count in zip(judged.failed[~good, 0].tolist(), copies[~good].tolist(), strict=True):
        failed[Property(code).name.lower()] += count
    candidates = []
    for k, formula in zip(np.flatnonzero(good).tolist(), population.decode(tokens[first[good]], space), strict=True):
        flipped = bool(verified[k] and judged.failed[k, 0] != Property.NONE)
        formula = canonical(Expression(("Neg", *formula.tokens), space) if flipped else formula)
        name = verification.fingerprint(judged, k, flipped=flipped) if verified[k] else f"not verified: {formula}"
        about = {"flipped": flipped, "fingerprint": name, "row": int(first[k]), "copies": int(copies[k])}
        candidates.append(Candidate(formula, **about))
    distinct = _distinct(candidates, seen)
    simulations = simulate([reference, *(c.formula for c in distinct)], space, units=units, seed=seed)
    usual = simulations[0]
    if "simulation" not in skip and not usual.after > usual.before:
        raise InputError(
            f"space {space}: descent on predictions by {reference} takes the metric from {usual.before:g} to "
            f"{usual.after:g}; gains are shares of this one's, which must be above 0"
        )
    for candidate, simulation in zip(distinct, simulations[1:], strict=True):
        if "simulation" not in skip:  # or it would decide by its ranks
            candidate.simulation = relative_gain(simulation, usual)
            candidate.reason = _rejection(simulation, candidate.simulation, simulation_tolerance)
        if not candidate.reason:
            candidate.stage = "simulation"
            if match_gradient and _moves(simulation):
                candidate.weight = float(f"{usual.gradient / simulation.gradient:.4g}")
    return Screened(len(tokens), dict(failed), candidates)


def screen(space: Space, count: int, *, seed: int = 0, max_nodes: int = 40, **options: Any) -> Screened:
    """Writes random formulas of a space and screens them.

    Args:
      space: the search space.
      count: formulas to write.
      seed: of the formulas and of the simulated predictions.
      max_nodes: nodes that no formula may exceed.
      **options: as of ``screen_population``.
    """
    tokens = random_population(jax.random.key(seed), space, Shape(max_nodes=max_nodes), count)
    return screen_population(np.asarray(tokens), space, seed=seed, **options)


def relative_gain(simulation: Simulation, reference: Simulation) -> float:
    """What a candidate gains in prediction-space simulation, as a share of the reference's gain."""
    return (simulation.after - simulation.before) / (reference.after - reference.before)


def _distinct(verified: list[Candidate], seen: Mapping[str, str]) -> list[Candidate]:
    """The shortest candidate of each new fingerprint, in order of appearance; the others get their reason."""
    shortest: dict[str, Candidate] = {}
    for candidate in verified:
        best = shortest.get(candidate.fingerprint)
        if best is None or len(candidate.formula) < len(best.formula):
            shortest[candidate.fingerprint] = candidate
    counts = Counter[str]()
    for candidate in verified:
        counts[candidate.fingerprint] += candidate.copies
    for candidate in verified:
        best = shortest[candidate.fingerprint]
        if candidate.fingerprint in seen:
            candidate.reason = f"same gradient as {seen[candidate.fingerprint]}"
        elif candidate is not best:
            candidate.reason = f"same gradient as {best.formula}"
        else:
            candidate.stage, candidate.duplicates = "distinct", counts[candidate.fingerprint] - 1
    return [candidate for candidate in verified if candidate.stage == "distinct"]


def _rejection(simulation: Simulation, gain: float, tolerance: float) -> str:
    """Why a candidate does not pass the simulation; empty if it does."""
    if not _moves(simulation):
        return f"simulation: the gradient's root mean square is {simulation.gradient:g}"
    if not math.isfinite(gain):
        return "simulation: the descent diverged"
    return f"simulation: gain {gain:.2f} of the default loss's, below {tolerance:g}" if gain < tolerance else ""


def _moves(simulation: Simulation) -> bool:
    return math.isfinite(simulation.gradient) and simulation.gradient != 0.0
