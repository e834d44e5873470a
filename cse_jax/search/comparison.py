"""The final comparison: default, controls, published and discovered losses on a split that no selection has seen."""

import dataclasses
import enum
import math
import statistics
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cse_jax.language import zoo
from cse_jax.language.spaces import BOX
from cse_jax.search.branch import BranchResult
from cse_jax.search.config import FinalConfig
from cse_jax.search.statistics import Comparison, against_each, signal_variance
from cse_jax.search.task import PARTS, LossPair, Part, Task
from cse_jax.search.trainer import Purpose
from cse_jax.search.trials import Outcome, Trials


class Role(enum.StrEnum):
    """What a row of the final table is there for."""

    DEFAULT = "default"
    FITTED = "default with a fitted weight"
    PUBLISHED = "published"
    RANDOM_SEARCH = "random search"
    TUNED = "tuned hyper-parameters"
    RIVAL = "rival"
    DISCOVERED = "discovered"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A pair of losses in the final table; ``name`` is for people, ``role`` for code."""

    name: str
    role: Role
    losses: LossPair


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the final table: AP on the test split.

    Attributes:
      name, role, losses: of the contestant.
      aps: by seed; NaN where the training failed.
      mean, std: over the seeds; NaN if a training failed.
      failures: why, each with its seed.
      against: the discovered pair's difference to this row; None for what was discovered, or if nothing was.
    """

    name: str
    role: Role
    losses: LossPair
    aps: tuple[float, ...]
    mean: float
    std: float
    failures: tuple[str, ...]
    against: Comparison | None = None


def most_rows(config: FinalConfig, task: Task) -> int:
    """How many rows the final table can have."""
    rivals = len(zoo.published(task.cls_space)) + config.random_search + config.tuned
    return 1 + (len(PARTS) if config.fit_weights else 0) + rivals + (3 if config.branches else 1)


def controls(config: FinalConfig, *, trials: Trials, seed: int) -> list[Contestant]:
    """The rows that a discovered pair has to beat: default, default with either weight fitted, published.

    Args:
      config: the weights to try; each is trained on the proxy task, and the best is the row.
      trials: trains them.
      seed: of these trainings.
    """
    task = trials.trainer.task
    names: dict[Part, str] = {part: zoo.default_name(task.space(part)) for part in PARTS}
    rows = [Contestant(f"{names['cls']} + {names['box']} (default)", Role.DEFAULT, task.default)]
    for part in PARTS if config.fit_weights else ():
        factor, losses = _fitted(part, config, trials=trials, seed=seed)
        shown = {p: name + (f" x{factor:g}" if p == part else "") for p, name in names.items()}
        rows.append(Contestant(f"{shown['cls']} + {shown['box']} (fitted)", Role.FITTED, losses))
    published_box = zoo.published(BOX)
    for cls_name, cls in zoo.published(task.cls_space).items():
        box_name = cls_name.replace("_cls", "_reg")
        pair = LossPair(cls, published_box[box_name], box_weight=task.box_weight)
        rows.append(Contestant(f"{cls_name} + {box_name} (published)", Role.PUBLISHED, pair))
    return rows


def _fitted(part: Part, config: FinalConfig, *, trials: Trials, seed: int) -> tuple[float, LossPair]:
    """The factor on the weight of one default loss that does best on the proxy task, and the pair with it."""
    task = trials.trainer.task
    factors = (1.0, *config.fit_weights)
    pairs = [task.replaced(part, getattr(task.default, part), factor) for factor in factors]
    what = f"control: weight of the default {part} loss"
    outcomes = trials.run([(losses, seed) for losses in pairs], purpose="proxy", what=what)
    aps = [outcome.ap if math.isfinite(outcome.ap) else -1.0 for outcome in outcomes]
    best = aps.index(max(aps))
    return factors[best], pairs[best]


def combined(branches: Sequence[BranchResult], *, trials: Trials, seeds: Sequence[int]) -> list[Contestant]:
    """What the branches' winners make with the default losses and with each other, the best on the proxy task last.

    Two losses that do well beside the defaults may do badly together, so all combinations are trained.

    Args:
      branches: of one search, or of its control.
      trials: trains the pairs.
      seeds: of these trainings.
    """
    task = trials.trainer.task
    winners = {branch.plan.part: branch.entries[0] for branch in branches if branch.entries}
    combinations: tuple[tuple[Part, ...], ...] = (("cls",), ("box",), ("cls", "box"))
    found = []
    for parts in combinations:
        if all(part in winners for part in parts):
            losses = task.default
            for part in parts:
                losses = task.replaced(part, winners[part].formula, winners[part].weight, losses)
            shown = [f"discovered {p}" if p in parts else zoo.default_name(task.space(p)) for p in PARTS]
            found.append(Contestant(" + ".join(shown), Role.DISCOVERED, losses))
    jobs = [(contestant.losses, seed) for contestant in found for seed in seeds]
    aps = [outcome.ap for outcome in trials.run(jobs, purpose="proxy", what="winners together and alone")]
    means = [statistics.fmean(aps[k : k + len(seeds)]) for k in range(0, len(aps), len(seeds))]
    ranked = sorted(zip(means, found, strict=True), key=lambda row: row[0] if math.isfinite(row[0]) else -1.0)
    return [contestant for _, contestant in ranked]


def compare(
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    *,
    trials: Trials,
    signal: float = math.nan,
    purpose: Purpose = "final",
) -> list[Row]:
    """Trains every contestant with every seed and compares the discovered pair, which is the last, with the others.

    Args:
      contestants: the rows.
      seeds: fresh ones, which no selection has used.
      trials: trains them.
      signal: ``prior_variance`` of the discovered pair.
      purpose: of the trainings, which says on which split they are scored.
    """
    jobs = [(contestant.losses, seed) for seed in seeds for contestant in contestants]
    outcomes = list(trials.run(jobs, purpose=purpose, what="all pairs with all seeds"))
    of_row = [outcomes[k :: len(contestants)] for k in range(len(contestants))]
    rows = [_row(contestant, own, seeds) for contestant, own in zip(contestants, of_row, strict=True)]
    return judged(rows, signal=signal)


def prior_variance(branches: Sequence[BranchResult], losses: LossPair | None, default: LossPair) -> float:
    """Variance of true differences between pairs like this one and the default losses, from the halls of fame.

    Those of a pair's two losses add up.  The figures are of the proxy task, where differences may be larger or smaller
    than at the end; NaN if a hall of fame has fewer than two losses, or nothing was discovered.

    Args:
      branches: of the search that found the pair.
      losses: the pair.
      default: the default losses.
    """
    parts = [part for part in PARTS if losses and getattr(losses, part) != getattr(default, part)]
    of_part = [
        signal_variance(
            [entry.ap - branch.default_ap for entry in branch.entries], math.sqrt(2.0) * branch.standard_error
        )
        for branch in branches
        if branch.plan.part in parts and not branch.plan.control
    ]
    return sum(of_part) if of_part else math.nan


def judged(rows: Sequence[Row], *, signal: float = math.nan) -> list[Row]:
    """The rows with the discovered pair's difference to each.

    Rows of the same losses (a fitted weight may be the default one) are the same trainings, and count once.  Only the
    difference to the default losses is shrunk, because the prior is that of such differences.
    """
    discovered = [row for row in rows if row.role == Role.DISCOVERED]
    if not discovered:
        return list(rows)
    keys, places, table = _distinct(rows)
    pair = tuple(discovered[-1].losses.key)
    rivals = {key for key, row in zip(keys, rows, strict=True) if row.role != Role.DISCOVERED} - {pair}
    rivals = [key for key in places if key in rivals]
    signals = {places[key]: signal for key, row in zip(keys, rows, strict=True) if row.role == Role.DEFAULT}
    found = against_each(table, places[pair], [places[key] for key in rivals], signals=signals)
    of_rival = dict(zip(rivals, found, strict=True))
    return [
        row if row.role == Role.DISCOVERED else dataclasses.replace(row, against=of_rival.get(key))
        for key, row in zip(keys, rows, strict=True)
    ]


def gains(rows: Sequence[Row]) -> list[Comparison | None]:
    """Each row's difference to the first one, corrected for all of them; None for that one's losses."""
    keys, places, table = _distinct(rows)
    found = against_each(table, 0, range(1, len(places)))
    of_place = [None, *(comparison.reversed() for comparison in found)]
    return [of_place[places[key]] for key in keys]


def _distinct(rows: Sequence[Row]) -> tuple[list[tuple], dict[tuple, int], Float[np.ndarray, "losses seeds"]]:
    """What tells the losses of each row, the place of each in a table of AP without repetitions, and the table."""
    keys = [tuple(row.losses.key) for row in rows]
    aps = dict(zip(keys, (row.aps for row in rows), strict=True))
    return keys, {key: place for place, key in enumerate(aps)}, np.array(list(aps.values()), np.float64)


def _row(contestant: Contestant, outcomes: Sequence[Outcome], seeds: Sequence[int]) -> Row:
    aps = tuple(outcome.ap for outcome in outcomes)
    failures = (
        f"seed {seed}: {outcome.failure}" for seed, outcome in zip(seeds, outcomes, strict=True) if outcome.failure
    )
    mean, std = mean_std(aps)
    return Row(contestant.name, contestant.role, contestant.losses, aps, mean, std, tuple(failures))


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; NaN if one is not finite, and the deviation of one alone."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
