"""Trainings of a detector under a pair of losses, remembered in the ledger so that none is run twice."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cse_jax.search.crew import Crew, Group, Job
from cse_jax.search.progress import Progress
from cse_jax.search.task import LossPair
from cse_jax.search.trainer import OutOfMemory, Purpose, Trainer, Training, TrainingLost

MOST_ATTEMPTS = 3  # of a training that ends the process, or loses its worker
LEAST_LIMIT = 600.0  # seconds, which no first compilation takes
_USUAL = 10.0  # times the usual time of its kind that a training may take


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a training, as the ledger has it.

    Attributes:
      ap: as of ``Training``; NaN if the training failed.
      metrics, failure: as of ``Training``.
      seconds: wall time; of several trainings at once, this one's share.
    """

    ap: float
    metrics: dict[str, Any]
    failure: str
    seconds: float


@runtime_checkable
class Memory(Protocol):
    """What remembers trainings: a ledger, or a table of trained losses."""

    def training(self, key: str) -> dict[str, Any] | None:
        """The recorded training of this key, if any."""
        ...

    def record_training(self, row: Mapping[str, Any]) -> None:
        """Stores a finished or failed training; ``sync`` before anything relies on it."""
        ...

    def sync(self) -> None:
        """Waits until what was recorded survives a loss of power."""
        ...

    def usual_seconds(self, purpose: Purpose, steps: int) -> float:
        """Median time of the recorded trainings of this purpose and length; NaN if there are none."""
        ...

    def attempts(self) -> Mapping[str, int]:
        """Trainings whose attempts ended with the process, by key, and how many did."""
        ...

    def attempt(self, keys: Collection[str]) -> contextlib.AbstractContextManager[None]:
        """Counts an attempt to train unless it comes to an end, good or bad; any thread may."""
        ...


class Trials:
    """Runs trainings, or recalls them."""

    def __init__(
        self, trainer: Trainer, ledger: Memory, progress: Progress, *, workers: int = 1, time_limit: float = 0.0
    ) -> None:
        """Prepares trainings.

        Args:
          trainer: trains.
          ledger: remembers.
          progress: hears of it.
          workers: how many trainings, or groups of them, run at once, each in a thread.
          time_limit: seconds that a training, or a group, may take; 0 for ten times what is usual for its purpose and
            length, and ``LEAST_LIMIT`` at least.
        """
        self.trainer, self._ledger, self._progress = trainer, ledger, progress
        self._workers, self._time_limit = workers, time_limit

    def run(
        self, jobs: Sequence[Job], *, purpose: Purpose, what: str, horizon: int | None = None
    ) -> Generator[Outcome, None, None]:
        """Trains under each pair of losses with its seed, unless the ledger has the result.

        A loss that diverges is recorded with its reason and yields AP NaN.  So is one whose trainings have ended the
        process, lost their worker or exceeded their time ``MOST_ATTEMPTS`` times; until then it is tried again, alone.
        Any other error is not the loss's: it is raised, and nothing is recorded of the training that met it.

        Args:
          jobs: losses and seeds.
          purpose: of the trainings.
          what: shown while they run.
          horizon: steps; one of the purpose's horizons, the last by default.

        Yields:
          The outcomes, in the order of the jobs.

        Raises:
          OutOfMemory: not even one training at a time fits the device, each time it was tried.
          TrainingHangs: one can't be stopped.
        """
        horizon = self.trainer.horizons(purpose)[-1] if horizon is None else horizon
        most = self.trainer.at_once(purpose)
        groups = -(-len(jobs) // most)
        share = min(1.0, len(jobs) / most) / max(1, min(self._workers, groups))  # of the time of a training in many
        keys = [training_key(losses, purpose, seed, horizon) for losses, seed in jobs]
        todo = {key: job for key, job in zip(keys, jobs, strict=True) if self._ledger.training(key) is None}
        suspects = {key: count for key, count in self._ledger.attempts().items() if key in todo}

        def train(group: Group) -> list[Training]:
            return self._train(group, purpose, horizon)

        def record(group: Group, trainings: Sequence[Training]) -> None:
            self._record(group, trainings, purpose, horizon)
            for key in group.jobs:
                todo.pop(key, None)

        def limit() -> float:
            return self._limit(purpose, horizon, most)

        for key, count in suspects.items():
            if count >= MOST_ATTEMPTS:
                ended = Training(None, failure=f"ended the process {count} times: it crashed, hung or was killed")
                record(Group({key: todo[key]}), [ended])
        with Crew(train, workers=self._workers, limit=limit) as crew:
            try:
                alone = [key for key in suspects if key in todo]
                for key in alone:
                    self._progress.activity(f"{what}: one that may have ended the process")
                    crew.submit(Group({key: todo[key]}))
                    while key in todo:
                        self._next(crew, record)
                for group in self._groups(todo, most):
                    crew.submit(group)
                for number, key in enumerate(keys, start=1):
                    if key in todo:
                        self._progress.activity(what, number, len(jobs))
                    while key in todo:
                        self._next(crew, record)
                        while crew.more:  # one wait for the disk is for all that have ended
                            self._next(crew, record)
                    self._ledger.sync()
                    row = self._ledger.training(key)
                    assert row is not None
                    self._progress.trained(purpose, row["seconds"] * share)
                    ap = math.nan if row["ap"] is None else row["ap"]
                    yield Outcome(ap, row["metrics"], row["failure"], row["seconds"])
            finally:
                for group, trainings in crew.left():
                    record(group, trainings)

    def _limit(self, purpose: Purpose, horizon: int, most: int) -> float:
        """Seconds that a group may take; no limit before any training of its kind is recorded."""
        usual = self._ledger.usual_seconds(purpose, horizon) * most
        return self._time_limit or (math.inf if math.isnan(usual) else max(LEAST_LIMIT, _USUAL * usual))

    @staticmethod
    def _groups(todo: Mapping[str, Job], most: int) -> Iterator[Group]:
        """Jobs of one seed, as many as the trainer takes at once."""
        for seed in dict.fromkeys(seed for _, seed in todo.values()):
            keys = [key for key, job in todo.items() if job[1] == seed]
            for start in range(0, len(keys), most):
                yield Group({key: todo[key] for key in keys[start : start + most]})

    def _next(self, crew: Crew, record: Callable[[Group, Sequence[Training]], None]) -> None:
        """Waits for a group to end, and records it or has it trained again."""
        group, ended = crew.next()
        try:
            record(group, ended.result())
        except (OutOfMemory, TrainingLost) as error:
            if len(group.jobs) > 1:
                for key, job in group.jobs.items():
                    crew.submit(Group({key: job}))
            elif group.attempt < MOST_ATTEMPTS:
                crew.submit(Group(group.jobs, group.attempt + 1))
            elif isinstance(error, OutOfMemory):
                raise
            else:
                record(group, [Training(None, failure=f"{error}, {MOST_ATTEMPTS} times")])

    def _record(self, group: Group, trainings: Sequence[Training], purpose: Purpose, horizon: int) -> None:
        seconds = group.seconds / len(group.jobs)
        for (key, (losses, seed)), training in zip(group.jobs.items(), trainings, strict=True):
            self._ledger.record_training(_row(key, losses, training, purpose, seed, horizon, seconds))

    def _train(self, group: Group, purpose: Purpose, horizon: int) -> list[Training]:
        pairs, seed = [losses for losses, _ in group.jobs.values()], next(iter(group.jobs.values()))[1]
        try:
            with self._ledger.attempt(group.jobs):
                return self.trainer.train(pairs, purpose=purpose, seed=seed, horizon=horizon, stop=group.stop)
        except Exception as error:
            shown = "; ".join(f"{losses.cls} | {losses.box}" for losses in pairs)
            error.add_note(f"It was met in the {purpose} training, up to step {horizon} with seed {seed}, of {shown}")
            raise


def _row(
    key: str, losses: LossPair, training: Training, purpose: Purpose, seed: int, horizon: int, seconds: float
) -> dict[str, Any]:
    return {
        "key": key,
        "purpose": purpose,
        "cls": str(losses.cls),
        "box": str(losses.box),
        "cls_weight": losses.cls_weight,
        "box_weight": losses.box_weight,
        "seed": seed,
        "steps": horizon,
        "ap": training.ap,
        "failure": training.failure,
        "metrics": training.metrics,
        "seconds": seconds,
    }


def training_key(losses: LossPair, purpose: Purpose, seed: int, horizon: int) -> str:
    """The name under which a training is remembered."""
    return json.dumps([purpose, seed, horizon, *losses.key])
