"""How good the losses were that the search trained, one after the other, beside the default and the controls."""

import itertools
from collections.abc import Callable, Sequence

from cse_jax.reporting.page.chart import Series, chart, stair
from cse_jax.reporting.page.facts import Facts, Trained
from cse_jax.reporting.page.markup import Markup, folded, part, table, tag

_KINDS = {"default": "default losses", "control": "default with another weight or hyper-parameters"}


def section(facts: Facts) -> Markup:
    """The section of what was trained."""
    losses = [loss for loss in facts.trained if loss.kind not in _KINDS]
    if not losses:
        said = tag("p", "No loss has come to the end of the proxy task yet.")
        return part("What was trained", said, name="trained")
    about = tag(
        "p",
        "AP on the select split at the end of the proxy task, mean over seeds. The line is the best so far. "
        "These scores selected the losses, so the best of them are partly luck; the final table is not.",
    )
    charts = tag(
        "div",
        _chart(facts, "AP against losses trained", "losses that trained whole detectors", lambda loss: loss.place),
        _chart(facts, "AP against time", "minutes of training, all together", lambda loss: loss.minutes),
        class_="charts",
    )
    rows = [
        [loss.place, f"{loss.minutes:.2f}", f"{loss.ap:.4f}", loss.kind, tag("code", loss.name)]
        for loss in facts.trained
    ]
    numbers = table(
        "Losses at the end of the proxy task", ["loss", "minutes", "AP", "kind", "classification | box"], rows
    )
    return part("What was trained", about, charts, folded("The figures as a table", numbers), name="trained")


def _chart(facts: Facts, title: str, axis: str, where: Callable[[Trained], float]) -> Markup:
    kinds = list(dict.fromkeys(loss.kind for loss in facts.trained if loss.kind not in _KINDS))
    end = max(where(loss) for loss in facts.trained)
    start = min(where(loss) for loss in facts.trained if loss.kind not in _KINDS)
    series = []
    for colour, kind in enumerate(kinds):
        losses = sorted((loss for loss in facts.trained if loss.kind == kind), key=where)
        x, y = [where(loss) for loss in losses], [loss.ap for loss in losses]
        series.append(_best_so_far(x, y, end, colour))
        series.append(Series(kind, x, y, colour, marks=True, names=[f"AP {s.ap:.4f}: {s.name}" for s in losses]))
    for kind, label in _KINDS.items():
        colour = 4 if kind == "default" else 5
        best = max((loss.ap for loss in facts.trained if loss.kind == kind), default=None)
        if best is not None:
            label = label if kind == "default" else f"best {label}"
            series.append(Series(label, [start, end], [best, best], colour, dashed=True))
    return chart(title, series, x_label=axis, y_label="AP")


def _best_so_far(x: Sequence[float], y: Sequence[float], end: float, colour: int) -> Series:
    """A stair that rises where a better loss ended, and goes on to the end."""
    return Series("", *stair(x, list(itertools.accumulate(y, max)), end), colour)
