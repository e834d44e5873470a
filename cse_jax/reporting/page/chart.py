"""Line charts and heat maps as inline SVG.

Written by hand: matplotlib turns texts into outlines, which no screen reader reads, fixes colours for light or dark,
needs ten times the room, and is no dependency.  Here a style sheet sets colours, and each figure has a title, a
description and a legend.
"""

import base64
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from cse_jax.reporting.page.markup import Markup, tag

_WIDTH, _HEIGHT = 400.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 12.0, 12.0, 42.0
_TICKS = 5
_ROOM = 0.05  # of an axis, between its ends and what is drawn
COLOURS = 6  # that the style sheet has
_ABOVE, _BELOW = (224, 102, 10), (22, 110, 214)  # seen on light and on dark, and by the colour-blind


@dataclasses.dataclass(frozen=True)
class Series:
    """A line or a set of marks.

    Attributes:
      label: in the legend; empty for none.
      x, y: of its points; the line has a gap where ``y`` is not finite.
      colour: its number in the style sheet.
      dashed: whether the line is.
      marks: whether the points are marked instead of joined.
      names: of the points, shown where they are pointed at.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dashed: bool = False
    marks: bool = False
    names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class _Axis:
    """The ends of an axis in its own unit and in that of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
) -> Markup:
    """A figure: the series over common axes, with a legend; what lies beyond the limits is cut off.

    Args:
      title: what it shows, for the caption and for screen readers.
      series: what to draw, the last in front.
      x_label, y_label: of the axes, with units.
      y_limits: of the vertical axis; as far as the series reach by default.
    """
    figure = drawing(title, series, x_label=x_label, y_label=y_label, y_limits=y_limits)
    return tag("figure", tag("figcaption", title), figure, _legend(series))


def drawing(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
) -> Markup:
    """What ``chart`` draws, without caption and legend."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    x = _Axis(*_ends([v for s in series for v in s.x]), _LEFT, right)
    y = _Axis(*(y_limits or _ends([v for s in series for v in s.y])), bottom, _TOP)
    inside = {"x": _LEFT, "y": _TOP, "width": right - _LEFT, "height": bottom - _TOP}
    window = tag(
        "svg",
        *(mark for s in series for mark in (_marks(s, x, y) if s.marks else _path(s, x, y))),
        **inside,
        viewBox=f"{_LEFT:g} {_TOP:g} {right - _LEFT:g} {bottom - _TOP:g}",
    )
    return tag(
        "svg",
        tag("title", title),
        *_grid(x, y, whole=all(float(v).is_integer() for s in series for v in s.x)),
        tag("rect", **inside, class_="frame"),
        window,
        tag("text", x_label, x=f"{(_LEFT + right) / 2:g}", y=f"{_HEIGHT - 6:g}", text_anchor="middle"),
        tag("text", y_label, transform=f"translate(13 {(_TOP + bottom) / 2:g}) rotate(-90)", text_anchor="middle"),
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        role="img",
        aria_label=f"{title}. Horizontal: {x_label}. Vertical: {y_label}. {_spoken(series)}",
    )


def heat_map(
    title: str,
    values: Float[np.ndarray, "r p"],
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    x_label: str,
    y_label: str,
    largest: float,
    legend: tuple[str, str],
) -> Markup:
    """A figure of signed numbers: one colour above 0 and another below, the fainter the nearer.

    Args:
      title: what it shows.
      values: row by row, the lowest row first; those that are not finite are left blank.
      x, y: what the outermost columns and rows stand for.
      x_label, y_label: of the axes, with units.
      largest: what has the full colour; beyond it nothing changes.
      legend: of numbers above 0 and below.
    """
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    across, up = _Axis(*x, _LEFT, right), _Axis(*y, bottom, _TOP)
    place = {"x": _LEFT, "y": _TOP, "width": right - _LEFT, "height": bottom - _TOP}
    drawing = tag(
        "svg",
        tag("title", title),
        tag("image", **place, href=_picture(values / largest), preserveAspectRatio="none", class_="heat"),
        *_grid(across, up, whole=False),
        tag("rect", **place, class_="frame"),
        tag("text", x_label, x=f"{(_LEFT + right) / 2:g}", y=f"{_HEIGHT - 6:g}", text_anchor="middle"),
        tag("text", y_label, transform=f"translate(13 {(_TOP + bottom) / 2:g}) rotate(-90)", text_anchor="middle"),
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        role="img",
        aria_label=f"{title}. Horizontal: {x_label}. Vertical: {y_label}. {'; '.join(legend)}.",
    )
    swatches = [
        tag("svg", tag("rect", width="24", height="12", fill=f"rgb{colour}"), viewBox="0 0 24 12", class_="swatch")
        for colour in (_ABOVE, _BELOW)
    ]
    items = [tag("li", swatch, " ", said) for swatch, said in zip(swatches, legend, strict=True)]
    return tag("figure", tag("figcaption", title), drawing, tag("ul", *items, class_="legend"))


def _picture(shares: Float[np.ndarray, "r p"]) -> str:
    """Numbers from -1 to 1 as a picture in an address, transparent at 0, so that it fits any background."""
    rows = np.nan_to_num(shares[::-1], nan=0.0, posinf=0.0, neginf=0.0).clip(-1.0, 1.0)
    colours = np.where((rows > 0.0)[..., None], _ABOVE, _BELOW)
    pixels = np.concatenate([colours, np.rint(255.0 * abs(rows))[..., None]], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def stair(x: Sequence[float], y: Sequence[float], end: float) -> tuple[list[float], list[float]]:
    """The points of a line that keeps each height until the next place, and the last one until the end."""
    across = [place for place in x for _ in range(2)][1:] + [end]
    return across, [height for height in y for _ in range(2)]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = _ROOM * (high - low) or max(abs(high), 1.0) * _ROOM
    return low - room, high + room


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers between two ends, about as many as fit; ``whole`` ones if wanted."""
    rough = max((high - low) / _TICKS, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with labels of as many digits as tell them apart, four at least."""
    shown = ([f"{value:.{digits}g}" for value in values] for digits in range(4, 18))
    labels = next(each for each in shown if len(set(each)) == len(set(values)))
    return list(zip(values, labels, strict=True))


def _grid(x: _Axis, y: _Axis, *, whole: bool) -> list[Markup]:
    found = []
    for value, label in _labelled(ticks(x.low, x.high, whole=whole)):
        at = f"{x.place(value):.1f}"
        found.append(tag("line", x1=at, x2=at, y1=f"{y.start:g}", y2=f"{y.end:g}", class_="grid"))
        found.append(tag("text", label, x=at, y=f"{y.start + 15:g}", text_anchor="middle"))
    for value, label in _labelled(ticks(y.low, y.high)):
        at = f"{y.place(value):.1f}"
        found.append(tag("line", y1=at, y2=at, x1=f"{x.start:g}", x2=f"{x.end:g}", class_="grid"))
        found.append(tag("text", label, x=f"{x.start - 5:g}", y=at, dy="0.35em", text_anchor="end"))
    return found


def _path(series: Series, x: _Axis, y: _Axis) -> list[Markup]:
    steps, command = [], "M"
    for across, up in zip(series.x, series.y, strict=True):
        if not math.isfinite(up):
            command = "M"
            continue
        up = min(max(up, y.low - (y.high - y.low)), y.high + (y.high - y.low))  # no number too long for a drawing
        steps.append(f"{command}{x.place(across):.1f} {y.place(up):.1f}")
        command = "L"
    return [tag("path", d=" ".join(steps), class_=_class(series))] if steps else []


def _marks(series: Series, x: _Axis, y: _Axis) -> list[Markup]:
    names = series.names or [series.label] * len(series.x)
    return [
        tag("circle", tag("title", name), cx=f"{x.place(a):.1f}", cy=f"{y.place(b):.1f}", r="4", class_=_class(series))
        for a, b, name in zip(series.x, series.y, names, strict=True)
        if math.isfinite(b)
    ]


def _class(series: Series) -> str:
    kind = "mark" if series.marks else "curve"
    return f"{kind} c{series.colour % COLOURS}" + (" dashed" if series.dashed else "")


def _spoken(series: Sequence[Series]) -> str:
    return "; ".join(s.label for s in series if s.label)


def swatch(series: Series) -> Markup:
    """A mark, or a piece of the line, of 24 by 12."""
    if series.marks:
        return tag("circle", cx="12", cy="6", r="4", class_=_class(series))
    return tag("path", d="M1 6 L23 6", class_=_class(series))


def _legend(series: Sequence[Series]) -> Markup:
    items = []
    for s in series:
        if s.label:
            sample = tag("svg", swatch(s), viewBox="0 0 24 12", class_="swatch", aria_hidden="true")
            items.append(tag("li", sample, " ", s.label))
    return tag("ul", *items, class_="legend")
