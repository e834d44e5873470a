"""Accuracy against simplicity: which losses no shorter one beats, and which of them the search took."""

import math
from collections.abc import Sequence

from cse_jax.reporting.page.chart import Series, chart, stair
from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, part, tag


def section(facts: Facts) -> Markup:
    """The section of the fronts, one for each branch that is not a control."""
    halls = {b: hall for b, hall in facts.result["hall_of_fame"].items() if hall["entries"] and not hall["control"]}
    charts, texts = [], []
    for branch, hall in halls.items():
        entries = hall["entries"]
        sizes = [len(facts.formula(branch, entry)) for entry in entries]
        aps = [entry["ap"] for entry in entries]
        names = [f"AP {ap:.4f}, {size} nodes: {e['text']}" for ap, size, e in zip(aps, sizes, entries, strict=True)]
        best = on_front(sizes, aps)
        steps = stair([sizes[k] for k in best], [aps[k] for k in best], max(sizes))
        series = [
            Series("front: no loss of its size or smaller is better", *steps, colour=2),
            Series("losses of the hall of fame", sizes, aps, 0, marks=True, names=names),
            Series("the pick", sizes[:1], aps[:1], 1, marks=True, names=names[:1]),
        ]
        default = facts.default_ap(hall)
        if default is not None:
            low, high = min(sizes), max(sizes)
            series.insert(0, Series("default losses", [low, max(high, low + 1)], [default, default], 4, dashed=True))
        charts.append(chart(f"AP against complexity, {branch}", series, x_label="nodes of the formula", y_label="AP"))
        texts.append(tag("p", tag("strong", f"{branch}: "), explained(sizes, aps, hall["standard_error"])))
    if not charts:
        return part("Accuracy against simplicity", tag("p", "No loss has been trained yet."), name="front")
    return part("Accuracy against simplicity", tag("div", *charts, class_="charts"), *texts, name="front")


def on_front(sizes: Sequence[int], aps: Sequence[float]) -> list[int]:
    """Which losses score higher than all that are no larger, the smallest first."""
    found: list[int] = []
    for k in sorted(range(len(sizes)), key=lambda k: (sizes[k], -aps[k])):
        if not found or aps[k] > aps[found[-1]]:
            found.append(k)
    return found


def explained(sizes: Sequence[int], aps: Sequence[float], error: float | None) -> str:
    """Why the first loss of a hall of fame is the pick."""
    pick = f"the pick has {sizes[0]} nodes and AP {aps[0]:.3f}"
    if len(aps) == 1:
        return f"{pick}; it is the only loss of the hall of fame."
    top = max(range(len(aps)), key=lambda k: aps[k])
    if top == 0:
        return f"{pick}, the highest AP of all; no shorter formula comes within the noise of it."
    margin = math.sqrt(2.0) * (error or 0.0)
    return (
        f"{pick}. The highest AP is {aps[top]:.3f} with {sizes[top]} nodes, but the difference of "
        f"{aps[top] - aps[0]:.3f} is within the noise ({margin:.3f}), and of such losses the shortest is taken."
    )
