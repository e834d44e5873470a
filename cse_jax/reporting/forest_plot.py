"""Differences with their intervals, one above the other, as an SVG file that stands alone."""

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from cse_jax.reporting.page.chart import ticks
from cse_jax.reporting.page.markup import Markup, tag
from cse_jax.workdir import write_whole

_LABELS, _WIDTH, _LINE, _MARGIN = 250.0, 720.0, 22.0, 14.0
_LONGEST = 38  # characters of a label
_STYLE = Markup(
    "svg{font:12px sans-serif;background:#fff;fill:#222}line{stroke:#555}.grid{stroke:#ddd}.zero{stroke:#222}"
    ".shown line{stroke:#06c;stroke-width:2}.shown circle{fill:#06c}"
)


class Interval(NamedTuple):
    """A line of the plot.

    Attributes:
      label: what differs.
      difference, low, high: and by how much; NaN for what was not compared.
    """

    label: str
    difference: float
    low: float
    high: float


def save(path: pathlib.Path, intervals: Sequence[Interval], *, title: str, axis: str) -> None:
    """Writes the file; intervals that exclude 0 stand out.

    Args:
      path: of the file.
      intervals: from top to bottom.
      title: what is compared.
      axis: what the differences are, with their unit.
    """
    bottom = 2.0 * _LINE + _LINE * len(intervals)
    ends = [value for line in intervals for value in line[1:] if math.isfinite(value)] or [-1.0, 1.0]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.05 * (high - low) or 1.0
    low, high = low - room, high + room

    def across(value: float) -> str:
        return f"{_LABELS + (value - low) / (high - low) * (_WIDTH - _LABELS - _MARGIN):.1f}"

    grid = [
        part
        for value in ticks(low, high)
        for part in (
            _upright(across(value), bottom, "grid"),
            tag("text", f"{value:+.3g}" if value else "0", x=across(value), y=bottom + 16.0, text_anchor="middle"),
        )
    ]
    drawing = tag(
        "svg",
        tag("title", title),
        tag("style", _STYLE),
        tag("text", title, x=_MARGIN, y=18.0, font_weight="bold"),
        *grid,
        _upright(across(0.0), bottom, "zero"),
        *(_line(line, 2.0 * _LINE + _LINE * k, across) for k, line in enumerate(intervals)),
        tag("text", axis, x=f"{(_LABELS + _WIDTH) / 2:g}", y=bottom + 36.0, text_anchor="middle"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH:g} {bottom + 46.0:g}",
        role="img",
    )
    write_whole(path, f"{drawing}\n")


def _upright(x: str, bottom: float, kind: str) -> Markup:
    return tag("line", x1=x, x2=x, y1=f"{1.4 * _LINE:g}", y2=f"{bottom:g}", class_=kind)


def _line(line: Interval, y: float, across) -> Markup:
    label = line.label if len(line.label) <= _LONGEST else f"{line.label[: _LONGEST - 1]}…"
    parts = [tag("title", line.label), tag("text", label, x=_MARGIN, y=f"{y + 4.0:g}")]
    if math.isfinite(line.low):
        parts.append(tag("line", x1=across(line.low), x2=across(line.high), y1=f"{y:g}", y2=f"{y:g}"))
    if math.isfinite(line.difference):
        parts.append(tag("circle", cx=across(line.difference), cy=f"{y:g}", r="4"))
    shown = line.low > 0.0 or line.high < 0.0
    return tag("g", *parts, class_="shown" if shown else None)
