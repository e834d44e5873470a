"""What a confirmation leaves behind to be read: ``confirm.json``, ``confirm.md`` and a table on the terminal."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from cse_jax.export import escaping
from cse_jax.reporting.final_table import (
    EXPLANATION,
    markdown_rows,
    markdown_table,
    number,
    rows_as_data,
    terminal_table,
)
from cse_jax.search.conclusion import conclusion, scope
from cse_jax.search.confirmation import Confirmation
from cse_jax.workdir import RESULT_FORMAT, write_whole


def confirmation_dict(
    found: Confirmation,
    *,
    about: dict[str, Any],
    one_start: bool = False,
    image_errors: Sequence[float] | None = None,
    subject: str = "The discovered loss",
) -> dict[str, Any]:
    """The confirmation as plain data.

    Args:
      found: the confirmation.
      about: title, split, a note on the seeds, config, versions and device.
      one_start: whether all trainings began with the same trained features.
      subject: what the pair is, as a sentence begins.
      image_errors: of each row, the standard error over images of the pair's difference to it, in AP; NaN if unknown.
    """
    errors = image_errors or [math.nan] * len(found.table)
    rows = [row | {"image_error": number(e)} for row, e in zip(rows_as_data(found.table), errors, strict=True)]
    return {
        "format": RESULT_FORMAT,
        "seeds": list(found.seeds),
        "table": rows,
        "conclusion": conclusion(found.table, subject=subject),
        "scope": scope(found.table, one_start=one_start),
    } | about


def write(folder: pathlib.Path, data: dict[str, Any], *, name: str = "confirm", further: Sequence[str] = ()) -> None:
    """Writes a JSON and a Markdown file of a name, each complete or not at all; ``further`` as of ``markdown``."""
    write_whole(folder / f"{name}.json", json.dumps(data, indent=2))
    write_whole(folder / f"{name}.md", markdown(data, further))


def markdown(data: dict[str, Any], further: Sequence[str] = ()) -> str:
    """The report, with further lines before the note on the seeds."""
    seeds = data["seeds"]
    return "\n".join(
        [
            f"# {escaping.markdown(data['title'])}",
            "",
            escaping.markdown_name(data["conclusion"]),
            "",
            data["scope"],
            "",
            f"## {data['split'].capitalize()} split, {len(seeds)} seeds from {seeds[0]} on",
            "",
            EXPLANATION,
            "",
            *markdown_rows(data["table"]),
            "",
            *_over_images(data["table"]),
            *further,
            data["note"],
            "",
            "## How it was run",
            "",
            f"- device: {data['device']}",
            *(f"- {name} {version}" for name, version in data["versions"].items()),
            "",
            "```json",
            json.dumps(data["config"], indent=2),
            "```",
        ]
    )


def _over_images(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines on what the choice of test images adds to the noise of the trainings."""
    known = [row for row in rows if row["against"] and row["image_error"] is not None]
    if not known:
        return []
    cells = [
        (escaping.markdown_name(row["name"]), _error(row["against"]["standard_error"]), _error(row["image_error"]))
        for row in known
    ]
    return [
        "The intervals are about other seeds on the same test images. Over other images the differences vary, too. "
        "Standard errors over seeds, and over images for these very trainings (a bootstrap of the test split):",
        "",
        *markdown_table(("losses", "over seeds", "over images"), cells),
        "",
    ]


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def show(console: Console, found: Confirmation, *, split: str = "test") -> None:
    """Prints the table."""
    console.print(terminal_table(found.table, split=split))
