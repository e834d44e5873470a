"""What a confirmation leaves behind to be read: ``confirm.json``, ``confirm.md`` and a table on the terminal."""

import json
import pathlib
from typing import Any

from rich.console import Console

from cse_jax.reporting.final_table import EXPLANATION, markdown_rows, rows_as_data, terminal_table
from cse_jax.search.conclusion import conclusion, scope
from cse_jax.search.confirmation import Confirmation
from cse_jax.workdir import RESULT_FORMAT, write_whole


def confirmation_dict(found: Confirmation, *, about: dict[str, Any]) -> dict[str, Any]:
    """The confirmation as plain data; ``about`` holds the search's folder, config, versions and device."""
    return {
        "format": RESULT_FORMAT,
        "seeds": list(found.seeds),
        "table": rows_as_data(found.table),
        "conclusion": conclusion(found.table),
        "scope": scope(found.table),
    } | about


def write(folder: pathlib.Path, data: dict[str, Any]) -> None:
    """Writes ``confirm.json`` and ``confirm.md``, each complete or not at all."""
    for name, text in (("confirm.json", json.dumps(data, indent=2)), ("confirm.md", markdown(data))):
        write_whole(folder / name, text)


def markdown(data: dict[str, Any]) -> str:
    """The report."""
    seeds = data["seeds"]
    return "\n".join(
        [
            f"# Confirmation of the search in {data['search']}",
            "",
            data["conclusion"],
            "",
            data["scope"],
            "",
            f"## Test split, {len(seeds)} seeds from {seeds[0]} on",
            "",
            EXPLANATION,
            "",
            *markdown_rows(data["table"]),
            "",
            "No selection and no final table has used these seeds.",
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


def show(console: Console, found: Confirmation) -> None:
    """Prints the table."""
    console.print(terminal_table(found.table))
