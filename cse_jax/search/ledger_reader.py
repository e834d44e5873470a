"""Reads a ledger that may be in use and is not changed: what became of the candidates, and what was trained."""

import json
import pathlib
import re
import sqlite3
from typing import Any, NamedTuple

from cse_jax.search.ledger import FORMAT, GENERATIONS, TRAININGS, format_of
from cse_jax.search.ledger_file import ERRORS, LedgerError, Rows, failure, open_to_read

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)(?!\w)")
_SAME = "same gradient as "


class Reason(NamedTuple):
    """Candidates of a branch that went no further for one kind of reason.

    Attributes:
      branch: of the candidates.
      stage: the last that they passed.
      kind: the reason, as ``kind_of_reason`` has it.
      count: how many.
    """

    branch: str
    stage: str
    kind: str
    count: int


def kind_of_reason(reason: str) -> str:
    """A reason without what differs between candidates: ``n`` for each number, no formula."""
    if reason.startswith(_SAME):
        return f"{_SAME}another loss"
    return _NUMBER.sub("n", reason)


class LedgerReader:
    """A ledger opened for reading; use as a context manager."""

    def __init__(self, path: pathlib.Path) -> None:
        """Opens a ledger.

        Raises:
          LedgerError: there is none, it can't be read, or another version wrote it.
        """
        self.path, self._db = path, open_to_read(path)
        try:
            self._format = format_of(self._db, path)
            if self._format is None:
                raise LedgerError(f"the ledger {path} is empty; start the search, or name the folder of another")
        except (*ERRORS, LedgerError) as error:
            self._db.close()
            raise failure(path, "read", error) from error
        self._db.row_factory = sqlite3.Row
        self._db.create_function("kind_of_reason", 1, kind_of_reason, deterministic=True)

    def __enter__(self) -> "LedgerReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What a query finds.

        Raises:
          LedgerError: the file is damaged or no ledger.
        """
        try:
            return self._db.execute(query, values).fetchall()
        except ERRORS as error:
            raise failure(self.path, "read", error) from error

    def _whole(self, table: Rows, query: str, *values: Any) -> list[dict[str, Any]]:
        """Whole rows of a table as they were written; those of the format before have nothing that shows damage."""
        rows = self.rows(query, *values)
        return table.verified(self.path, rows) if self._format == FORMAT else [dict(row) for row in rows]

    def generations(self) -> dict[str, list[tuple[dict[str, int], dict[str, Any]]]]:
        """Counts and result of each finished generation, by branch."""
        found: dict[str, list[tuple[dict[str, int], dict[str, Any]]]] = {}
        for row in self._whole(GENERATIONS, "select * from generations order by rowid"):
            found.setdefault(row["branch"], []).append((json.loads(row["counts"]), json.loads(row["result"])))
        return found

    def reasons(self) -> list[Reason]:
        """Why candidates went no further, the most frequent kind first."""
        query = (
            "select branch, stage, kind_of_reason(reason) as kind, sum(number) as count from "
            "(select branch, stage, reason, count(*) as number from candidates where reason != '' group by 1, 2, 3) "
            "group by 1, 2, 3 order by count desc"
        )
        return [Reason(*row) for row in self.rows(query)]

    def trainings(self, *purposes: str) -> list[dict[str, Any]]:
        """The recorded trainings of these purposes, in the order in which they ended."""
        marks = ", ".join("?" * len(purposes))
        query = f"select * from trainings where purpose in ({marks}) order by rowid"
        return self._whole(TRAININGS, query, *purposes)
