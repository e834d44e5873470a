"""Whose fault it is: a loss fails by its own numbers or by ending the process; everything else stops the search."""

import contextlib
import io
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading

import pytest
from fakes import FakeTrainer
from rich.console import Console
from scripts import ROOT

from cse_jax.language import spaces, zoo
from cse_jax.reporting.monitor import Monitor
from cse_jax.search import crew
from cse_jax.search.crew import TrainingHangs
from cse_jax.search.ledger import Ledger
from cse_jax.search.task import LossPair
from cse_jax.search.trainer import OutOfMemory, ProcessLost, Purpose, Stopped, Training
from cse_jax.search.trials import MOST_ATTEMPTS, Trials
from detectors.checkpoint import CheckpointError

PAIRS = [LossPair(zoo.default(spaces.BINARY_CLASS), zoo.default(spaces.BOX), 1.0 + k) for k in range(10)]
GUILTY = PAIRS[3]
GIVEN_UP = f"ended the process {MOST_ATTEMPTS} times: it crashed, hung or was killed"


def train(folder, trainer, *, purpose: Purpose = "probe", workers=1, time_limit=0.0):
    with (
        Ledger(folder / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"probe": 1, "proxy": 1}) as monitor,
    ):
        trials = Trials(trainer, ledger, monitor, workers=workers, time_limit=time_limit)
        return list(trials.run([(pair, 0) for pair in PAIRS], purpose=purpose, what="test"))


def count(folder, table):
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        return db.execute(f"select count(*) from {table}").fetchone()[0]


def test_results_are_on_the_disk_before_anything_relies_on_them(tmp_path, monkeypatch):
    """And those that have ended by then wait for it together: of ten heads, eight train side by side."""
    events = []
    with (
        Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"probe": 1}) as monitor,
    ):
        record = ledger.record_training
        monkeypatch.setattr(ledger, "record_training", lambda row: (record(row), events.append(row["cls_weight"])))
        monkeypatch.setattr(os, "fsync", lambda handle: events.append(os.readlink(f"/proc/self/fd/{handle}")))
        trials = Trials(FakeTrainer(), ledger, monitor)
        outcomes = trials.run([(pair, 0) for pair in PAIRS], purpose="probe", what="test")
        for pair, _ in zip(PAIRS, outcomes, strict=True):
            assert str(tmp_path / "ledger.sqlite-wal") in events[events.index(pair.cls_weight) :]
    assert len(events) - len(PAIRS) in (1, 2)


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
        assert outcome.failure == (GIVEN_UP if pair == GUILTY else "")


class Lost(FakeTrainer):
    """One loss ends the other process in which it trains."""

    def train(self, losses, **options):
        if GUILTY in losses:
            raise ProcessLost("process 1 has ended")
        return super().train(losses, **options)


def test_a_loss_that_ends_another_process_is_given_up(tmp_path):
    """The search ends with that process, and what it was training is tried again alone."""
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(ProcessLost, match="process 1 has ended"):
            train(tmp_path, Lost())
    outcomes = train(tmp_path, Lost())
    assert [outcome.failure for outcome in outcomes] == [GIVEN_UP if pair == GUILTY else "" for pair in PAIRS]


class Hanging(FakeTrainer):
    """Never ends with one loss: hears no request to stop, or does after a while."""

    def __init__(self, *, deaf):
        super().__init__()
        self.deaf, self.released = deaf, threading.Event()

    def train(self, losses, *, stop, **options):
        if GUILTY in losses:
            (self.released if self.deaf else stop).wait(60.0)  # and not for ever, so that a test ends
            raise Stopped
        return super().train(losses, stop=stop, **options)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(crew, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(crew, "GRACE_SECONDS", 0.05)


@pytest.mark.parametrize("purpose", ["probe", "proxy"])
def test_a_training_that_hangs_ends_the_process_and_is_given_up(tmp_path, impatient, purpose):
    """Its thread can't be stopped; the others' results are kept."""
    trainer = Hanging(deaf=True)
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(TrainingHangs, match=f"not ended within 0 seconds.*{re.escape(str(GUILTY.cls))}"):
            train(tmp_path, trainer, purpose=purpose, time_limit=0.3)
    outcomes = train(tmp_path, trainer, purpose=purpose, time_limit=0.3)
    trainer.released.set()
    assert [outcome.failure for outcome in outcomes] == [GIVEN_UP if pair == GUILTY else "" for pair in PAIRS]


def test_a_training_that_takes_too_long_is_tried_again_alone_and_given_up(tmp_path, impatient):
    trainer = Hanging(deaf=False)
    outcomes = train(tmp_path, trainer, time_limit=0.3)
    failure = f"took longer than 0 seconds, {MOST_ATTEMPTS} times"
    assert [outcome.failure for outcome in outcomes] == [failure if pair == GUILTY else "" for pair in PAIRS]
    assert trainer.count == len(PAIRS) - 1 and count(tmp_path, "attempts") == 0


def test_what_hangs_among_the_first_of_its_kind_is_given_up(tmp_path, impatient, monkeypatch):
    """Nothing of its kind was recorded when they began: those that end first say how long one may take."""
    monkeypatch.setattr("cse_jax.search.trials.LEAST_LIMIT", 0.3)
    outcomes = train(tmp_path, Hanging(deaf=False), purpose="proxy")
    failure = f"took longer than 0 seconds, {MOST_ATTEMPTS} times"
    assert [outcome.failure for outcome in outcomes] == [failure if pair == GUILTY else "" for pair in PAIRS]


def test_the_script_says_which_training_hangs(tmp_path):
    """And it ends, although a thread of it never does."""
    code = """if True:
        import script, pathlib, test_trials
        from cse_jax.search import crew

        crew.LOOK_SECONDS = crew.GRACE_SECONDS = 0.1
        with script.ending("The search", kept="The rest is kept."):
            test_trials.train(pathlib.Path("."), test_trials.Hanging(deaf=True), time_limit=0.2)
    """
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "launch", "tests"))
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 1 and not ended.stdout
    assert re.fullmatch(
        r"The search stopped: a training hangs: .*raise the time limit\. The flag is --config.search.time_limit\.\n"
        r"The rest is kept\.\n",
        ended.stderr,
    )


@pytest.mark.parametrize(("seconds", "limit"), [((), math.inf), ((5.0,), 600.0), ((50.0, 300.0, 70.0), 10 * 70.0)])
def test_the_time_limit_is_ten_times_what_is_usual(tmp_path, seconds, limit):
    with Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger:
        for number, each in enumerate(seconds):
            row = {"key": str(number), "purpose": "proxy", "cls": "x", "box": "i", "cls_weight": 1.0, "box_weight": 1.0}
            row |= {"seed": 0, "steps": 20, "ap": 0.5, "failure": "", "metrics": {}, "seconds": each}
            ledger.record_training(row)
            ledger.record_training(row | {"key": f"failed {number}", "failure": "diverged", "seconds": 0.1})
        monitor = Monitor(Console(file=io.StringIO()), steps={})
        assert Trials(FakeTrainer(), ledger, monitor)._limit("proxy", 20, 1) == limit
        assert Trials(FakeTrainer(), ledger, monitor)._limit("proxy", 10, 1) == math.inf
        assert Trials(FakeTrainer(), ledger, monitor, time_limit=9.0)._limit("proxy", 20, 1) == 9.0


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
