"""From many formulas to few: validity, convergence, sign flip, duplicates and prediction-space simulation."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from cse_jax.language import population
from cse_jax.language.canonical import canonical
from cse_jax.language.expression import Expression
from cse_jax.language.spaces import Space
from cse_jax.screening import verification
from cse_jax.screening.simulation import Simulation, simulate
from cse_jax.screening.verification import Property

STAGES = ("generated", "valid", "verified", "distinct", "simulated", "probed", "optimised", "trained")


@dataclasses.dataclass(eq=False)
class Candidate:
    """One formula that passed the gate, and how far it came.

    Attributes:
      formula: what is trained: in canonical form, with the sign flipped if only the negation converges.
      stage: the last of ``STAGES`` that it passed.
      reason: why it went no further; empty while it goes on.
      flipped: whether its sign was flipped.
      fingerprint: the gate's.
      copies: how many of its generation are this formula, up to trivial rewrites.
      duplicates: how many others of its generation had the same fingerprint.
      weight: factor that matches its gradient to the default loss's.
      prediction, probe, optimisation, proxy: its scores; NaN where it was not scored.
      curve: (steps, AP) at each horizon of the proxy task.
      aps: by seed, at the end of it.
    """

    formula: Expression
    stage: str = "verified"
    reason: str = ""
    flipped: bool = False
    fingerprint: str = ""
    copies: int = 1
    duplicates: int = 0
    weight: float = 1.0
    prediction: float = math.nan
    probe: float = math.nan
    optimisation: float = math.nan
    proxy: float = math.nan
    curve: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    aps: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def promise(self) -> float:
        """What all stages so far say together: the product of their scores (``configs/search/calibration.py``)."""
        return math.prod(filter(math.isfinite, (self.prediction, self.probe, self.optimisation, self.proxy)))


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

    def counts(self) -> dict[str, int]:
        """How many passed each stage; up to the gate with all their copies."""
        invalid = sum(self.rejected.get(p.name.lower(), 0) for p in verification.VALIDITY)
        counts = {"generated": self.generated, "valid": self.generated - invalid}
        counts["verified"] = sum(c.copies for c in self.candidates)
        return counts | {stage: sum(passed(c, stage) for c in self.candidates) for stage in STAGES[3:]}


def passed(candidate: Candidate, stage: str) -> bool:
    """Whether a candidate came at least so far."""
    return STAGES.index(candidate.stage) >= STAGES.index(stage)


def screen(
    tokens: Int[np.ndarray, "n m"],
    space: Space,
    *,
    reference: Expression,
    seen: Mapping[str, str],
    sign_flip: bool,
    match_gradient: bool,
    simulation_tolerance: float,
    units: str,
    seed: int,
) -> Screened:
    """Screens a population.

    Args:
      tokens: its formulas (see ``cse_jax.language.population``).
      space: their search space.
      reference: the default loss; simulated gains and gradients are measured against its own.
      seen: fingerprints that are not new, with the name or formula that each belongs to.
      sign_flip: keep a candidate whose negation converges, with its sign flipped.
      match_gradient: weight each candidate so that its gradient matches the reference's.
      simulation_tolerance: share of the reference's gain that a simulated candidate must reach.
      units: of boxes, ``"pixels"`` or ``"strides"``.
      seed: of the simulated predictions.

    Returns:
      The population; candidates that passed everything have stage ``simulated`` and no reason.
    """
    tokens = np.asarray(tokens)
    _, first, copies = np.unique(population.hashes(tokens, space), return_index=True, return_counts=True)
    order = np.argsort(first)
    first, copies = first[order], copies[order]
    judged = verification.judge(tokens[first], space, units=units)
    good = judged.passed(sign_flip=sign_flip)
    failed = Counter[str]()
    for code, count in zip(judged.failed[~good, 0].tolist(), copies[~good].tolist(), strict=True):
        failed[Property(code).name.lower()] += count
    candidates = []
    for k, formula in zip(np.flatnonzero(good).tolist(), population.decode(tokens[first[good]], space), strict=True):
        flipped = bool(judged.failed[k, 0] != Property.NONE)
        formula = canonical(Expression(("Neg", *formula.tokens), space) if flipped else formula)
        name = verification.fingerprint(judged, k, flipped=flipped)
        candidates.append(Candidate(formula, flipped=flipped, fingerprint=name, copies=int(copies[k])))
    distinct = _distinct(candidates, seen)
    simulations = simulate([reference, *(c.formula for c in distinct)], space, units=units, seed=seed)
    for candidate, simulation in zip(distinct, simulations[1:], strict=True):
        _apply_simulation(candidate, simulation, simulations[0], simulation_tolerance, match_gradient)
    return Screened(len(tokens), dict(failed), candidates)


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


def _apply_simulation(
    candidate: Candidate,
    simulation: Simulation,
    reference: Simulation,
    simulation_tolerance: float,
    match_gradient: bool,
) -> None:
    gain = relative_gain(simulation, reference)
    if not math.isfinite(simulation.gradient) or simulation.gradient == 0.0:
        candidate.reason = f"simulation: the gradient's root mean square is {simulation.gradient:g}"
    elif not math.isfinite(gain):
        candidate.reason = "simulation: the descent diverged"
    elif gain < simulation_tolerance:
        candidate.reason = f"simulation: gain {gain:.2f} of the default loss's, below {simulation_tolerance:g}"
    else:
        candidate.stage = "simulated"
    candidate.prediction = gain
    if match_gradient and candidate.stage == "simulated":
        candidate.weight = float(f"{reference.gradient / simulation.gradient:.4g}")
