"""Confirmations: the rows of a finished search, trained again with seeds that nothing has used."""

import contextlib
import io
import json
import sqlite3

import pytest
from fakes import FakeTrainer
from rich.console import Console

from cse_jax import search
from cse_jax.errors import InputError
from cse_jax.language import spaces
from cse_jax.reporting import confirmation_report, report
from cse_jax.reporting.monitor import Monitor
from cse_jax.search import confirmation
from cse_jax.search.comparison import Role
from cse_jax.search.config import BranchConfig, FinalConfig, SearchConfig
from cse_jax.search.ledger import Ledger
from cse_jax.search.task import Task

NONE = BranchConfig(generations=0)
CONFIG = SearchConfig(
    seed=7,
    classification=NONE,
    regression=BranchConfig(generations=1, population=300, max_overfit=4, max_proxy=4),
    final=FinalConfig(seeds=2),
)
ABOUT = {"versions": {"jax": "1"}, "device": "none", "config": {"search": {"seed": 7}}}


@contextlib.contextmanager
def opened(path):
    with Ledger(path, identity={}) as ledger, Monitor(Console(file=io.StringIO()), steps={"final": 30}) as monitor:
        yield {"ledger": ledger, "progress": monitor}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "ledger.sqlite"
    with (
        Ledger(path, identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps=dict.fromkeys(("probe", "overfit", "proxy", "final"), 1)) as monitor,
    ):
        result = search.run(CONFIG, trainer=FakeTrainer(), ledger=ledger, progress=monitor)
    about = dict(name="trial", seeding="yes", scale="raw", seconds=1.0)
    return path, result, json.loads(json.dumps(report.result_dict(result, about=about | ABOUT)))


def seeds_of(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return {seed for (seed,) in db.execute("select seed from trainings")}


def test_the_rows_are_trained_again_with_fresh_seeds(finished, tmp_path):
    path, result, data = finished
    with opened(tmp_path / "confirm.sqlite") as parts:
        found = confirmation.run(data, 4, trainer=FakeTrainer(), **parts)
    assert [(row.name, row.role, row.losses) for row in found.table] == [
        (row.name, row.role, row.losses) for row in result.table
    ]
    assert seeds_of(tmp_path / "confirm.sqlite") == set(found.seeds) and len(found.seeds) == 4
    assert not set(found.seeds) & seeds_of(path)
    assert all(row.against.seeds == 4 for row in found.table if row.role != Role.DISCOVERED)
    about = ABOUT | {"title": "Confirmation of the search in runs/trial", "split": "test", "note": ""}
    confirmation_report.write(tmp_path, confirmation_report.confirmation_dict(found, about=about))
    written, text = json.loads((tmp_path / "confirm.json").read_text()), (tmp_path / "confirm.md").read_text()
    assert written["conclusion"] in text and written["seeds"] == list(found.seeds)
    assert all(row["name"] in text for row in written["table"])


def test_more_seeds_add_to_those_that_are_done(finished, tmp_path):
    _, _, data = finished
    counts, tables = [], []
    for seeds in (2, 2, 3):
        with opened(tmp_path / "confirm.sqlite") as parts:
            trainer = FakeTrainer()
            tables.append(confirmation.run(data, seeds, trainer=trainer, **parts).table)
        counts.append(trainer.count)
    assert counts[0] == 2 * counts[2] > 0 and counts[1] == 0
    assert tables[0] == tables[1]
    assert [row.aps[:2] for row in tables[2]] == [row.aps for row in tables[0]]


def test_an_interrupted_confirmation_ends_the_same(finished, tmp_path):
    _, _, data = finished
    with opened(tmp_path / "a.sqlite") as parts, pytest.raises(KeyboardInterrupt):
        confirmation.run(data, 2, trainer=FakeTrainer(interrupt_at=5), **parts)
    trainer = FakeTrainer()
    with opened(tmp_path / "a.sqlite") as parts:
        resumed = confirmation.run(data, 2, trainer=trainer, **parts)
    with opened(tmp_path / "b.sqlite") as parts:
        whole = confirmation.run(data, 2, trainer=(other := FakeTrainer()), **parts)
    assert resumed == whole and trainer.count < other.count


def test_weights_are_factors_on_the_usual_ones_of_the_detector(finished):
    _, result, data = finished
    task = Task(spaces.BINARY_CLASS, "pixels", box_weight=2.0)
    for row, contestant in zip(result.table, confirmation.contestants(data, task), strict=True):
        assert contestant.losses.box_weight == pytest.approx(2.0 * row.losses.box_weight)
        assert contestant.losses.cls_weight == row.losses.cls_weight
    assert confirmation.contestants(data, task)[0].losses == task.default
    found, own = (confirmation.discovered(data, each) for each in (task, FakeTrainer.task))
    assert found.box_weight == pytest.approx(2.0 * own.box_weight) and found.cls_weight == own.cls_weight
    assert (found.cls, found.box) == (own.cls, own.box) == (result.discovered.cls, result.discovered.box)


def test_what_cannot_be_confirmed_is_refused(finished):
    _, _, data = finished
    with pytest.raises(InputError, match="was for the space binary_class; this detector takes multi_class"):
        confirmation.contestants(data, Task(spaces.MULTI_CLASS))
    with pytest.raises(InputError, match="discovered no losses"):
        confirmation.contestants(data | {"discovered": None}, FakeTrainer.task)
