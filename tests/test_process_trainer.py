"""Trainings in the other processes of a job, which are threads here; ``test_launch.py`` has real ones."""

import contextlib
import multiprocessing
import threading

import pytest
from fakes import FakeTrainer

from cse_jax.errors import InputError
from cse_jax.search import process_trainer
from cse_jax.search.process_trainer import Link, ProcessTrainer, serve
from cse_jax.search.remote_trainer import WorkersError
from cse_jax.search.trainer import ProcessLost, Stopped

DEFAULT = FakeTrainer.task.default
ABOUT = dict(purpose="proxy", seed=0, horizon=20)
NEVER = threading.Event()


class Elsewhere(FakeTrainer):
    """Does something else in the other process, as the seed says."""

    def train(self, losses, *, stop, seed, **about):
        if threading.current_thread() is not threading.main_thread():
            if seed == 1:
                raise InputError("a fault of the data")
            if seed == 2:
                assert stop.wait(20.0)
                raise Stopped
            if seed == 3:
                raise type("Unknown", (Exception,), {})("of a class that can't be sent")
        return super().train(losses, stop=stop, seed=seed, **about)


@contextlib.contextmanager
def job():
    """A trainer, and the threads of a second process that end with it; the first one's own are taken."""
    pairs = [multiprocessing.Pipe() for _ in range(2)]
    ended = []

    def others():
        try:
            serve([Link(there, 0) for _, there in pairs])
            ended.append("done")
        except ProcessLost as error:
            ended.append(str(error))

    thread = threading.Thread(target=others)
    thread.start()
    links = [Link(here, 1) for here, _ in pairs]
    try:
        trainer = ProcessTrainer(Elsewhere, links)
        assert trainer.workers == 4
        own = [trainer._idle.get() for _ in range(2)]
        assert own == [None, None], "what runs alone runs here"
        yield trainer, links, ended
    finally:
        for here, _ in pairs:
            here.close()
        thread.join(20.0)
        assert not thread.is_alive()


def test_other_processes_train_as_this_one_does():
    with job() as (trainer, links, ended):
        assert trainer.train([DEFAULT], **ABOUT, stop=NEVER) == FakeTrainer().train([DEFAULT], **ABOUT, stop=NEVER)
        assert trainer.gradient_norms([DEFAULT]) == FakeTrainer().gradient_norms([DEFAULT])
        assert (trainer.at_once("probe"), trainer.task) == (8, FakeTrainer.task) and "1 x cpu" in trainer.device
        for link in links:
            link.send("end")
    assert ended == ["done"]


def test_what_another_process_meets_is_told_as_it_is(monkeypatch):
    monkeypatch.setattr(process_trainer, "LOOK_SECONDS", 0.01)
    with job() as (trainer, _, ended):
        with pytest.raises(InputError, match="^a fault of the data") as met:
            trainer.train([DEFAULT], **ABOUT | {"seed": 1}, stop=NEVER)
        assert met.value.__notes__ == ["It was met in process 1."]
        assert 'raise InputError("a fault of the data")' in str(met.value.__cause__)
        stop = threading.Event()
        stop.set()
        with pytest.raises(Stopped):
            trainer.train([DEFAULT], **ABOUT | {"seed": 2}, stop=stop)
        with pytest.raises(RuntimeError, match="Unknown: of a class that can't be sent"):
            trainer.train([DEFAULT], **ABOUT | {"seed": 3}, stop=NEVER)
        assert trainer.train([DEFAULT], **ABOUT, stop=NEVER)[0].ap
    assert "process 0 has ended" in ended[0]


def test_a_process_that_ends_is_missed():
    here, there = multiprocessing.Pipe()
    there.close()
    with pytest.raises(ProcessLost, match="process 3 has ended.*The same commands resume"):
        ProcessTrainer(FakeTrainer, [Link(here, 3)])


def test_processes_with_other_devices_are_refused():
    here, there = multiprocessing.Pipe()
    there.send(("8 x TPU v4 (tpu)", None, ""))
    with pytest.raises(WorkersError, match=r"process 0 has 1 x cpu \(cpu\), but process 1 has 8 x TPU v4 \(tpu\)"):
        ProcessTrainer(FakeTrainer, [Link(here, 1)])
