"""What is known of one candidate: every check with its numbers, its trainings, and the known losses nearest to it."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cse_jax.language import zoo
from cse_jax.language.expression import Expression
from cse_jax.language.population import encode
from cse_jax.language.spaces import trajectories
from cse_jax.reporting.page.sweeps import curves, sweeps
from cse_jax.screening.funnel import relative_gain
from cse_jax.screening.simulation import simulate
from cse_jax.screening.verification import MIN_RISE, VANISHED, behaviours, judge, verify

_NEAREST = 3


def explain(formula: Expression, weight: float, row: Mapping[str, Any] | None, *, units: str) -> list[str]:
    """Lines that explain a candidate.

    Args:
      formula: of the candidate, with the sign with which it trains.
      weight: with which it trains.
      row: its row of the ledger; None if it has none.
      units: unit of length of boxes, one of ``space.units``.
    """
    lines = [f"{formula.space}: {formula}", f"  {len(formula)} nodes, weight {weight:g}", ""]
    lines += ["Checks without training", *_verification(formula, units), *_simulation(formula, units), ""]
    lines += ["In the ledger", *(_recorded(row) if row else ["  it has no such candidate"]), ""]
    lines += ["Known losses, nearest first (0: same gradients up to a factor, 1: opposite ones)"]
    lines += [f"  {name}: {distance:.3f}" for name, distance in nearest(formula, units)[:_NEAREST]]
    return lines + ["", "Where it is lowest", *_optima(formula, weight, units)]


def nearest(formula: Expression, units: str) -> list[tuple[str, float]]:
    """The known losses of its space by how much their gradients on the verification grid differ, nearest first.

    The distance is half that of the gradients as vectors of length 1, after ``verification.behaviours``.
    """
    known = zoo.known(formula.space)
    found = behaviours([formula, *known.values()], formula.space, units=units)
    unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-30)
    distances = np.linalg.norm(unit[1:] - unit[0], axis=1) / 2.0
    return sorted(zip(known, distances.tolist(), strict=True), key=lambda pair: pair[1])


def _verification(formula: Expression, units: str) -> list[str]:
    space = formula.space
    paths = trajectories(space, units)
    checked = f"  verification on {len(paths.names)} paths"
    (verdict,) = verify([formula], space, sign_flip=True, units=units)
    if not verdict.passed:
        return [f"{checked}: {verdict.reason}"]
    judged, sign = judge(encode([formula], space), space, units=units), int(verdict.flipped)
    rise, start = judged.rise[0, sign], judged.start_gradient[0, sign]
    lines = [f"{checked}: passed{' with its sign flipped' if verdict.flipped else ''}"]
    lines.append(f"  least rise as a prediction gets worse: {rise:.3g} of the loss (at least {MIN_RISE:g})")
    if paths.vanishing.any():
        lines.append(f"  gradient where it must vanish: {start:.3g} of the largest (at most {VANISHED:g})")
    return [*lines, f"  fingerprint: {verdict.fingerprint}"]


def _simulation(formula: Expression, units: str) -> list[str]:
    name, reference = zoo.default_name(formula.space), zoo.default(formula.space)
    own, usual = simulate([formula, reference], formula.space, units=units)
    metric = "balanced accuracy" if formula.space.class_axis else "mean IoU"
    if not math.isfinite(own.after):
        return ["  descent on bare predictions: it diverged"]
    return [
        f"  descent on bare predictions: {metric} {own.before:.3f} -> {own.after:.3f} ({name} {usual.after:.3f}), "
        f"a gain of {relative_gain(own, usual):.2f} of {name}'s"
    ]


def _recorded(row: Mapping[str, Any]) -> list[str]:
    lines = [f"  {identity(row)}, last stage passed: {row['stage']}"]
    if row["reason"]:
        lines.append(f"  why it went no further: {row['reason']}")
    others = row["duplicates"] + 1 - row["copies"]  # without copies of its own
    shown = f", and {others} others with the same gradients" if others > 0 else ""
    lines.append(f"  times that its generation had it: {row['copies']}{shown}")
    meanings = {
        "simulation": "gain on bare predictions, of the default loss's",
        "probe": "AP of heads on fixed features",
        "overfit": "AP on one image per category",
        "proxy": "AP on the proxy task",
    }
    lines += [f"  {name}: {row[name]:.4f} ({what})" for name, what in meanings.items() if row[name] is not None]
    if curve := json.loads(row["curve"]):
        lines.append("  proxy task by steps: " + ", ".join(f"{ap:.4f} after {steps}" for steps, ap in curve))
    if aps := json.loads(row["aps"]):
        lines.append("  by seed: " + ", ".join(f"{ap:.4f}" for ap in aps))
    return [*lines, f"  {row['seconds']:.1f} seconds were spent on it"]


def identity(row: Mapping[str, Any]) -> str:
    """The name of a candidate in its ledger."""
    return f"{row['branch']}/{row['generation']}/{row['number']}"


def _optima(formula: Expression, weight: float, units: str) -> Sequence[str]:
    found = zip(sweeps(formula.space, units), curves(formula, weight, units), strict=True)
    return [f"  {sweep.title}: {curve.lowest} ({sweep.axis})" for sweep, curve in found]
