"""What the best losses do: value and gradient beside the default's, and where each is lowest."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cse_jax.language import zoo
from cse_jax.language.expression import Expression
from cse_jax.reporting.page.chart import Series, chart, heat_map
from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, part, table, tag
from cse_jax.reporting.page.sweeps import Curve, Sweep, area, curves, gradients, sweeps

_SHOWN = 3
_HIGHEST = 1.6  # of the default's largest, in a figure: losses that explode are cut off there


def section(facts: Facts) -> Markup:
    """The section of the curves."""
    parts = []
    for branch, hall in facts.result["hall_of_fame"].items():
        if not hall["control"]:
            parts += _of_branch(facts, branch, hall["entries"][:_SHOWN])
    about = tag(
        "p",
        "Each loss times its weight, above its lowest value, and its gradient, while one thing about a prediction "
        "changes. Dashed: the default loss. The gradient is 0 where the loss has done its work. "
        "The heat maps show how far the gradient is above or below the default's; without colour they are the same.",
    )
    return part("What the losses do", about, *parts, name="behaviour")


def _of_branch(facts: Facts, branch: str, entries: Sequence[dict[str, Any]]) -> list[Markup]:
    space = facts.task.space(facts.parts[branch])
    units = facts.task.box_units
    lines = sweeps(space, units)
    name, default = zoo.default_name(space), zoo.default(space)
    usual = curves(default, 1.0, units)
    found = []
    for rank, entry in enumerate(entries, start=1):
        own = curves(facts.formula(branch, entry), entry["weight"], units)
        found.append(tag("h3", f"{branch}, rank {rank}: ", tag("code", entry["text"])))
        charts = _charts(lines, own, usual, f"rank {rank}", name)
        found.append(
            tag("div", *charts, *_difference(facts.formula(branch, entry), entry, rank, units), class_="charts")
        )
        rows = [[f"{s.title}: {s.axis}", c.lowest, u.lowest] for s, c, u in zip(lines, own, usual, strict=True)]
        found.append(table(f"Where the loss is lowest, {branch}, rank {rank}", ["along", f"rank {rank}", name], rows))
    return found


def _charts(
    lines: Sequence[Sweep], own: Sequence[Curve], usual: Sequence[Curve], name: str, usual_name: str
) -> list[Markup]:
    """Two figures of each panel: the loss and its gradient."""
    charts = []
    for panel, of_panel in itertools.groupby(range(len(lines)), key=lambda k: lines[k].panel):
        places = list(of_panel)
        sweeps_here = [lines[k] for k in places]
        own_here, usual_here = ([each[k] for k in places] for each in (own, usual))
        for what in ("value", "gradient"):
            series = _series(usual_name, sweeps_here, usual_here, what, dashed=True)
            series += _series(name, sweeps_here, own_here, what, dashed=False)
            ends = limits(*(np.concatenate([getattr(c, what) for c in loss]) for loss in (own_here, usual_here)))
            title = f"{'Loss' if what == 'value' else 'Gradient'}, {panel}, {name}"
            charts.append(chart(title, series, x_label=sweeps_here[0].axis, y_label=what, y_limits=ends))
    return charts


def _difference(loss: Expression, entry: dict[str, Any], rank: int, units: str) -> list[Markup]:
    """A heat map of the loss's gradient less the default's."""
    over, name = area(loss.space, units), zoo.default_name(loss.space)
    if over is None:
        return []
    usual = gradients(zoo.default(loss.space), 1.0, units)
    found = gradients(loss, entry["weight"], units) - usual
    furthest = float(abs(found[np.isfinite(found)]).max(initial=0.0))
    largest = min(furthest, float(np.ptp(usual[np.isfinite(usual)])) / 2) or 1.0
    beyond = ", or beyond" if furthest > largest else ""
    return [
        heat_map(
            f"Gradient less that of {name}, rank {rank}",
            found,
            x=(float(over.sweep.x[0]), float(over.sweep.x[-1])),
            y=(float(over.y[0]), float(over.y[-1])),
            x_label=over.sweep.axis,
            y_label=over.down,
            largest=largest,
            legend=(f"above it, by {largest:.3g}{beyond}", f"below it, by {largest:.3g}{beyond}"),
        )
    ]


def _series(name: str, of_panel: Sequence[Sweep], found: Sequence[Curve], what: str, *, dashed: bool) -> list[Series]:
    """The lines of a loss in a figure; one line where all sweeps give the same."""
    labels = [f"{name}, {sweep.name}" if sweep.name else name for sweep in of_panel]
    heights = [getattr(each, what) for each in found]
    if len(heights) > 1 and all(np.allclose(heights[0], other, equal_nan=True) for other in heights[1:]):
        labels, heights = [f"{name}, any IoU"], heights[:1]
    x = of_panel[0].x.tolist()
    return [
        Series(label, x, y.tolist(), colour, dashed)
        for colour, (label, y) in enumerate(zip(labels, heights, strict=True))
    ]


def limits(own: Float[np.ndarray, " n"], default: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Ends of an axis on which both are seen, but for what goes far beyond the default's range."""
    finite = default[np.isfinite(default)]
    middle, half = (finite.max() + finite.min()) / 2, _HIGHEST * max(np.ptp(finite) / 2, 1e-6)
    both = np.concatenate([finite, own[np.isfinite(own)]]).clip(middle - half, middle + half)
    room = 0.05 * np.ptp(both)
    return float(both.min() - room), float(both.max() + room)
