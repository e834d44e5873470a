"""Trainings of a detector under a pair of losses, remembered in the ledger so that none is run twice."""

import concurrent.futures
import dataclasses
import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from cse_jax.language import spaces, zoo
from cse_jax.language.expression import Expression, to_authors
from cse_jax.language.spaces import Space
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class LossPair:
    """The losses of a detector's head, with their weights."""

    cls: Expression
    box: Expression
    cls_weight: float = 1.0
    box_weight: float = 1.0


def default_pair(cls_space: Space, box_weight: float) -> LossPair:
    """The default losses of a detector with that classification space and usual weight of the box loss."""
    return LossPair(zoo.default(cls_space), zoo.default(spaces.BOX), box_weight=box_weight)


def with_loss(pair: LossPair, formula: Expression, factor: float) -> LossPair:
    """A pair with the loss of the formula's space replaced, and its weight multiplied."""
    if formula.space == pair.box.space:
        return dataclasses.replace(pair, box=formula, box_weight=factor * pair.box_weight)
    return dataclasses.replace(pair, cls=formula, cls_weight=factor * pair.cls_weight)


class Training(NamedTuple):
    """What a trainer says of one training.

    Attributes:
      ap: average precision (COCO, IoU .50:.95) on the split of the purpose; None if the training failed.
      metrics: further figures, by name.
      failure: empty, or why the training was given up.
    """

    ap: float | None
    metrics: dict[str, Any] = {}
    failure: str = ""


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


class Trainer(Protocol):
    """Trains one detector under any losses; ``detectors.training.search_trainer.DetectorTrainer`` is one.

    Purposes are ``"probe"`` (heads on fixed features), ``"verify"`` (one image per category), ``"proxy"`` and
    ``"final"``.
    """

    def horizons(self, purpose: str) -> tuple[int, ...]:
        """Steps at which a training for a purpose is scored, ascending; the last is its end."""

    def at_once(self, purpose: str) -> int:
        """How many losses ``train`` should be given for a purpose."""

    def train(
        self, losses: Sequence[LossPair], *, purpose: str, seed: int, horizon: int, stop: threading.Event
    ) -> list[Training]:
        """Trains under each of the losses up to a horizon, and scores; may be called from several threads at once.

        A training that was brought to an earlier horizon goes on from there, if what it left is still there.

        Raises:
          Stopped: ``stop`` was set meanwhile.
          OSError: something could not be read or written.
        """

    def forget(self, losses: LossPair, *, purpose: str, seed: int) -> None:
        """Drops what is kept of a training that will not go on."""

    def gradient_norms(self, losses: Sequence[LossPair]) -> list[tuple[float, float]]:
        """Norms of the gradients of the classification and the box loss in a trained head, on a calibration batch."""


class TrainingDiverged(RuntimeError):
    """The candidate's loss or gradient became non-finite."""


class Stopped(RuntimeError):
    """The training was given up because the search is being interrupted."""


class Trials:
    """Runs trainings, or recalls them."""

    def __init__(self, trainer: Trainer, ledger: Ledger, monitor: Monitor, *, workers: int = 1) -> None:
        """Prepares trainings; ``workers`` of them (or of groups of them) run at once, in threads."""
        self.trainer, self._ledger, self._monitor, self._workers = trainer, ledger, monitor, workers

    def run(
        self, jobs: Sequence[tuple[LossPair, int]], *, purpose: str, what: str, horizon: int | None = None
    ) -> Iterator[Outcome]:
        """Trains under each pair of losses with its seed, unless the ledger has the result.

        A training that diverges or raises is recorded with its reason and yields AP NaN.

        Args:
          jobs: losses and seeds.
          purpose: one of the trainer's purposes.
          what: shown while they run.
          horizon: steps; one of the purpose's horizons, the last by default.

        Yields:
          The outcomes, in the order of the jobs.
        """
        horizon = self.trainer.horizons(purpose)[-1] if horizon is None else horizon
        most = self.trainer.at_once(purpose)
        groups = -(-len(jobs) // most)
        share = min(1.0, len(jobs) / most) / max(1, min(self._workers, groups))  # of the time of a training in many
        keys = [self._key(losses, purpose, seed, horizon) for losses, seed in jobs]
        todo = {key: job for key, job in zip(keys, jobs, strict=True) if self._ledger.training(key) is None}
        stop = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            futures = {
                pool.submit(self._train, group, purpose, horizon, stop): set(group)
                for group in self._groups(todo, purpose)
            }
            waiting = set(todo)
            try:
                for number, key in enumerate(keys, start=1):
                    if key in waiting:
                        self._monitor.activity(what, number, len(jobs))
                    while key in waiting:
                        waiting -= self._record_finished(futures)
                    row = self._ledger.training(key)
                    self._monitor.trained(purpose, row["seconds"] * share)
                    ap = math.nan if row["ap"] is None else row["ap"]
                    yield Outcome(ap, row["metrics"], row["failure"], row["seconds"])
            finally:
                stop.set()
                for future in futures:
                    future.cancel()

    def _groups(self, todo: dict[str, tuple[LossPair, int]], purpose: str) -> Iterator[dict[str, tuple[LossPair, int]]]:
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
            for row in future.result():
                self._ledger.record_training(row)
        return done

    def _train(
        self, jobs: dict[str, tuple[LossPair, int]], purpose: str, horizon: int, stop: threading.Event
    ) -> list[dict[str, Any]]:
        started = time.monotonic()
        pairs, seed = [losses for losses, _ in jobs.values()], next(iter(jobs.values()))[1]
        try:
            trainings = self.trainer.train(pairs, purpose=purpose, seed=seed, horizon=horizon, stop=stop)
        except (OSError, Stopped):
            raise
        except Exception as error:  # a candidate may break anything below; the search goes on without it
            if len(jobs) > 1:  # one of them, and nobody knows which
                return [row for key, job in jobs.items() for row in self._train({key: job}, purpose, horizon, stop)]
            message = str(error).splitlines()[0] if str(error) else ""
            trainings = [Training(None, failure=f"raised {type(error).__name__}: {message}")]
        seconds = (time.monotonic() - started) / len(jobs)
        return [
            {
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
            for (key, (losses, _)), training in zip(jobs.items(), trainings, strict=True)
        ]

    def _key(self, losses: LossPair, purpose: str, seed: int, horizon: int) -> str:
        pair = [to_authors(losses.cls), losses.cls_weight, to_authors(losses.box), losses.box_weight]
        return json.dumps([purpose, seed, horizon, *pair])
