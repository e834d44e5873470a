"""Workers in processes of their own, which Ray starts on this machine: the same results, whatever becomes of them."""

import contextlib
import dataclasses
import functools
import io
import os
import resource
import signal
import sqlite3
import sys
import time

import numpy as np
import pytest
from extras import need
from fakes import FakeTrainer
from rich.console import Console
from scripts import ROOT, Script

from cse_jax import search
from cse_jax.errors import InputError
from cse_jax.reporting.monitor import Monitor
from cse_jax.search import crew
from cse_jax.search.config import BranchConfig, FinalConfig, SearchConfig
from cse_jax.search.ledger import Ledger
from cse_jax.search.ray_trainer import RayTrainer, WorkersError
from cse_jax.search.trainer import OutOfMemory
from cse_jax.search.trials import MOST_ATTEMPTS, Trials

need("ray")
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # Ray forks once it starts, from JAX's process
DEFAULT = FakeTrainer.task.default
PAIRS = [dataclasses.replace(DEFAULT, cls_weight=1000.0 + k) for k in range(8)]
ILL = 3  # of these pairs


class Faulty(FakeTrainer):
    """The weight of the box loss says what becomes of the worker that trains one of the pairs, and how often."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def train_one(self, losses, *about):
        if losses.cls_weight < PAIRS[0].cls_weight:
            return super().train_one(losses, *about)
        if losses.cls_weight == PAIRS[ILL].cls_weight and losses.box_weight > 1.0:
            times, what = divmod(int(losses.box_weight), 10)
            before = len(list(self.folder.glob(f"{what}-{times}-*")))
            if before < times:
                (self.folder / f"{what}-{times}-{before}").touch()
                FAULTS[what]()
        return super().train_one(dataclasses.replace(losses, box_weight=1.0), *about)

    def prepare(self):
        if not (self.folder / "prepared").exists():
            (self.folder / "prepared").touch()
            killed()


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hanging():
    time.sleep(1e6)


def too_large():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    np.ones(1 << 31)


def diverging():
    raise InputError("a fault of the data")


FAULTS = {1: killed, 2: hanging, 3: too_large, 4: diverging}


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    with RayTrainer(functools.partial(Faulty, tmp_path_factory.mktemp("faults")), workers=2) as trainer:
        yield trainer


def train(folder, trainer, fault=0, times=0, time_limit=0.0):
    """Outcomes of the pairs, and what is left in the ledger of attempts."""
    pairs = [dataclasses.replace(pair, box_weight=10.0 * times + fault or 1.0) for pair in PAIRS]
    with (
        Ledger(folder / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"proxy": 1}) as monitor,
    ):
        trials = Trials(trainer, ledger, monitor, workers=2, time_limit=time_limit)
        outcomes = list(trials.run([(pair, 0) for pair in pairs], purpose="proxy", what="test"))
        assert not ledger.attempts()
    return [(outcome.ap, outcome.failure) for outcome in outcomes]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("inline"), FakeTrainer())


def test_workers_train_as_threads_do(workers, undisturbed, tmp_path):
    assert train(tmp_path, workers) == undisturbed
    assert workers.gradient_norms([DEFAULT]) == FakeTrainer().gradient_norms([DEFAULT])
    assert (workers.at_once("probe"), workers.task) == (8, FakeTrainer.task) and "cpu" in workers.device


@pytest.mark.parametrize("fault", [1, 2, 3], ids=["killed", "hanging", "out_of_memory"])
def test_a_lost_worker_is_replaced(workers, undisturbed, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(crew, "LOOK_SECONDS", 0.1)
    assert train(tmp_path, workers, fault, 1, time_limit=3.0) == undisturbed


def test_a_loss_that_ends_its_workers_is_given_up(workers, undisturbed, tmp_path):
    outcomes = train(tmp_path, workers, 1, MOST_ATTEMPTS)
    assert outcomes.pop(ILL)[1] == f"lost its worker, {MOST_ATTEMPTS} times"
    assert outcomes == [outcome for outcome in undisturbed if outcome != undisturbed[ILL]]


def test_no_loss_is_blamed_for_too_little_memory(workers, tmp_path):
    with pytest.raises(OutOfMemory, match="the memory of a worker is too small: Unable to allocate"):
        train(tmp_path, workers, 3, MOST_ATTEMPTS)


def test_an_error_within_a_worker_is_told_as_it_is(workers, undisturbed, tmp_path):
    with pytest.raises(InputError, match="^a fault of the data") as met:
        train(tmp_path, workers, 4, 1)
    assert "It was met in the proxy training" in met.value.__notes__[0]
    assert train(tmp_path, workers, 4, 1) == undisturbed


def test_what_is_half_made_when_a_worker_dies_is_made_again(workers):
    workers.prepare()


@pytest.mark.slow
def test_the_hall_of_fame_is_the_same_whoever_trains(workers, tmp_path):
    sizes = BranchConfig(strategy="cascade", generations=1, population=200, max_overfit=4, max_proxy=3)
    none = dataclasses.replace(sizes, generations=0)
    found = []
    for name, trainer, threads in (("inline 1", FakeTrainer(), 1), ("inline 2", FakeTrainer(), 2), ("ray", workers, 2)):
        (tmp_path / name).mkdir()
        config = SearchConfig(classification=none, regression=sizes, final=FinalConfig(seeds=2), workers=threads)
        with (
            Ledger(tmp_path / name / "ledger.sqlite", identity={}) as ledger,
            Monitor(Console(file=io.StringIO()), steps={"probe": 4, "overfit": 5, "proxy": 20, "final": 30}) as monitor,
        ):
            found.append(search.run(config, trainer=trainer, ledger=ledger, progress=monitor))
    assert found[0].branches[1].entries and found[0].table
    assert found[0] == found[1] == found[2]


def test_no_cluster_is_said(workers):
    with pytest.raises(WorkersError, match="no Ray cluster answers at 127.0.0.1:1"):
        RayTrainer(FakeTrainer, address="127.0.0.1:1")


class Slow(FakeTrainer):
    def train_one(self, *about):
        time.sleep(0.3)
        return super().train_one(*about)


def drive(folder):
    """A search's process that trains with workers of its own."""
    code = f"""if True:
        import pathlib, test_ray_trainer
        from cse_jax.search.ray_trainer import RayTrainer

        with RayTrainer(test_ray_trainer.Slow, workers=2) as workers:
            print(test_ray_trainer.train(pathlib.Path({str(folder)!r}), workers), flush=True)
    """
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "launch", "tests"))
    return Script([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, cwd=ROOT)


def trained(folder):
    """How many trainings a ledger has: none while its process has not made the file, or the tables in it."""
    if not (folder / "ledger.sqlite").exists():
        return 0
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        made = db.execute("select count(*) from sqlite_master where name = 'trainings'").fetchone()[0]
        return made and db.execute("select count(*) from trainings").fetchone()[0]


@pytest.mark.slow
def test_a_driver_that_is_killed_starts_again_beside_its_workers(undisturbed, tmp_path):
    first = drive(tmp_path)
    while first.poll() is None and not trained(tmp_path):
        time.sleep(0.1)
    first.kill()
    again = drive(tmp_path)
    assert first.finish()[0] == -signal.SIGKILL
    before = trained(tmp_path)
    assert again.finish() == (0, f"{undisturbed}\n") and 0 < before < len(PAIRS)
