"""Ledgers for tests, without a search."""

import contextlib
import pathlib
import sqlite3

from cse_jax.search.ledger import Ledger

_ROW = {
    "branch": "box", "generation": 1, "number": 0, "formula": "1 - i / u", "authors": "Sub(1,Div(I,U))", "flipped": 0,
    "nodes": 5, "fingerprint": "", "copies": 1, "duplicates": 0, "stage": "proxy", "reason": "",
    "simulation": None, "probe": None, "overfit": None, "proxy": 0.5,
    "weight": 2.0, "curve": "[]", "aps": "[]", "seed": 0, "seconds": 1.0,
}  # fmt: skip


def with_a_loss(folder: pathlib.Path, **changes) -> pathlib.Path:
    """A work folder whose ledger has one loss in its hall of fame; ``changes`` are fields of it.

    Those are forged, so the ledger says that it is of the format before, which has no checksums.
    """
    folder.mkdir()
    with Ledger(folder / "ledger.sqlite", identity={}) as ledger:
        ledger.record_generation("box", 1, [_ROW], {}, {})
        ledger.record_hall_of_fame("box", [_ROW["authors"]])
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:
        for field, value in changes.items():
            db.execute(f"update candidates set {field} = ?", (value,))
            if field in ("branch", "authors"):
                db.execute(f"update hall_of_fame set {field} = ?", (value,))
        if changes:
            db.execute("update meta set value = '4' where key = 'format'")
    return folder
