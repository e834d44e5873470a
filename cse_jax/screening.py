"""From many formulas to few: validity, convergence, sign flip, duplicates and prediction-space simulation."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from cse_jax.canonical import canonical
from cse_jax.expression import Expression
from cse_jax.gate import Verdict, verify
from cse_jax.prediction import Simulation, simulate
from cse_jax.spaces import Space

STAGES = ("generated", "valid", "verified", "distinct", "simulated", "optimised", "trained")


@dataclasses.dataclass
class Candidate:
    """One formula of a generation and how far it came.

    Attributes:
      generated: the formula as it was generated.
      formula: what is trained: in canonical form, with the sign flipped if only the negation converges.
      stage: the last of ``STAGES`` that it passed.
      reason: why it went no further; empty while it goes on.
      duplicates: how many others of its generation had the same fingerprint.
      weight: factor that matches its gradient to the default loss's.
      prediction, optimisation, proxy: its scores; NaN where it was not scored.
    """

    generated: Expression
    formula: Expression
    stage: str = "generated"
    reason: str = ""
    flipped: bool = False
    fingerprint: str = ""
    duplicates: int = 0
    weight: float = 1.0
    prediction: float = math.nan
    optimisation: float = math.nan
    proxy: float = math.nan
    seconds: float = 0.0


def screen(
    population: Sequence[Expression],
    space: Space,
    *,
    reference: Expression,
    seen: Mapping[str, str],
    sign_flip: bool,
    match_gradient: bool,
    min_gain: float,
    units: str,
    seed: int,
) -> list[Candidate]:
    """Screens a population.

    Args:
      population: formulas of ``space``.
      space: their search space.
      reference: the default loss; simulated gains and gradients are measured against its own.
      seen: fingerprints that are not new, with the name or formula that each belongs to.
      sign_flip: keep a candidate whose negation converges, with its sign flipped.
      match_gradient: weight each candidate so that its gradient matches the reference's.
      min_gain: share of the reference's gain that a simulated candidate must reach.
      units: of boxes, ``"pixels"`` or ``"strides"``.
      seed: of the simulated predictions.

    Returns:
      One candidate per formula, in order.  Those that passed everything have stage ``simulated`` and no reason.
    """
    candidates = [Candidate(formula, canonical(formula)) for formula in population]
    unique = list({c.formula.tokens: c.formula for c in candidates}.values())
    verdicts = dict(
        zip((e.tokens for e in unique), verify(unique, space, sign_flip=sign_flip, units=units), strict=True)
    )
    for candidate in candidates:
        _apply_verdict(candidate, verdicts[candidate.formula.tokens])
    distinct = _distinct([c for c in candidates if c.stage == "verified"], seen)
    simulations = simulate([reference, *(c.formula for c in distinct)], space, units=units, seed=seed)
    for candidate, simulation in zip(distinct, simulations[1:], strict=True):
        _apply_simulation(candidate, simulation, simulations[0], min_gain, match_gradient)
    return candidates


def _apply_verdict(candidate: Candidate, verdict: Verdict) -> None:
    candidate.fingerprint, candidate.flipped = verdict.fingerprint, verdict.flipped
    if not verdict.passed:
        candidate.stage = "valid" if verdict.valid else "generated"
        candidate.reason = verdict.reason
        return
    candidate.stage = "verified"
    if verdict.flipped:
        formula = candidate.formula
        candidate.formula = canonical(Expression(("Neg", *formula.tokens), formula.space))


def _distinct(verified: list[Candidate], seen: Mapping[str, str]) -> list[Candidate]:
    """The shortest candidate of each new fingerprint, in order of appearance; the others get their reason."""
    shortest: dict[str, Candidate] = {}
    for candidate in verified:
        best = shortest.get(candidate.fingerprint)
        if best is None or len(candidate.formula) < len(best.formula):
            shortest[candidate.fingerprint] = candidate
    counts = Counter(candidate.fingerprint for candidate in verified)
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
    candidate: Candidate, simulation: Simulation, reference: Simulation, min_gain: float, match_gradient: bool
) -> None:
    gain = (simulation.after - simulation.before) / (reference.after - reference.before)
    if not math.isfinite(simulation.gradient) or simulation.gradient == 0.0:
        candidate.reason = f"simulation: the gradient's root mean square is {simulation.gradient:g}"
    elif not math.isfinite(gain):
        candidate.reason = "simulation: the descent diverged"
    elif gain < min_gain:
        candidate.reason = f"simulation: gain {gain:.2f} of the default loss's, below {min_gain:g}"
    else:
        candidate.stage = "simulated"
    candidate.prediction = gain
    if match_gradient and candidate.stage == "simulated":
        candidate.weight = float(f"{reference.gradient / simulation.gradient:.4g}")
