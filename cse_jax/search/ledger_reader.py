"""Reads a ledger that may be in use and is not changed: what became of the candidates, and what was trained."""

import dataclasses
import itertools
import json
import pathlib
import re
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from cse_jax.errors import InputError
from cse_jax.screening.candidate import STAGES
from cse_jax.search.ledger import CANDIDATES, FORMAT, GENERATIONS, HALL_OF_FAME, TRAININGS, format_of
from cse_jax.search.ledger_file import ERRORS, LedgerError, Rows, damaged, failure, open_to_read, refuse_used

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)(?!\w)")
_SAME = "same gradient as "
SCORES = STAGES[4:]  # stages that give a score
RECORDED = STAGES[2:]  # the last stage of a candidate that a ledger has
_STAGE = "case stage " + " ".join(f"when '{name}' then {k}" for k, name in enumerate(RECORDED)) + " end"
_SCORE = "case stage " + " ".join(f"when '{name}' then {name}" for name in SCORES) + " end"


Generations = dict[str, list[tuple[dict[str, int], dict[str, Any]]]]  # counts and results of each, by branch


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


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which candidates to list; each field narrows, and None or empty is any.

    Attributes:
      branch: whose candidates.
      stage: the last that they passed.
      reason: a part of why they went no further.
      formula: a part of the formula, in which ``?`` is any text.
      max_nodes: largest formula.
      at_least: lowest score by stage.
    """

    branch: str | None = None
    stage: str | None = None
    reason: str = ""
    formula: str = ""
    max_nodes: int | None = None
    at_least: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses stages and scores that there are not."""
        if self.stage is not None and self.stage not in RECORDED:
            raise InputError(f"no candidate of a ledger stops at stage {self.stage!r}; use {', '.join(RECORDED)}")
        unknown = [name for name in self.at_least if name not in SCORES]
        if unknown:
            raise InputError(f"candidates have no score {unknown[0]!r}; use {', '.join(SCORES)}")

    def conditions(self) -> dict[str, str | float]:
        """Conditions of SQL with a value each."""
        exact = {"branch = ?": self.branch, "stage = ?": self.stage, "nodes <= ?": self.max_nodes}
        found: dict[str, str | float] = {where: value for where, value in exact.items() if value is not None}
        if self.reason:
            found["reason like ? escape '!'"] = _pattern(self.reason)
        if self.formula:
            found["formula like ? escape '!'"] = _pattern(self.formula, wild="?")
        return found | {f"{name} >= ?": least for name, least in self.at_least.items()}


def _pattern(text: str, wild: str = "") -> str:
    """A pattern of SQL for what contains a text; ``wild`` in it is any text."""
    safe = re.sub("[!%_]", r"!\g<0>", text)
    return f"%{safe.replace(wild, '%') if wild else safe}%"


def read_hall_of_fame(path: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The trained candidates of each branch, best first, from a ledger that may be in use, or may only be read.

    Raises:
      LedgerError: there is no readable ledger, or it is damaged.
    """
    with LedgerReader(path) as ledger:
        return ledger.hall_of_fame()


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
                refuse_used(path)
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
        return self._as_written(table, self.rows(query, *values))

    def _as_written(self, table: Rows, rows: list[sqlite3.Row]) -> list[dict[str, Any]]:
        """Whole rows of a table, checked; those of the format before have nothing that shows damage."""
        return table.verified(self.path, rows) if self._format == FORMAT else [dict(row) for row in rows]

    def hall_of_fame(self) -> dict[str, list[dict[str, Any]]]:
        """The trained candidates of each branch, best first.

        Raises:
          LedgerError: one is missing or damaged.
        """
        self.rows("begin")  # so that both queries see the same
        places = self.rows("select * from hall_of_fame order by branch = 'box', branch, rank")
        found = self.rows(
            "select found.* from hall_of_fame as place left join candidates as found "
            "on found.branch = place.branch and found.authors = place.authors and found.stage = 'proxy' "
            "order by place.branch = 'box', place.branch, place.rank"
        )
        self.rows("commit")
        ranks = {branch: itertools.count() for branch in dict.fromkeys(place["branch"] for place in places)}
        for place, row in zip(places, found, strict=False):
            if row["branch"] is None or place["rank"] != next(ranks[place["branch"]]):
                raise damaged(self.path, f"what {place['branch']} has at rank {place['rank']} is missing")
        self._as_written(HALL_OF_FAME, places)
        fame: dict[str, list[dict[str, Any]]] = {branch: [] for branch in ranks}
        for row in self._as_written(CANDIDATES, found):
            for field, kind in (("authors", str), ("generation", int), ("weight", float), ("proxy", float)):
                if not isinstance(row[field], kind):
                    raise damaged(self.path, f"{field} of a candidate is {row[field]!r}")
            fame[row["branch"]].append(row)
        return fame

    def generations(self) -> Generations:
        """Counts and result of each finished generation, by branch."""
        found: Generations = {}
        for row in self._whole(GENERATIONS, "select * from generations order by rowid"):
            found.setdefault(row["branch"], []).append((json.loads(row["counts"]), json.loads(row["result"])))
        return found

    def reasons(self) -> list[Reason]:
        """Why candidates went no further, the most frequent kind first."""
        query = (
            "select branch, stage, kind_of_reason(reason) as kind, sum(number) as count from "
            "(select branch, stage, case when substr(reason, 1, ?) = ? then ? else reason end as reason, "
            "count(*) as number from candidates where reason != '' group by 1, 2, 3) "
            "group by 1, 2, 3 order by count desc"
        )
        return [Reason(*row) for row in self.rows(query, len(_SAME), _SAME, _SAME)]

    def candidates(self, wanted: Filter = Filter(), *, limit: int) -> list[dict[str, Any]]:
        """The first candidates that a filter lets through: those that came furthest, then by the score there.

        Raises:
          InputError: no generation of the wanted branch is finished.
        """
        branches = [row[0] for row in self.rows("select distinct branch from generations")]
        if wanted.branch is not None and wanted.branch not in branches:
            known = ", ".join(map(repr, branches)) or "none"
            raise InputError(f"the ledger has no generation of branch {wanted.branch!r}; it has {known}")
        conditions = wanted.conditions()
        query = (
            f"select * from candidates where {' and '.join(['true', *conditions])} "
            f"order by {_STAGE} desc, {_SCORE} desc, branch, generation, number limit {limit}"
        )
        return self._whole(CANDIDATES, query, *conditions.values())

    def candidate(
        self, branch: str, *, place: tuple[int, int] | None = None, authors: str = ""
    ) -> dict[str, Any] | None:
        """A candidate by its generation and number, or by its formula in the authors' notation; None without one."""
        by, values = ("generation = ? and number = ?", place) if place else ("authors = ?", (authors,))
        query = f"select * from candidates where branch = ? and {by} limit 1"
        rows = self._whole(CANDIDATES, query, branch, *values)
        return rows[0] if rows else None

    def trainings(self, *purposes: str) -> list[dict[str, Any]]:
        """The recorded trainings of these purposes, in the order in which they ended."""
        marks = ", ".join("?" * len(purposes))
        query = f"select * from trainings where purpose in ({marks}) order by rowid"
        return self._whole(TRAININGS, query, *purposes)
