"""Whose fault it is: a loss fails by its own numbers or by ending the process; everything else stops the search."""

import contextlib
import io
import shutil
import sqlite3

import pytest
from fakes import FakeTrainer
from rich.console import Console

from cse_jax.language import spaces, zoo
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.ledger import Ledger
from cse_jax.search.task import LossPair
from cse_jax.search.trainer import OutOfMemory, Purpose, Training
from cse_jax.search.trials import MOST_ATTEMPTS, Trials
from detectors.checkpoint import CheckpointError

PAIRS = [LossPair(zoo.default(spaces.BINARY_CLASS), zoo.default(spaces.BOX), 1.0 + k) for k in range(10)]
GUILTY = PAIRS[3]


def train(folder, trainer, *, purpose: Purpose = "probe", workers=1):
    with (
        Ledger(folder / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"probe": 1, "proxy": 1}) as monitor,
    ):
        trials = Trials(trainer, ledger, monitor, workers=workers)
        return list(trials.run([(pair, 0) for pair in PAIRS], purpose=purpose, what="test"))


def count(folder, table):
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        return db.execute(f"select count(*) from {table}").fetchone()[0]


class Killed(BaseException):
    """Stands for the end of the process."""


class Killer(FakeTrainer):
    """Ends the process with one loss: keeps the ledger as it is at that moment."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.groups = folder, []

    def train(self, losses, **options):
        self.groups.append(len(losses))
        if GUILTY in losses:
            after = self.folder.with_name(f"{self.folder.name}+")
            shutil.copytree(self.folder, after)
            raise Killed
        return super().train(losses, **options)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("purpose", ["probe", "proxy"])  # in groups, one by one
def test_a_loss_that_ends_the_process_is_given_up(tmp_path, purpose, workers):
    folder, groups = tmp_path / "run", []
    folder.mkdir()
    for _ in range(MOST_ATTEMPTS):
        trainer = Killer(folder)
        with pytest.raises(Killed):
            train(folder, trainer, purpose=purpose, workers=workers)
        groups.append(trainer.groups)
        folder = folder.with_name(f"{folder.name}+")
    assert groups[1][-1] == groups[2][-1] == 1, "whoever is suspected is trained alone"
    outcomes = train(folder, FakeTrainer(), purpose=purpose, workers=workers)
    for pair, outcome in zip(PAIRS, outcomes, strict=True):
        assert outcome.failure == (f"killed the process {MOST_ATTEMPTS} times" if pair == GUILTY else "")


class Broken(FakeTrainer):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def train_one(self, losses, *about):
        if losses == GUILTY:
            raise self.error
        return super().train_one(losses, *about)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("the machine's"),
        OutOfMemory("the device's memory is too small"),
        CheckpointError("the checkpoint x.partial is damaged"),
        OSError(28, "No space left on device"),
        RuntimeError("a fault of the program"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_loss_is_blamed_for_what_is_not_its_fault(tmp_path, error):
    """The search stops, says what it met and where, and goes on when the fault is gone."""
    with pytest.raises(type(error)) as met:
        train(tmp_path, Broken(error), purpose="proxy")
    where = f"met in the proxy training, up to step 20 with seed 0, of {GUILTY.cls} | {GUILTY.box}"
    assert where in str(met.value.__notes__)
    assert count(tmp_path, "trainings where failure != ''") == count(tmp_path, "attempts") == 0
    again = FakeTrainer()
    outcomes = train(tmp_path, again, purpose="proxy")
    assert not any(outcome.failure for outcome in outcomes) and 0 < again.count < len(PAIRS)


class Diverging(FakeTrainer):
    def train_one(self, losses, *about):
        trained = super().train_one(losses, *about)
        return Training(None, failure="not finite at step 3") if losses == GUILTY else trained


def test_what_failed_is_trained_again_on_demand(tmp_path):
    assert [outcome.failure for outcome in train(tmp_path, Diverging())].count("not finite at step 3") == 1
    trainer = FakeTrainer()
    assert train(tmp_path, trainer)[3].failure and trainer.count == 0
    with Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger:
        ledger.record_generation("box", 0, [], {}, {})
        assert ledger.forget_failures() == 1
        assert ledger.generation("box", 0) is None
        ledger.record_generation("box", 0, [], {}, {})
        assert ledger.forget_failures() == 0
        assert ledger.generation("box", 0) is not None
    assert not train(tmp_path, trainer)[3].failure and trainer.count == 1
