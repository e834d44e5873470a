"""What a suite has measured so far, kept row by row: a measurement that is cut short leaves what it has."""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping

from cse_jax import workdir


class Report:
    """Tables by title, each a list of rows; lines that go before them.

    Args:
      about: what the figures are of: suite, size, device, versions.
      print_line: prints a line of progress.
      path: also writes everything there, as JSON.
    """

    def __init__(
        self, about: Mapping[str, str], print_line: Callable[[str], None], path: pathlib.Path | None = None
    ) -> None:
        self.tables: dict[str, list[dict]] = {}
        self.notes: list[str] = []
        self.planned: dict[str, list[str]] = {}  # rows of each table, by what they are of
        self._about, self._print, self._path = dict(about), print_line, path

    def say(self, text: str) -> None:
        """Prints a line of progress."""
        self._print(text)

    def note(self, text: str) -> None:
        """Says something that belongs to the figures."""
        self._print(text)
        self.notes.append(text)
        self._write()

    def plan(self, title: str, rows: Iterable[str]) -> None:
        """Says of what a table's rows will be, in their order, so that one that is cut short tells what it lacks."""
        self.planned[title] = list(rows)
        self._write()

    def row(self, title: str, row: dict) -> None:
        """Adds a row to a table."""
        self.tables.setdefault(title, []).append(row)
        self._write()

    def _write(self) -> None:
        if self._path:
            found = {"planned": self.planned, "notes": self.notes, "tables": self.tables}
            workdir.write_whole(self._path, json.dumps(self._about | found, indent=1))


def shown(value: object) -> str:
    """A figure as tables show it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown(tables: Mapping[str, list[dict]]) -> str:
    """The tables as Markdown."""
    parts = []
    for title, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines = [columns, ["---"] * len(columns), *([_cell(row.get(c)) for c in columns] for row in rows)]
        parts.append(f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _cell(value: object) -> str:
    return " ".join(shown(value).replace("|", "\\|").split())
