"""The search's memory, in one SQLite file: every candidate that passed the gate, training and finished generation.

All writes are transactions, so a search that is killed at any moment finds here what it had finished, and nothing
half-written.  Given the ledger, a search replays without repeating a training.
"""

import contextlib
import json
import math
import os
import pathlib
import sqlite3
import statistics
import threading
import time
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cse_jax.search import ledger_settings
from cse_jax.search.ledger_file import (
    ERRORS,
    LedgerError,
    Rows,
    failure,
    open_to_write,
    refuse_used,
)
from cse_jax.search.trainer import ProcessLost

__all__ = ["Ledger", "LedgerError"]

FORMAT = 5
MOVED_SECONDS = 1.0  # between moves of what was written into the ledger itself
_FORMAT, _FORMER_DEVICES, _PROPOSED = "format", "former devices", "proposed"  # keys of meta that are no settings
_UPGRADED = 4  # the format before, without checksums

_SCHEMA = """
create table if not exists meta (key text primary key, value text not null);
create table if not exists candidates (
  branch text not null, generation integer not null, number integer not null,
  formula text not null, authors text not null, flipped integer not null, nodes integer not null,
  fingerprint text not null, copies integer not null, duplicates integer not null,
  stage text not null, reason text not null,
  simulation real, probe real, overfit real, proxy real, weight real,
  curve text not null, aps text not null,
  seed integer not null, seconds real not null, checksum integer,
  primary key (branch, generation, number)
);
create index if not exists finished on candidates (branch, authors) where stage = 'proxy';
create table if not exists trainings (
  key text primary key, purpose text not null, cls text not null, box text not null,
  cls_weight real not null, box_weight real not null, seed integer not null, steps integer not null,
  ap real, failure text not null, metrics text not null, seconds real not null, checksum integer
);
create table if not exists attempts (key text primary key, count integer not null);
create table if not exists generations (
  branch text not null, generation integer not null, counts text not null, result text not null, checksum integer,
  primary key (branch, generation)
);
create table if not exists hall_of_fame (
  branch text not null, rank integer not null, authors text not null, checksum integer, primary key (branch, rank)
);
"""

CANDIDATES = Rows(
    "candidates",
    ("branch", "formula", "authors", "fingerprint", "stage", "reason", "curve", "aps"),
    (
        *("generation", "number", "flipped", "nodes", "copies", "duplicates", "seed", "seconds"),
        *("simulation", "probe", "overfit", "proxy", "weight"),
    ),
)
TRAININGS = Rows(
    "trainings",
    ("key", "purpose", "cls", "box", "failure", "metrics"),
    ("cls_weight", "box_weight", "seed", "steps", "ap", "seconds"),
)
GENERATIONS = Rows("generations", ("branch", "counts", "result"), ("generation",))
HALL_OF_FAME = Rows("hall_of_fame", ("branch", "authors"), ("rank",))


class Ledger:
    """An open ledger file; use as a context manager."""

    def __init__(
        self,
        path: pathlib.Path,
        *,
        identity: Mapping[str, Any],
        extendable: Mapping[str, bool] = types.MappingProxyType({}),
        allow_device_change: bool = False,
    ) -> None:
        """Opens or creates a ledger.

        Args:
          path: the SQLite file.
          identity: what the stored results depend on (config, versions, device); must equal what the ledger was made
            with, but for the config's ``workdir.FREE`` fields.
          extendable: its keys, joined by dots, that may differ, and whether what was concluded from trainings stays
            valid then; if not, it is dropped.
          allow_device_change: whether the device may be another; ``former_devices`` then has those before it.

        Raises:
          LedgerError: not writable, not a ledger, damaged, lost, or made with another config or version.
        """
        self.path, self._lock, self._moved = path, threading.RLock(), -math.inf
        self._unsynced = False  # whether a loss of power could take what was recorded
        self.changed: dict[str, str] = {}  # what differs, by key, as ``before -> now``
        self._db = open_to_write(path)
        try:
            self._db.row_factory = sqlite3.Row
            found = format_of(self._db, path)
            if found is None:
                refuse_used(path)
            if found != _UPGRADED:
                self._db.executescript(f"begin; {_SCHEMA} commit;")
            flat = ledger_settings.flat(identity)
            changed, begun = ledger_settings.changes(self._settings(), flat), self._holds_results()
            if begun:
                ledger_settings.check(str(path), changed, extendable, allow_device_change=allow_device_change)
            if found == _UPGRADED:
                self._upgrade()
            if begun:
                self._take(flat, changed, extendable)
            else:
                self._begin(flat, changed)
        except (*ERRORS, LedgerError) as error:
            self._db.close()
            raise failure(path, "open", error) from error

    def _begin(self, flat: Mapping[str, str], changed: Mapping[str, str]) -> None:
        """Takes any settings: there are no results of others."""
        with self._writing():
            self._db.execute("delete from meta")
            self._db.executemany("insert into meta values (?, ?)", [*flat.items(), (_FORMAT, str(FORMAT))])
            if changed:  # and the trainings that have ended the process were those of others
                self._db.execute("delete from attempts")

    def _take(self, flat: Mapping[str, str], changed: Mapping[str, str], extendable: Mapping[str, bool]) -> None:
        """Takes settings that may differ, and drops what they make invalid."""
        rows = {key: flat[key] for key in changed}
        if "device" in changed:
            rows[_FORMER_DEVICES] = json.dumps([*self.former_devices, json.loads(self._settings()["device"])])
        if changed:
            with self._writing():
                self._db.executemany("insert or replace into meta values (?, ?)", rows.items())
                if not all(extendable.get(key, True) for key in changed):
                    self._forget_conclusions()
        self.changed = {key: change for key, change in changed.items() if key in extendable}

    def _settings(self) -> dict[str, str]:
        """The settings that the ledger was made with, as JSON."""
        query = "select key, value from meta where key not in (?, ?, ?)"
        return dict(map(tuple, self._db.execute(query, (_FORMAT, _FORMER_DEVICES, _PROPOSED))))

    @property
    def former_devices(self) -> list[str]:
        """The devices with which the search was begun, before it was allowed to resume with others."""
        rows = self._read("select value from meta where key = ?", _FORMER_DEVICES)
        return json.loads(rows[0]["value"]) if rows else []

    def _upgrade(self) -> None:
        """Gives a ledger of the format before what this one has: checksums of all that is read, and the index."""
        with self._writing():
            for rows in (CANDIDATES, TRAININGS, GENERATIONS, HALL_OF_FAME):
                self._db.execute(f"alter table {rows.table} add column checksum integer")
                rows.seal(self._db)
            self._db.execute("drop index if exists by_stage")
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.execute(statement)
            self._db.execute("update meta set value = ? where key = 'format'", (str(FORMAT),))

    def _holds_results(self) -> bool:
        tables = ("trainings", "generations")
        return any(self._db.execute(f"select exists (select 1 from {table})").fetchone()[0] for table in tables)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[None]:
        """A transaction.  SQLite has it in a file beside the ledger at first, which may be lost: it soon is in both.

        Args:
          durable: whether it must survive a loss of power, and not only the end of the process.
        """
        with self._lock:
            try:
                self._db.execute(f"pragma synchronous={'full' if durable else 'normal'}")
                self._db.execute("begin immediate")
                yield
                self._db.execute("commit")
            except BaseException as error:  # an interrupt, too: what is written later begins another
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("rollback")
                if isinstance(error, sqlite3.Error):
                    raise failure(self.path, "write to", error) from error
                raise
            if durable:
                self._move()

    def _move(self) -> None:
        """Moves what was written into the ledger itself, if that was long ago."""
        with self._lock:
            if time.monotonic() - self._moved >= MOVED_SECONDS:
                with contextlib.suppress(sqlite3.Error):  # it is moved after another transaction
                    self._db.execute("pragma wal_checkpoint(truncate)")
                self._moved = time.monotonic()

    def _read(self, query: str, *values: Any) -> Sequence[sqlite3.Row]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except ERRORS as error:
                raise failure(self.path, "read", error) from error

    def training(self, key: str) -> dict[str, Any] | None:
        """The recorded training of this key, if any."""
        for row in TRAININGS.verified(self.path, self._read("select * from trainings where key = ?", key)):
            return row | {"metrics": json.loads(row["metrics"])}
        return None

    def record_training(self, row: Mapping[str, Any]) -> None:
        """Stores a finished or failed training; ``sync`` before anything relies on it."""
        self._unsynced = True
        with self._writing(durable=False):
            TRAININGS.insert(self._db, [dict(row) | {"metrics": json.dumps(row["metrics"])}], instead=True)

    def sync(self) -> None:
        """Waits until what was recorded survives a loss of power, too; other threads may write meanwhile.

        SQLite would wait for the disk at the end of each transaction, and let no other begin.
        """
        if not self._unsynced:
            return
        self._unsynced = False
        try:
            handle = os.open(self.path.with_name(f"{self.path.name}-wal"), os.O_RDONLY)
        except FileNotFoundError:  # a file system that has no place for such logs: each transaction has waited
            return
        try:
            os.fsync(handle)
        except OSError as error:
            raise failure(self.path, "write to", error) from error
        finally:
            os.close(handle)
        self._move()

    def usual_seconds(self, purpose: str, steps: int) -> float:
        """Median time of the recorded trainings of this purpose and length; NaN if there are none."""
        query = "select seconds from trainings where purpose = ? and steps = ? and failure = ''"
        seconds = [row["seconds"] for row in self._read(query, purpose, steps)]
        return statistics.median(seconds) if seconds else math.nan

    def attempts(self) -> dict[str, int]:
        """Trainings whose attempts ended with the process, by key, and how many did."""
        return {row["key"]: row["count"] for row in self._read("select * from attempts")}

    @contextlib.contextmanager
    def attempt(self, keys: Collection[str]) -> Iterator[None]:
        """Counts an attempt to train unless it comes to an end, good or bad; any thread may.

        The end of another process that has trained counts like that of this one.
        """
        rows = [(key,) for key in keys]
        with self._writing(durable=False):
            query = "insert into attempts values (?, 1) on conflict do update set count = count + 1"
            self._db.executemany(query, rows)
        counts = False
        try:
            yield
        except ProcessLost:
            counts = True
            raise
        finally:
            if not counts:
                with self._writing(durable=False):
                    self._db.executemany("delete from attempts where key = ?", rows)

    def forget_failures(self) -> int:
        """Drops failed trainings, and all that was concluded from trainings; a search concludes it again.

        Returns:
          How many trainings have failed.
        """
        with self._writing():
            count = self._db.execute("delete from trainings where failure != ''").rowcount
            self._db.execute("delete from attempts")
            if count:
                self._forget_conclusions()
        return count

    def _forget_conclusions(self) -> None:
        self._keep_proposals(self._read("select * from generations"))
        for table in ("generations", "candidates", "hall_of_fame"):
            self._db.execute(f"delete from {table}")

    def generation(self, branch: str, generation: int) -> tuple[dict[str, int], Any] | None:
        """Counts and result of a finished generation, if it is finished."""
        rows = self._read("select * from generations where branch = ? and generation = ?", branch, generation)
        for row in GENERATIONS.verified(self.path, rows):
            return json.loads(row["counts"]), json.loads(row["result"])
        return None

    def record_generation(
        self,
        branch: str,
        generation: int,
        candidates: Iterable[Mapping[str, Any]],
        counts: Mapping[str, int],
        result: Any,
    ) -> None:
        """Stores a finished generation and all of its candidates in one transaction."""
        row = {"branch": branch, "generation": generation, "counts": json.dumps(counts), "result": json.dumps(result)}
        with self._writing():
            CANDIDATES.insert(self._db, candidates)
            GENERATIONS.insert(self._db, [row])

    def forget_generation(self, branch: str, generation: int) -> None:
        """Drops what was concluded of a generation, and the order of its branch's hall of fame; its trainings stay."""
        which = "branch = ? and generation = ?"
        with self._writing():
            self._keep_proposals(self._read(f"select * from generations where {which}", branch, generation))
            self._db.execute("delete from hall_of_fame where branch = ?", (branch,))
            for table in ("generations", "candidates"):
                self._db.execute(f"delete from {table} where {which}", (branch, generation))

    def proposed(self, branch: str) -> list[str]:
        """The proposals that generations have judged that were dropped since, in the authors' notation."""
        return self._proposed().get(branch, [])

    def _proposed(self) -> dict[str, list[str]]:
        rows = self._read("select value from meta where key = ?", _PROPOSED)
        return json.loads(rows[0]["value"]) if rows else {}

    def _keep_proposals(self, generations: Iterable[sqlite3.Row]) -> None:
        """Remembers the proposals of generations that are to be dropped: nothing else may have them."""
        kept = self._proposed()
        for row in GENERATIONS.verified(self.path, generations):
            if found := json.loads(row["result"]).get("proposed"):
                kept[row["branch"]] = list(dict.fromkeys([*kept.get(row["branch"], []), *found]))
        if kept:
            self._db.execute("insert or replace into meta values (?, ?)", (_PROPOSED, json.dumps(kept)))

    def record_hall_of_fame(self, branch: str, formulas: Sequence[str]) -> None:
        """Stores the order of a branch's hall of fame, best first, in the authors' notation."""
        rows = [{"branch": branch, "rank": rank, "authors": authors} for rank, authors in enumerate(formulas)]
        with self._writing():
            self._db.execute("delete from hall_of_fame where branch = ?", (branch,))
            HALL_OF_FAME.insert(self._db, rows)


def format_of(db: sqlite3.Connection, path: pathlib.Path) -> int | None:
    """The format of a ledger, None if it is a new one.

    Raises:
      LedgerError: this version can't read it.
    """
    tables = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
    row = db.execute("select value from meta where key = 'format'").fetchone() if "meta" in tables else None
    if row is None:
        return None
    if row[0] not in (str(FORMAT), str(_UPGRADED)):
        raise LedgerError(
            f"the ledger {path} was made by another version of cse_jax (its format is {row[0]}, this version reads "
            f"{FORMAT}). Finish the search with that version, or choose another work folder."
        )
    return int(row[0])
