"""What a comparison of pairs leaves behind: ``compare.json``, ``compare.md``, ``compare.csv`` and ``compare.svg``."""

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cse_jax.export.escaping import markdown_name
from cse_jax.reporting import confirmation_report, forest_plot
from cse_jax.reporting.final_table import cells_of, comparison_as_data, markdown_table
from cse_jax.reporting.forest_plot import Interval
from cse_jax.search.comparison import gains
from cse_jax.search.confirmation import Confirmation
from cse_jax.workdir import write_whole

_COLUMNS = ("losses", "cls", "cls_weight", "box", "box_weight", "ap", "std", "difference", "low", "high", "verdict")


def write(
    folder: pathlib.Path, found: Confirmation, *, about: dict[str, Any], one_start: bool = False
) -> dict[str, Any]:
    """Writes the four files; each is complete or not there.

    Args:
      folder: of the comparison.
      found: the table.
      about: title, split, a note on the seeds, config, versions and device.
      one_start: whether all trainings began with the same trained features.

    Returns:
      What is in the JSON file.
    """
    data = confirmation_report.confirmation_dict(found, about=about, one_start=one_start, subject="The last pair")
    data["gains"] = [gain and comparison_as_data(gain) for gain in gains(found.table)]
    confirmation_report.write(folder, data, name="compare", further=_beside_default(data))
    write_whole(folder / "compare.csv", _csv(data))
    lines = [Interval(row["name"], *_ends(gain)) for row, gain in _pairs(data) if gain]
    title = f"{about['title']}: difference to {data['table'][0]['name']}"
    seeds = len(data["seeds"])
    shown = f"{seeds} seeds, 95 % intervals that hold together" if seeds > 1 else "one seed, noise unknown"
    axis = f"AP, {about['split']} split, {shown}"
    forest_plot.save(folder / "compare.svg", lines, title=title, axis=axis)
    return data


def _beside_default(data: Mapping[str, Any]) -> list[str]:
    """The lines on each row's difference to the first one."""
    cells = [(markdown_name(row["name"]), *cells_of(row | {"against": gain})[1:5]) for row, gain in _pairs(data)]
    return [
        f"## Each pair beside {markdown_name(data['table'][0]['name'])}",
        "",
        "A difference is that of the row to the first one, paired by seed; the intervals hold together.",
        "",
        *markdown_table(("losses", "AP", "difference", "95 % interval", "verdict"), cells),
        "",
        "![Each pair's difference to the default, with intervals](compare.svg)",
        "",
    ]


def _pairs(data: Mapping[str, Any]) -> Sequence[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The rows with their gains."""
    return list(zip(data["table"], data["gains"], strict=True))


def _ends(gain: Mapping[str, Any]) -> tuple[float, ...]:
    values = gain["difference"], *gain["interval"]
    return tuple(math.nan if value is None else value for value in values)


def _csv(data: Mapping[str, Any]) -> str:
    """A line for each row; numbers that are not known are empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_COLUMNS, *(f"seed_{seed}" for seed in data["seeds"])])
    for row, gain in _pairs(data):
        losses = [row[part][key] for part in ("cls", "box") for key in ("text", "weight")]
        beside = [gain["difference"], *gain["interval"], gain["verdict"]] if gain else [None] * 4
        table.writerow([row["name"], *losses, row["mean"], row["std"], *beside, *row["ap"]])
    return text.getvalue()
