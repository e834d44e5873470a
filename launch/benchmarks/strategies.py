"""Strategies replayed on tables of trained losses: what each would have found after so many trainings."""

import functools
import math
import pathlib

import numpy as np

from benchmarks import tables
from benchmarks.report import Report
from cse_jax import loss_table
from cse_jax.loss_table import LossTable, replay
from cse_jax.search.strategies import STRATEGIES, named

_UNITS = "strides"  # of tables that do not say it, which are FCOS's
_SIZES = {"smallest": (3, 60.0, 400), "small": (2_000, 60.0, 400), "full": (10_000, 300.0, 400)}  # replays, s, trained


def measure(report: Report, *, size: str, rounds: int, table: str | None = None, prior: str | None = None) -> None:
    """All tables of the suite.

    Args:
      report: where the figures go.
      size: how many replays of a strategy, how many seconds they may take, and how many losses each trains.
      rounds: not used; replays are many already.
      table: file of a table of trained losses; all that come with the package by default.
      prior: file of a table of another task, from which the surrogate may start.

    Raises:
      InputError: there is no table.
    """
    other = loss_table.read(pathlib.Path(prior)) if prior else None
    for name, held in tables.chosen(table):
        for part in ("cls", "box"):
            if len(held.of(part)) > 1:
                _part(report, name, held, part, other, size)
            else:
                report.say(f"{name} holds no trained losses of {part}")


def _part(report: Report, name: str, table: LossTable, part, prior: LossTable | None, size: str) -> None:
    count, seconds, most = _SIZES[size]
    known = replay.case(table, part, units=table.about.get("box_units", _UNITS), prior=prior)
    best = known.truth.max(1).mean()
    report.say(f"{name}, {part}: {known.told.shape[1]} losses, {len(known.told)} seeds, the best {best:+.4f} AP")
    contestants = {name: functools.partial(named, name) for name in STRATEGIES}
    contestants["surrogate"] = functools.partial(named, "surrogate", noise=known.noise)
    if known.prior is not None:
        contestants["surrogate, prior"] = functools.partial(named, "surrogate", noise=known.noise, prior=known.prior)
    runs = {}
    for strategy, make in contestants.items():
        runs[strategy] = replay.replays(make, known, count=count, seconds=seconds, most=most)
        report.say(f"{strategy}: {len(runs[strategy].values)} replays in {runs[strategy].seconds:.1f} s")
    title = f"{name}, {part}: "
    for row in _curves({s: r.values for s, r in runs.items()}):
        report.row(title + "true AP beyond the default loss of the best found", row)
    for row in _curves({s: r.regrets for s, r in runs.items()}):
        report.row(title + "regret", row)
    for strategy, run in runs.items():
        report.row(title + f"losses trained until within {replay.WITHIN} AP of the best", _needed(strategy, run))


def _curves(samples: dict[str, np.ndarray]) -> list[dict]:
    """A row for so many losses trained: mean and 95 % interval of each strategy."""
    found = {strategy: replay.interval(each) for strategy, each in samples.items()}
    last = min(each.shape[1] for each in samples.values())
    trained = sorted({*(m for m in replay.TRAINED if m < last), last})
    return [
        {"trained": m}
        | {s: f"{mean[m - 1]:+.4f} ({low[m - 1]:+.4f}, {high[m - 1]:+.4f})" for s, (mean, (low, high)) in found.items()}
        for m in trained
    ]


def _needed(strategy: str, run: replay.Replays) -> dict:
    median = float(np.median(run.needed))
    return {
        "strategy": strategy,
        "replays": len(run.needed),
        "median": median if math.isfinite(median) else None,
        "a tenth needs at most": _finite(np.quantile(run.needed, 0.1, method="inverted_cdf")),
        "nine tenths": _finite(np.quantile(run.needed, 0.9, method="inverted_cdf")),
        "never, share": float(np.isinf(run.needed).mean()),
        "seconds a replay": run.seconds / len(run.needed),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
