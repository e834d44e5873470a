"""What a suite has measured so far, kept row by row: a measurement that is cut short leaves what it has."""

import json
import pathlib
from collections.abc import Callable, Mapping


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
        self._about, self._print, self._path = dict(about), print_line, path

    def say(self, text: str) -> None:
        """Prints a line of progress."""
        self._print(text)

    def note(self, text: str) -> None:
        """Says something that belongs to the figures."""
        self._print(text)
        self.notes.append(text)
        self._write()

    def row(self, title: str, row: dict) -> None:
        """Adds a row to a table."""
        self.tables.setdefault(title, []).append(row)
        self._write()

    def _write(self) -> None:
        if self._path:
            text = json.dumps(self._about | {"notes": self.notes, "tables": self.tables}, indent=1)
            self._path.write_text(text)


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
        lines = [columns, ["---"] * len(columns), *([shown(row.get(c)) for c in columns] for row in rows)]
        parts.append(f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"
