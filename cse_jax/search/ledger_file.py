"""The ledger as a file: how it is opened to write and to read, what shows that it was lost, and damage.

SQLite checks no page that it reads.  Every row that a search or an export reads therefore carries a checksum.
"""

import math
import operator
import os
import pathlib
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cse_jax.errors import UserError
from cse_jax.workdir import irregular

_CHECKED_BYTES = 1 << 29  # the structure of larger files is not checked when they are opened: it takes over a second
_NAN = math.nan  # for what SQLite has as null
ERRORS = (sqlite3.Error, UnicodeDecodeError)  # the second of a text in a damaged file
_BESIDE = ("-wal", "-shm", "-journal")
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
_NO_ACCESS = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)


class LedgerError(UserError, RuntimeError):
    """A ledger that can't be used; the message says why and what to do."""


def open_to_write(path: pathlib.Path) -> sqlite3.Connection:
    """Opens or creates a ledger; its threads must take turns.

    Raises:
      LedgerError: something there is no regular file, the ledger was lost, or it is damaged.
    """
    for each in (path, *(path.with_name(path.name + end) for end in _BESIDE)):
        if os.path.lexists(each) and (each.is_symlink() or not each.is_file()):
            raise LedgerError(str(irregular(each)))
    _refuse_lost(path)
    db = None
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute("pragma journal_mode=wal")
        if path.stat().st_size <= _CHECKED_BYTES:
            (found,) = db.execute("pragma quick_check(1)").fetchone()
            if found != "ok":
                raise damaged(path, found.splitlines()[-1])
    except (*ERRORS, LedgerError) as error:
        if db is not None:
            db.close()
        raise failure(path, "open", error) from error
    return db


def open_to_read(path: pathlib.Path) -> sqlite3.Connection:
    """Opens a ledger that a search may be writing, also where nothing can be written.

    Raises:
      LedgerError: there is none, or it can't be read.
    """
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}; is that the folder of a search?")
    _refuse_lost(path)
    address = path.absolute().as_uri()
    for how in ("mode=ro", "immutable=1"):
        db = sqlite3.connect(f"{address}?{how}", uri=True)
        try:
            db.execute("select count(*) from sqlite_master")
            return db
        except ERRORS as error:
            db.close()
            if how != "mode=ro" or _code(error) not in _NO_ACCESS:
                raise failure(path, "read", error) from error
            if _size(wal := path.with_name(f"{path.name}-wal")):  # which SQLite would leave out
                raise LedgerError(
                    f"cannot read the ledger {path}: the last search was cut off, and what it wrote last, {wal.name}, "
                    "can't be read where nothing can be written. Copy the folder to where you can write, and read "
                    "it there."
                ) from error
    raise AssertionError


def _refuse_lost(path: pathlib.Path) -> None:
    """Refuses to begin a ledger where there was one."""
    if _size(path):
        return
    wal = path.with_name(f"{path.name}-wal")
    if _size(wal):
        raise _lost(path, wal)
    refuse_used(path)


def refuse_used(path: pathlib.Path) -> None:
    """Refuses a ledger without content in a folder whose config was written, as it is once the ledger is made.

    Raises:
      LedgerError: what the ledger held is lost.
    """
    config = path.with_name("config.json")
    if config.exists():
        raise _lost(path, config)


def _lost(path: pathlib.Path, evidence: pathlib.Path) -> LedgerError:
    return LedgerError(
        f"the ledger {path} is {'empty' if path.exists() else 'missing'}, but {evidence.name} beside it shows that "
        f"this folder was in use. Put the ledger back from a copy, with its {path.name}-wal if it has one. To start "
        "over, delete the folder or choose another."
    )


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def failure(path: pathlib.Path, doing: str, error: Exception) -> LedgerError:
    """What to tell a user of an error of SQLite, met while the ledger was to be opened, read or written to."""
    if isinstance(error, LedgerError):
        return error
    if (code := _code(error)) in _DAMAGE:
        return damaged(path, str(error))
    remedy = "make it and its folder writable" if code in _NO_ACCESS else "make room or restore access"
    return LedgerError(
        f"cannot {doing} the ledger {path}: {error}. Nothing recorded so far is lost; {remedy} and run the same "
        "command again."
    )


def _code(error: Exception) -> int:
    unknown = sqlite3.SQLITE_IOERR if isinstance(error, OSError) else sqlite3.SQLITE_CORRUPT
    return getattr(error, "sqlite_errorcode", unknown) & 0xFF


def damaged(path: pathlib.Path, why: str) -> LedgerError:
    """The error for a ledger that does not hold what was written."""
    return LedgerError(
        f"the ledger {path} is damaged, or no ledger: {why}. Put it back from a copy; `sqlite3 {path.name} .recover` "
        "prints what can still be read. To start over, delete the folder or choose another."
    )


class Rows(NamedTuple):
    """The rows of a table, each with a checksum in the column of that name.

    Attributes:
      table: its name.
      texts, numbers: its other columns by what they hold; a number may be missing.
    """

    table: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]

    def insert(self, db: sqlite3.Connection, rows: Iterable[Mapping[str, Any]], *, instead: bool = False) -> None:
        """Adds rows, or replaces those that have their keys."""
        columns = (*self.texts, *self.numbers, "checksum")
        verb = "insert or replace" if instead else "insert"
        marks = ", ".join("?" * len(columns))
        db.executemany(f"{verb} into {self.table} ({', '.join(columns)}) values ({marks})", map(self._with_sum(), rows))

    def seal(self, db: sqlite3.Connection) -> None:
        """Gives rows that have none their checksums."""
        rows, with_sum = db.execute(f"select rowid, * from {self.table}").fetchall(), self._with_sum()
        sums = [(with_sum(row)[-1], row["rowid"]) for row in rows]
        db.executemany(f"update {self.table} set checksum = ? where rowid = ?", sums)

    def verified(self, path: pathlib.Path, rows: Iterable[sqlite3.Row]) -> list[dict[str, Any]]:
        """Rows as they were written.

        Raises:
          LedgerError: one is not.
        """
        found, with_sum = [dict(row) for row in rows], self._with_sum()
        for row in found:
            try:
                right = row.pop("checksum") == with_sum(row)[-1]
            except (TypeError, struct.error):  # a text has become a number, or the other way round
                right = False
            if not right:
                raise damaged(path, f"a row of {self.table} is not what was written")
        return found

    def _with_sum(self) -> Callable[[Any], tuple[Any, ...]]:
        """Gives a row's texts, numbers and checksum, which is the same before SQLite has stored the row and after."""
        texts, numbers, pack = _getter(self.texts), _getter(self.numbers), struct.Struct(f"<{len(self.numbers)}d").pack

        def with_sum(row: Any) -> tuple[Any, ...]:
            of_text, of_number = texts(row), numbers(row)
            packed = pack(*[_NAN if n is None or n != n else n + 0.0 for n in of_number])
            return *of_text, *of_number, zlib.crc32(packed, zlib.crc32("\0".join(of_text).encode()))

        return with_sum


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    return operator.itemgetter(*names) if len(names) > 1 else lambda row: (row[names[0]],)
