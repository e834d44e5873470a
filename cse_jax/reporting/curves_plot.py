"""Curves with their legend, as an SVG file that stands alone."""

import pathlib
from collections.abc import Sequence

from cse_jax.reporting.page.chart import Series, drawing, swatch
from cse_jax.reporting.page.markup import Markup, tag
from cse_jax.workdir import write_whole

_WIDTH, _HEIGHT, _TITLE, _LINE, _MARGIN = 640.0, 400.0, 28.0, 20.0, 14.0
_STYLE = Markup(
    "svg{font:11px sans-serif;fill:#222}.paper{fill:#fff}.grid{stroke:#ddd;stroke-width:.6}"
    ".frame{fill:none;stroke:#999}.curve{fill:none;stroke-width:2}.legend{font-size:12px}"
    ".dashed{stroke-dasharray:5 4;stroke-width:1;opacity:.6}"
    + "".join(
        f".curve.c{k}{{stroke:{colour}}}.mark.c{k}{{fill:{colour}}}"
        for k, colour in enumerate(("#0b62c4", "#c2410c", "#15803d", "#7e22ce", "#4b5563", "#a16207"))
    )
)


def save(path: pathlib.Path, series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> None:
    """Writes the file.

    Args:
      path: of the file.
      series: what to draw, the last in front.
      title: what it shows.
      x_label, y_label: of the axes, with units.
    """
    named = [each for each in series if each.label]
    height = _TITLE + _HEIGHT + _LINE * (len(named) + 1)
    figure = tag(
        "svg",
        drawing(title, series, x_label=x_label, y_label=y_label),
        **{"x": 0, "y": _TITLE, "width": _WIDTH, "height": _HEIGHT},
    )
    legend = []
    for k, each in enumerate(named):
        y = _TITLE + _HEIGHT + _LINE * (k + 1)
        sample = tag("g", swatch(each), transform=f"translate({_MARGIN:g} {y - 10:g})")
        legend += [sample, tag("text", each.label, x=_MARGIN + 34, y=y, class_="legend")]
    whole = tag(
        "svg",
        tag("title", title),
        tag("style", _STYLE),
        tag("rect", width=_WIDTH, height=height, class_="paper"),
        tag("text", title, x=_MARGIN, y=18, font_weight="bold"),
        figure,
        *legend,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH:g} {height:g}",
    )
    write_whole(path, f"{whole}\n")
