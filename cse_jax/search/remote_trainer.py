"""What trainers have in common whose trainings run in other processes: each of these holds a trainer and is asked."""

import abc
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from cse_jax import workdir
from cse_jax.errors import UserError
from cse_jax.search.task import LossPair, Task
from cse_jax.search.trainer import Purpose, Trainer, Training

Local = TypeVar("Local", bound=Trainer)
LOOK_SECONDS = 1.0  # between looks whether a training is to stop


class WorkersError(UserError, RuntimeError):
    """No worker does what is asked; the message says why."""


class Worker(Generic[Local]):
    """What a process holds that trains for another."""

    def __init__(self, make: Callable[[], Local]) -> None:
        self._make = make

    def start(self, folder: str) -> None:
        """Makes the trainer in a working folder; its errors are told, those of the constructor would not be."""
        os.chdir(folder)
        self.trainer = self._make()

    def device(self) -> str:
        return workdir.device()

    def train(self, losses: Sequence[LossPair], *, stop: threading.Event | None = None, **about: Any) -> list[Training]:
        return self.trainer.train(losses, **about, stop=stop or threading.Event())

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.trainer, method)(*arguments)


class RemoteTrainer(abc.ABC, Generic[Local]):
    """A ``Trainer`` that has workers train, as many at once as it has.

    What the workers must share (features, paused trainings, the data) is in files that all of them see.

    Attributes:
      local: the trainer that is made here, for what is known without training.
      workers: how many trainings, or groups of them, run at once.
    """

    local: Local
    workers: int

    @abc.abstractmethod
    def ask(self, method: str, *arguments: Any, stop: threading.Event | None = None, **about: Any) -> Any:
        """What a method of an idle ``Worker`` answers.

        Raises:
          Stopped: ``stop`` was set.
          TrainingLost: the worker has died.
          OutOfMemory: the worker's device or machine has too little memory.
        """

    def surely(self, method: str, *arguments: Any) -> Any:
        """What a worker answers, whichever of them lives."""
        return self.ask(method, *arguments)

    @property
    def task(self) -> Task:
        return self.local.task

    @property
    def shared_start(self) -> bool:
        return self.local.shared_start

    @functools.cached_property
    def device(self) -> str:
        """That of a worker, in words."""
        return self.surely("device")

    def horizons(self, purpose: Purpose) -> tuple[int, ...]:
        return self.local.horizons(purpose)

    @functools.cache  # noqa: B019 (there is one such trainer at a time)
    def at_once(self, purpose: Purpose) -> int:
        return self.surely("call", "at_once", purpose)

    def train(
        self, losses: Sequence[LossPair], *, purpose: Purpose, seed: int, horizon: int, stop: threading.Event
    ) -> list[Training]:
        """Has a worker train; raises what ``ask`` raises."""
        return self.ask("train", list(losses), purpose=purpose, seed=seed, horizon=horizon, stop=stop)

    def prepare(self) -> None:
        self.surely("call", "prepare")

    def forget(self, losses: LossPair, *, purpose: Purpose, seed: int) -> None:
        self.local.forget(losses, purpose=purpose, seed=seed)

    def gradient_norms(self, losses: Sequence[LossPair]) -> list[tuple[float, float]]:
        return self.surely("call", "gradient_norms", list(losses))
