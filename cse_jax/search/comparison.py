"""The final comparison: default, controls, published and discovered losses on a split that no selection has seen."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from cse_jax.language import spaces, zoo
from cse_jax.search.branch import HallOfFameEntry
from cse_jax.search.trials import LossPair, Outcome, Trials, with_loss


@dataclasses.dataclass
class FinalConfig:
    """The final comparison.

    Attributes:
      seeds: trainings of each row.
      fit_weights: weights tried for each of the default losses on the proxy task; the best of each is a control.
      branches: whether what the branches' winners make together and alone is all shown, not only the best.
      random_search: whether as many random formulas, neither bred nor made of known losses, go through the same filters
        and at most as many trainings, and the best of them is a control.  It may double the cost of both branches.
    """

    seeds: int = 3
    fit_weights: tuple[float, ...] = (0.5, 2.0)
    branches: bool = True
    random_search: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the final table: AP on the test split over the seeds, and the paired difference to the first row."""

    name: str
    losses: LossPair
    aps: tuple[float, ...]
    mean: float
    std: float
    difference: float
    difference_std: float
    failures: tuple[str, ...]


def fit_default_weights(base: LossPair, config: FinalConfig, *, trials: Trials, seed: int) -> dict[str, LossPair]:
    """The default losses with one of the weights as does best on the proxy task, by ``"cls"`` and ``"box"``."""
    fitted = {}
    for part in ("cls", "box"):
        usual = getattr(base, f"{part}_weight")
        pairs = [
            dataclasses.replace(base, **{f"{part}_weight": factor * usual}) for factor in (1.0, *config.fit_weights)
        ]
        what = f"control: weight of the default {part} loss"
        outcomes = trials.run([(losses, seed) for losses in pairs], purpose="proxy", what=what)
        aps = [outcome.ap if math.isfinite(outcome.ap) else -1.0 for outcome in outcomes]
        fitted[part] = pairs[aps.index(max(aps))]
    return fitted


def combined(
    base: LossPair, fame: Mapping[str, Sequence[HallOfFameEntry]], *, trials: Trials, seeds: Sequence[int]
) -> list[tuple[str, LossPair]]:
    """What the branches' winners make with the default losses and with each other: names and losses, the best last.

    Two losses that do well beside the defaults may do badly together, so the best is that on the proxy task.

    Args:
      base: the default losses.
      fame: hall of fame of each branch, by its space's name.
      trials: trains the pairs.
      seeds: of these trainings.
    """
    names = {part: zoo.default_name(loss.space) for part, loss in (("cls", base.cls), ("box", base.box))}
    winners = {part: next(iter(fame.get(getattr(base, part).space.name, ())), None) for part in names}
    pairs = {}
    for parts in (("cls",), ("box",), ("cls", "box")):
        if all(winners[part] for part in parts):
            losses = base
            for part in parts:
                losses = with_loss(losses, winners[part].formula, winners[part].weight)
            shown = [f"discovered {part}" if part in parts else name for part, name in names.items()]
            pairs[" + ".join(shown)] = losses
    jobs = [(losses, seed) for losses in pairs.values() for seed in seeds]
    aps = [outcome.ap for outcome in trials.run(jobs, purpose="proxy", what="winners together and alone")]
    means = [statistics.fmean(aps[k : k + len(seeds)]) for k in range(0, len(aps), len(seeds))]
    ranked = sorted(zip(means, pairs.items(), strict=True), key=lambda row: row[0] if math.isfinite(row[0]) else -1.0)
    return [pair for _, pair in ranked]


def contestants(
    base: LossPair,
    fitted: Mapping[str, LossPair],
    discovered: Sequence[tuple[str, LossPair]],
    at_random: Sequence[tuple[str, LossPair]],
    config: FinalConfig,
    *,
    box_weight: float,
) -> list[tuple[str, LossPair]]:
    """Names and losses of the final table's rows, the default first and the best of the discovered ones last.

    Args:
      base: the default losses.
      fitted: the default losses with a fitted weight, as ``fit_default_weights`` gives them.
      discovered: what the search found, as ``combined`` gives it.
      at_random: likewise of the random search.
      config: what to show.
      box_weight: the detector's usual weight of the box loss.
    """
    cls_space = base.cls.space
    cls_default, box_default = zoo.default_name(cls_space), zoo.default_name(spaces.BOX)
    factors = fitted["cls"].cls_weight / base.cls_weight, fitted["box"].box_weight / base.box_weight
    rows = [
        (f"{cls_default} + {box_default} (default)", base),
        (f"{cls_default} x{factors[0]:g} + {box_default} (fitted)", fitted["cls"]),
        (f"{cls_default} + {box_default} x{factors[1]:g} (fitted)", fitted["box"]),
    ]
    published_cls, published_box = zoo.published(cls_space), zoo.published(spaces.BOX)
    for cls_name, cls in published_cls.items():
        box_name = cls_name.replace("_cls", "_reg")
        pair = LossPair(cls, published_box[box_name], box_weight=box_weight)
        rows.append((f"{cls_name} + {box_name} (published)", pair))
    rows += [("random search, same budget", losses) for _, losses in at_random[-1:]]
    return rows + list(discovered if config.branches else discovered[-1:])


def compare(rows: Sequence[tuple[str, LossPair]], seeds: Sequence[int], *, trials: Trials) -> list[Row]:
    """Trains every row with every seed and compares each with the first row."""
    jobs = [(losses, seed) for seed in seeds for _, losses in rows]
    outcomes = list(trials.run(jobs, purpose="final", what="final comparison on the test split"))
    of_row = [outcomes[k :: len(rows)] for k in range(len(rows))]
    default = [outcome.ap for outcome in of_row[0]]
    return [_row(name, losses, own, default, seeds) for (name, losses), own in zip(rows, of_row, strict=True)]


def _row(
    name: str, losses: LossPair, outcomes: Sequence[Outcome], default: Sequence[float], seeds: Sequence[int]
) -> Row:
    aps = tuple(outcome.ap for outcome in outcomes)
    paired = [ap - other for ap, other in zip(aps, default, strict=True)]
    failures = (
        f"seed {seed}: {outcome.failure}" for seed, outcome in zip(seeds, outcomes, strict=True) if outcome.failure
    )
    return Row(name, losses, aps, *_mean_std(aps), *_mean_std(paired), failures=tuple(failures))


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def conclusion(rows: Sequence[Row]) -> str:
    """One honest sentence on whether the search beat the default losses and the controls."""
    discovered = [row for row in rows if "discovered" in row.name]
    if not discovered:
        return "Nothing was discovered: no candidate passed all filters."
    row = discovered[-1]
    if not math.isfinite(row.mean):
        return f"The discovered loss failed in training ({'; '.join(row.failures)})."
    rivals = [other for other in rows if other not in discovered and math.isfinite(other.mean)]
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
