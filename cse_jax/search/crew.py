"""Threads in which trainings run side by side, each with a limit to its time."""

import concurrent.futures
import contextlib
import dataclasses
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from cse_jax.errors import UserError
from cse_jax.search.task import LossPair
from cse_jax.search.trainer import Stopped, Training, TrainingLost

LOOK_SECONDS = 1.0  # between looks at the clock
GRACE_SECONDS = 60.0  # from the request to stop to the conclusion that a training can't be stopped

Job = tuple[LossPair, int]  # losses and seed


class TrainingHangs(UserError, RuntimeError):
    """A training of this process does not end, and its thread can't be ended: the process has to be (``os._exit``)."""


@dataclasses.dataclass(eq=False)
class Group:
    """Trainings side by side, with one seed.

    Attributes:
      jobs: by the names under which they are remembered.
      attempt: its number.
      stop: asks the trainings to stop.
      started: when they began, seconds of the monotonic clock; infinite before.
      limit: seconds that they may take, as was known when they were last looked at or asked to stop.
      seconds: how long they took.
    """

    jobs: dict[str, Job]
    attempt: int = 1
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    started: float = math.inf
    limit: float = math.inf
    seconds: float = 0.0


class Crew(contextlib.AbstractContextManager):
    """Takes groups of trainings, as many at once as it has workers, and gives back those that have ended."""

    def __init__(self, train: Callable[[Group], list[Training]], *, workers: int, limit: Callable[[], float]) -> None:
        """``train`` is called in the threads of so many workers; ``limit`` gives the seconds that a group may take."""
        self._train, self._limit = train, limit
        self._pool = concurrent.futures.ThreadPoolExecutor(workers)
        self._groups: dict[concurrent.futures.Future[list[Training]], Group] = {}
        self._ended: queue.SimpleQueue[concurrent.futures.Future[list[Training]]] = queue.SimpleQueue()

    def submit(self, group: Group) -> None:
        """Adds a group to those that wait."""
        future = self._pool.submit(self._run, group)
        self._groups[future] = group
        future.add_done_callback(self._ended.put)

    @property
    def more(self) -> bool:
        """Whether a group has ended that ``next`` has not given back."""
        return not self._ended.empty()

    def next(self) -> tuple[Group, concurrent.futures.Future[list[Training]]]:
        """Waits for a group to end; with what came of it.

        Raises:
          TrainingHangs: one has exceeded its time, and goes on although it was asked to stop.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                future = self._ended.get(timeout=LOOK_SECONDS)
                return self._groups.pop(future), future
            limit = self._limit()
            for group in self._groups.values():
                self._look_at(group, limit)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for group in self._groups.values():
            group.stop.set()
        hangs = kind is not None and issubclass(kind, TrainingHangs)
        self._pool.shutdown(wait=not hangs, cancel_futures=True)

    def left(self) -> Sequence[tuple[Group, list[Training]]]:
        """The groups that have ended well while an error or an interrupt was on its way."""
        ended = [future for future in self._groups if future.done() and not future.cancelled()]
        return [(self._groups[future], future.result()) for future in ended if not future.exception()]

    def _run(self, group: Group) -> list[Training]:
        group.started = time.monotonic()
        try:
            return self._train(group)
        except Stopped as error:
            if self._late(group):
                raise TrainingLost(f"took longer than {group.limit:,.0f} seconds") from error
            raise
        finally:
            group.seconds = time.monotonic() - group.started

    def _late(self, group: Group) -> bool:
        return time.monotonic() > group.started + group.limit

    def _look_at(self, group: Group, limit: float) -> None:
        if not group.stop.is_set():
            group.limit = limit
        if self._late(group):
            group.stop.set()
        if time.monotonic() > group.started + group.limit + GRACE_SECONDS:
            shown = "; ".join(f"{losses.cls} | {losses.box} with seed {seed}" for losses, seed in group.jobs.values())
            raise TrainingHangs(
                f"a training hangs: it has not ended within {group.limit:,.0f} seconds, nor when it was asked to. It "
                f"is that of {shown}. The same command tries it again, and gives it up once it has ended the process "
                "three times. If trainings may last so long, raise the time limit"
            )
