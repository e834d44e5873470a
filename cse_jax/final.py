"""The final comparison: default, controls, published and discovered losses on a split that no selection has seen."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from cse_jax import spaces, zoo
from cse_jax.branch import Famous
from cse_jax.trials import LossPair, Trials


@dataclasses.dataclass
class FinalConfig:
    """The final comparison.

    Attributes:
      seeds: trainings of each row.
      fit_weights: weights tried for the default classification loss on the proxy task; the best is the control.
      branches: whether each branch's winner is also shown with the other loss at its default.
    """

    seeds: int = 3
    fit_weights: tuple[float, ...] = (0.5, 2.0)
    branches: bool = True


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


def fit_default_weight(base: LossPair, config: FinalConfig, *, trials: Trials, seed: int) -> LossPair:
    """The default losses with the classification weight that does best on the proxy task."""
    scored = []
    weights = (1.0, *config.fit_weights)
    for number, weight in enumerate(weights, start=1):
        losses = dataclasses.replace(base, cls_weight=weight * base.cls_weight)
        what = f"control: default classification loss, weight {weight:g}"
        outcome = trials.run(losses, purpose="proxy", seed=seed, what=what, number=number, of=len(weights))
        scored.append((outcome.ap if math.isfinite(outcome.ap) else -1.0, losses))
    return max(scored, key=lambda pair: pair[0])[1]


def contestants(
    base: LossPair, fitted: LossPair, fame: Mapping[str, Sequence[Famous]], config: FinalConfig, *, box_weight: float
) -> list[tuple[str, LossPair]]:
    """Names and losses of the final table's rows, the default first.

    Args:
      base: the default losses.
      fitted: the default losses with the fitted weight.
      fame: hall of fame of each branch that was searched, by its space's name.
      config: what to show.
      box_weight: the detector's usual weight of the box loss.
    """
    cls_space = base.cls.space
    names = f"{zoo.default_name(cls_space)} + {zoo.default_name(spaces.BOX)}"
    fitted_name = f"{zoo.default_name(cls_space)} x{fitted.cls_weight:g} + {zoo.default_name(spaces.BOX)} (fitted)"
    rows = [(f"{names} (default)", base), (fitted_name, fitted)]
    published_cls, published_box = zoo.published(cls_space), zoo.published(spaces.BOX)
    for cls_name, cls in published_cls.items():
        box_name = cls_name.replace("_cls", "_reg")
        pair = LossPair(cls, published_box[box_name], box_weight=box_weight)
        rows.append((f"{cls_name} + {box_name} (published)", pair))
    cls, box = (next(iter(fame.get(space.name, ())), None) for space in (cls_space, spaces.BOX))
    with_cls = dataclasses.replace(base, cls=cls.formula, cls_weight=cls.weight) if cls else base
    with_box = dataclasses.replace(base, box=box.formula, box_weight=box.weight * base.box_weight) if box else base
    if cls and (config.branches or not box):
        rows.append((f"discovered cls + {zoo.default_name(spaces.BOX)}", with_cls))
    if box and (config.branches or not cls):
        rows.append((f"{zoo.default_name(cls_space)} + discovered box", with_box))
    if cls and box:
        both = dataclasses.replace(with_cls, box=with_box.box, box_weight=with_box.box_weight)
        rows.append(("discovered cls + discovered box", both))
    return rows


def compare(
    rows: Sequence[tuple[str, LossPair]],
    seeds: Sequence[int],
    *,
    trials: Trials,
    show: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Trains every row with every seed, seed by seed, and compares each with the first row."""
    aps: dict[str, list[float]] = {name: [] for name, _ in rows}
    failures: dict[str, list[str]] = {name: [] for name, _ in rows}
    number = 0
    for seed in seeds:
        for name, losses in rows:
            number += 1
            what = f"final comparison, seed {seed}: {name}"
            outcome = trials.run(
                losses, purpose="final", seed=seed, what=what, number=number, of=len(seeds) * len(rows)
            )
            aps[name].append(outcome.ap)
            if outcome.failure:
                failures[name].append(f"seed {seed}: {outcome.failure}")
        show([_row(name, losses, aps, failures, rows[0][0]) for name, losses in rows])
    return [_row(name, losses, aps, failures, rows[0][0]) for name, losses in rows]


def _row(name: str, losses: LossPair, aps: dict, failures: dict, first: str) -> Row:
    paired = [a - b for a, b in zip(aps[name], aps[first], strict=False)]
    return Row(
        name, losses, tuple(aps[name]), *_mean_std(aps[name]), *_mean_std(paired), failures=tuple(failures[name])
    )


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def conclusion(rows: Sequence[Row]) -> str:
    """One honest sentence on whether the search beat the default losses and the controls."""
    discovered = [row for row in rows if row.name.startswith("discovered") or row.name.endswith("discovered box")]
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
    against = f"the best other row ({best.name}): paired difference {mean:+.4f} AP, standard error {error:.4f}, {len(differences)} seeds"
    if mean > 2 * error:
        return f"The discovered loss ({row.name}) is better than {against}."
    if mean > 0:
        return f"The discovered loss ({row.name}) is ahead of {against}: within the noise."
    return f"The discovered loss ({row.name}) is not better than {against}."
