"""Ledgers for tests, without a search."""

import pathlib
import sqlite3

from cse_jax.search.ledger import Ledger

_ROW = {
    "branch": "box", "generation": 1, "number": 0, "formula": "1 - i / u", "authors": "Sub(1,Div(I,U))", "flipped": 0,
    "nodes": 5, "fingerprint": "", "copies": 1, "duplicates": 0, "stage": "proxy", "reason": "", "proxy": 0.5,
    "weight": 2.0, "curve": "[]", "aps": "[]", "seed": 0, "seconds": 1.0,
}  # fmt: skip


def with_a_loss(folder: pathlib.Path, **changes) -> pathlib.Path:
    """A work folder whose ledger has one loss in its hall of fame; ``changes`` are fields of it."""
    folder.mkdir()
    Ledger(folder / "ledger.sqlite", identity={}).__exit__()
    row = _ROW | changes
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        db.execute(
            f"insert into candidates ({', '.join(row)}) values ({', '.join('?' * len(row))})", tuple(row.values())
        )
        db.execute("insert into hall_of_fame values (?, 1, ?)", (row["branch"], row["authors"]))
    return folder
