"""The final comparison: default, controls, published and discovered losses on a split that no selection has seen."""

import dataclasses
import enum
import math
import statistics
from collections.abc import Sequence

from cse_jax.language import zoo
from cse_jax.language.spaces import BOX
from cse_jax.search.branch import BranchResult
from cse_jax.search.config import FinalConfig
from cse_jax.search.task import LossPair, Part, Task
from cse_jax.search.trials import Outcome, Trials

PARTS: tuple[Part, Part] = ("cls", "box")


class Role(enum.StrEnum):
    """What a row of the final table is there for."""

    DEFAULT = "default"
    FITTED = "default with a fitted weight"
    PUBLISHED = "published"
    RANDOM_SEARCH = "random search"
    DISCOVERED = "discovered"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A pair of losses in the final table; ``name`` is for people, ``role`` for code."""

    name: str
    role: Role
    losses: LossPair


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the final table: AP on the test split over the seeds, and the paired difference to the first row."""

    name: str
    role: Role
    losses: LossPair
    aps: tuple[float, ...]
    mean: float
    std: float
    difference: float
    difference_std: float
    failures: tuple[str, ...]


def most_rows(config: FinalConfig, task: Task) -> int:
    """How many rows the final table can have."""
    return 3 + len(zoo.published(task.cls_space)) + config.random_search + (3 if config.branches else 1)


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
    for part in PARTS:
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


def compare(contestants: Sequence[Contestant], seeds: Sequence[int], *, trials: Trials) -> list[Row]:
    """Trains every contestant with every seed and compares each with the first."""
    jobs = [(contestant.losses, seed) for seed in seeds for contestant in contestants]
    outcomes = list(trials.run(jobs, purpose="final", what="final comparison on the test split"))
    of_row = [outcomes[k :: len(contestants)] for k in range(len(contestants))]
    default = [outcome.ap for outcome in of_row[0]]
    return [_row(contestant, own, default, seeds) for contestant, own in zip(contestants, of_row, strict=True)]


def _row(contestant: Contestant, outcomes: Sequence[Outcome], default: Sequence[float], seeds: Sequence[int]) -> Row:
    aps = tuple(outcome.ap for outcome in outcomes)
    paired = [ap - other for ap, other in zip(aps, default, strict=True)]
    failures = (
        f"seed {seed}: {outcome.failure}" for seed, outcome in zip(seeds, outcomes, strict=True) if outcome.failure
    )
    about = contestant.name, contestant.role, contestant.losses
    return Row(*about, aps, *_mean_std(aps), *_mean_std(paired), failures=tuple(failures))


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def conclusion(rows: Sequence[Row]) -> str:
    """One honest sentence on whether the search beat the default losses and the controls."""
    discovered = [row for row in rows if row.role == Role.DISCOVERED]
    if not discovered:
        return "Nothing was discovered: no candidate passed all filters."
    row = discovered[-1]
    if not math.isfinite(row.mean):
        return f"The discovered loss failed in training ({'; '.join(row.failures)})."
    rivals = [other for other in rows if other.role != Role.DISCOVERED and math.isfinite(other.mean)]
    best = max(rivals, key=lambda other: other.mean)
    differences = [a - b for a, b in zip(row.aps, best.aps, strict=True)]
    mean, std = _mean_std(differences)
    error = std / math.sqrt(len(differences)) if math.isfinite(std) else math.inf
    noise = (
        f"standard error {error:.4f}, {len(differences)} seeds" if math.isfinite(error) else "one seed, noise unknown"
    )
    figures = f"paired difference {mean:+.4f} AP, {noise}"
    against = f"the best other row ({best.name}): {figures}"
    if mean > 2 * error:
        return f"The discovered loss ({row.name}) is better than {against}."
    if mean > 0:
        return f"The discovered loss ({row.name}) is ahead of {against}: within the noise."
    return f"The discovered loss ({row.name}) is not better than {against}."
