"""Trainings of a detector under a pair of losses, remembered in the ledger so that none is run twice."""

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import threading
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cse_jax.search.progress import Progress
from cse_jax.search.task import LossPair
from cse_jax.search.trainer import OutOfMemory, Purpose, Trainer, Training

MOST_ATTEMPTS = 3  # of a training that ends the process
Job = tuple[LossPair, int]  # losses and seed


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
        """Stores a finished or failed training."""
        ...

    def attempts(self) -> Mapping[str, int]:
        """Trainings whose attempts ended with the process, by key, and how many did."""
        ...

    def attempt(self, keys: Collection[str]) -> contextlib.AbstractContextManager[None]:
        """Counts an attempt to train unless it comes to an end, good or bad; any thread may."""
        ...


class Trials:
    """Runs trainings, or recalls them."""

    def __init__(self, trainer: Trainer, ledger: Memory, progress: Progress, *, workers: int = 1) -> None:
        """Prepares trainings; ``workers`` of them (or of groups of them) run at once, in threads."""
        self.trainer, self._ledger, self._progress, self._workers = trainer, ledger, progress, workers

    def run(
        self, jobs: Sequence[Job], *, purpose: Purpose, what: str, horizon: int | None = None
    ) -> Generator[Outcome, None, None]:
        """Trains under each pair of losses with its seed, unless the ledger has the result.

        A loss that diverges is recorded with its reason and yields AP NaN, and so is one whose trainings have ended the
        process ``MOST_ATTEMPTS`` times; until then it is trained alone.  Any other error is not the loss's: it is
        raised, and nothing is recorded of the training that met it.

        Args:
          jobs: losses and seeds.
          purpose: of the trainings.
          what: shown while they run.
          horizon: steps; one of the purpose's horizons, the last by default.

        Yields:
          The outcomes, in the order of the jobs.

        Raises:
          OutOfMemory: not even one training at a time fits the device.
        """
        horizon = self.trainer.horizons(purpose)[-1] if horizon is None else horizon
        most = self.trainer.at_once(purpose)
        groups = -(-len(jobs) // most)
        share = min(1.0, len(jobs) / most) / max(1, min(self._workers, groups))  # of the time of a training in many
        keys = [training_key(losses, purpose, seed, horizon) for losses, seed in jobs]
        todo = {key: job for key, job in zip(keys, jobs, strict=True) if self._ledger.training(key) is None}
        suspects = {key: count for key, count in self._ledger.attempts().items() if key in todo}
        for key, count in suspects.items():
            if count >= MOST_ATTEMPTS:
                losses, seed = todo.pop(key)
                killer = Training(None, failure=f"killed the process {count} times")
                self._record([_row(key, losses, killer, purpose, seed, horizon, 0.0)])
        alone = {key: todo.pop(key) for key in suspects if key in todo}
        stop = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            futures: dict[concurrent.futures.Future, set[str]] = {}
            waiting = set(todo)
            try:
                for key, job in alone.items():
                    self._progress.activity(f"{what}: one that may have ended the process")
                    futures[pool.submit(self._train, {key: job}, purpose, horizon, stop)] = {key}
                    self._record_finished(futures)
                for group in self._groups(todo, purpose):
                    futures[pool.submit(self._train, group, purpose, horizon, stop)] = set(group)
                for number, key in enumerate(keys, start=1):
                    if key in waiting:
                        self._progress.activity(what, number, len(jobs))
                    while key in waiting:
                        waiting -= self._record_finished(futures)
                    row = self._ledger.training(key)
                    assert row is not None
                    self._progress.trained(purpose, row["seconds"] * share)
                    ap = math.nan if row["ap"] is None else row["ap"]
                    yield Outcome(ap, row["metrics"], row["failure"], row["seconds"])
            finally:
                stop.set()
                for future in futures:
                    future.cancel()
                for future in futures:  # what has finished while an error or an interrupt was on its way
                    if future.done() and not future.cancelled() and not future.exception():
                        self._record(future.result())

    def _groups(self, todo: dict[str, Job], purpose: Purpose) -> Iterator[dict[str, Job]]:
        """Jobs of one seed, as many as the trainer takes at once."""
        most = self.trainer.at_once(purpose)
        for seed in dict.fromkeys(seed for _, seed in todo.values()):
            keys = [key for key, job in todo.items() if job[1] == seed]
            for start in range(0, len(keys), most):
                yield {key: todo[key] for key in keys[start : start + most]}

    def _record_finished(self, futures: dict[concurrent.futures.Future, set[str]]) -> set[str]:
        """Waits for any group of trainings and records all that have finished."""
        finished, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
        done = set()
        for future in finished:
            done |= futures.pop(future)
            self._record(future.result())
        return done

    def _record(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            self._ledger.record_training(row)

    def _train(
        self, jobs: dict[str, Job], purpose: Purpose, horizon: int, stop: threading.Event
    ) -> list[dict[str, Any]]:
        started = time.monotonic()
        pairs, seed = [losses for losses, _ in jobs.values()], next(iter(jobs.values()))[1]
        try:
            with self._ledger.attempt(jobs):
                trainings = self.trainer.train(pairs, purpose=purpose, seed=seed, horizon=horizon, stop=stop)
        except Exception as error:
            if isinstance(error, OutOfMemory) and len(jobs) > 1:
                return [row for key, job in jobs.items() for row in self._train({key: job}, purpose, horizon, stop)]
            shown = "; ".join(f"{losses.cls} | {losses.box}" for losses in pairs)
            error.add_note(f"It was met in the {purpose} training, up to step {horizon} with seed {seed}, of {shown}")
            raise
        seconds = (time.monotonic() - started) / len(jobs)
        return [
            _row(key, losses, training, purpose, seed, horizon, seconds)
            for (key, (losses, _)), training in zip(jobs.items(), trainings, strict=True)
        ]


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
