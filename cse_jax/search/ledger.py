"""The search's memory, in one SQLite file: every candidate that passed the gate, training and finished generation.

All writes are transactions, so a search that is killed at any moment finds here what it had finished, and nothing
half-written.  Given the ledger, a search replays without repeating a training.
"""

import contextlib
import json
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cse_jax.errors import UserError

FORMAT = 4

_SCHEMA = """
create table if not exists meta (key text primary key, value text not null);
create table if not exists candidates (
  branch text not null, generation integer not null, number integer not null,
  formula text not null, authors text not null, flipped integer not null, nodes integer not null,
  fingerprint text not null, copies integer not null, duplicates integer not null,
  stage text not null, reason text not null,
  simulation real, probe real, overfit real, proxy real, weight real,
  curve text not null, aps text not null,
  seed integer not null, seconds real not null,
  primary key (branch, generation, number)
);
create index if not exists by_stage on candidates (branch, stage);
create table if not exists trainings (
  key text primary key, purpose text not null, cls text not null, box text not null,
  cls_weight real not null, box_weight real not null, seed integer not null, steps integer not null,
  ap real, failure text not null, metrics text not null, seconds real not null
);
create table if not exists generations (
  branch text not null, generation integer not null, counts text not null, result text not null,
  primary key (branch, generation)
);
create table if not exists hall_of_fame (
  branch text not null, rank integer not null, authors text not null, primary key (branch, rank)
);
"""

CANDIDATE_FIELDS = (
    "branch", "generation", "number", "formula", "authors", "flipped", "nodes", "fingerprint", "copies",
    "duplicates", "stage", "reason", "simulation", "probe", "overfit", "proxy", "weight",
    "curve", "aps", "seed", "seconds",
)  # fmt: skip


class LedgerError(UserError, RuntimeError):
    """A ledger that can't be used; the message says why and what to do."""


class Ledger:
    """An open ledger file; use as a context manager."""

    def __init__(self, path: pathlib.Path, *, identity: Mapping[str, Any]) -> None:
        """Opens or creates a ledger.

        Args:
          path: the SQLite file.
          identity: what the stored results depend on (config, versions); must equal what the ledger was made with.

        Raises:
          LedgerError: not writable, not a ledger, or made with another config or version.
        """
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise LedgerError(f"cannot open the ledger {path}: {error}; check that its folder is writable") from error
        try:
            self._db.row_factory = sqlite3.Row
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            refuse_other_formats(self._db, path)
            self._db.executescript(_SCHEMA)
            self._check({"format": FORMAT} | dict(identity))
        except sqlite3.Error as error:
            self._db.close()
            raise LedgerError(
                f"cannot open the ledger {path}: {error}; make room, or move the file away if it is no ledger"
            ) from error
        except LedgerError:
            self._db.close()
            raise

    def _check(self, identity: dict[str, Any]) -> None:
        flat = {key: json.dumps(value, sort_keys=True) for key, value in _flatten(identity).items()}
        stored = dict(map(tuple, self._db.execute("select key, value from meta")))
        if not self._holds_results():
            with self._writing():
                self._db.execute("delete from meta")
                self._db.executemany("insert into meta values (?, ?)", flat.items())
            return
        changed = [key for key in sorted(flat.keys() | stored.keys()) if flat.get(key) != stored.get(key)]
        if changed:
            shown = "; ".join(f"{key}: {stored.get(key, 'absent')} -> {flat.get(key, 'absent')}" for key in changed[:5])
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise LedgerError(
                f"the ledger {self.path} was made with other settings ({shown}{more}). "
                "Resume with the settings it was made with, or choose another work folder."
            )

    def _holds_results(self) -> bool:
        tables = ("trainings", "generations")
        return any(self._db.execute(f"select exists (select 1 from {table})").fetchone()[0] for table in tables)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self._db.execute("begin immediate")
            yield
            self._db.execute("commit")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("rollback")
            raise LedgerError(
                f"cannot write to the ledger {self.path}: {error}. Nothing recorded so far is lost; make room or "
                "restore access and run the same command again."
            ) from error

    def training(self, key: str) -> dict[str, Any] | None:
        """The recorded training of this key, if any."""
        row = self._db.execute("select * from trainings where key = ?", (key,)).fetchone()
        return dict(row) | {"metrics": json.loads(row["metrics"])} if row else None

    def record_training(self, row: Mapping[str, Any]) -> None:
        """Stores a finished or failed training."""
        row = dict(row) | {"metrics": json.dumps(row["metrics"])}
        with self._writing():
            self._db.execute(
                f"insert or replace into trainings ({', '.join(row)}) values ({', '.join('?' * len(row))})",
                tuple(row.values()),
            )

    def generation(self, branch: str, generation: int) -> tuple[dict[str, int], Any] | None:
        """Counts and result of a finished generation, if it is finished."""
        row = self._db.execute(
            "select counts, result from generations where branch = ? and generation = ?", (branch, generation)
        ).fetchone()
        return (json.loads(row[0]), json.loads(row[1])) if row else None

    def record_generation(
        self,
        branch: str,
        generation: int,
        candidates: Iterable[Mapping[str, Any]],
        counts: Mapping[str, int],
        result: Any,
    ) -> None:
        """Stores a finished generation and all of its candidates in one transaction."""
        marks = ", ".join("?" * len(CANDIDATE_FIELDS))
        with self._writing():
            self._db.executemany(
                f"insert into candidates ({', '.join(CANDIDATE_FIELDS)}) values ({marks})",
                (tuple(candidate[field] for field in CANDIDATE_FIELDS) for candidate in candidates),
            )
            self._db.execute(
                "insert into generations values (?, ?, ?, ?)",
                (branch, generation, json.dumps(counts), json.dumps(result)),
            )

    def record_hall_of_fame(self, branch: str, formulas: Sequence[str]) -> None:
        """Stores the order of a branch's hall of fame, best first, in the authors' notation."""
        with self._writing():
            self._db.execute("delete from hall_of_fame where branch = ?", (branch,))
            rows = [(branch, rank, authors) for rank, authors in enumerate(formulas)]
            self._db.executemany("insert into hall_of_fame values (?, ?, ?)", rows)


def refuse_other_formats(db: sqlite3.Connection, path: pathlib.Path) -> None:
    """Refuses a ledger whose tables another version has made.

    Raises:
      LedgerError: its format is not ``FORMAT``.
    """
    tables = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
    if "meta" not in tables:
        return
    row = db.execute("select value from meta where key = 'format'").fetchone()
    if row is not None and row[0] != str(FORMAT):
        raise LedgerError(
            f"the ledger {path} was made by another version of cse_jax (its format is {row[0]}, this version reads "
            f"{FORMAT}). Finish the search with that version, or choose another work folder."
        )


def read_hall_of_fame(path: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The trained candidates of each branch, best first, from a ledger that may be in use.

    Raises:
      LedgerError: there is no readable ledger.
    """
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}; is that the folder of a search?")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            refuse_other_formats(db, path)
            rows = db.execute(
                "select candidates.* from candidates join hall_of_fame using (branch, authors) where stage = 'proxy' "
                "order by branch = 'box', rank"
            ).fetchall()
    except sqlite3.Error as error:
        raise LedgerError(f"cannot read the ledger {path}: {error}") from error
    fame: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for field, kind in (("authors", str), ("generation", int), ("weight", float), ("proxy", float)):
            if not isinstance(row[field], kind):
                raise LedgerError(f"the ledger {path} is damaged: {field} of a candidate is {row[field]!r}")
        fame.setdefault(row["branch"], []).append(dict(row))
    return fame


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
