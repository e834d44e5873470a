"""Trainings of a detector under a pair of losses, remembered in the ledger so that none is run twice."""

import concurrent.futures
import dataclasses
import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from cse_jax.expression import Expression
from cse_jax.ledger import Ledger
from cse_jax.monitor import Monitor
from cse_jax.printing import to_authors


@dataclasses.dataclass(frozen=True)
class LossPair:
    """The losses of a detector's head, with their weights."""

    cls: Expression
    box: Expression
    cls_weight: float = 1.0
    box_weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a training.

    Attributes:
      ap: average precision (COCO, IoU .50:.95) on the split of the purpose; NaN if the training failed.
      metrics: further figures, by name.
      failure: empty, or why the training was given up.
      seconds: wall time.
    """

    ap: float
    metrics: dict[str, Any]
    failure: str
    seconds: float


class Trainer(Protocol):
    """Trains one detector under any losses; ``detectors.trainer.DetectorTrainer`` is one."""

    def steps(self, purpose: str) -> int:
        """Training steps for a purpose: ``"verify"``, ``"proxy"`` or ``"final"``."""

    def train(
        self, losses: LossPair, *, purpose: str, seed: int, stop: threading.Event
    ) -> tuple[float, dict[str, Any]]:
        """Trains and returns AP and metrics; may be called from several threads at once.

        Raises:
          TrainingDiverged: the loss or its gradient became non-finite.
          Stopped: ``stop`` was set meanwhile.
        """


class TrainingDiverged(RuntimeError):
    """The candidate's loss or gradient became non-finite."""


class Stopped(RuntimeError):
    """The training was given up because the search is being interrupted."""


class Trials:
    """Runs trainings, or recalls them."""

    def __init__(self, trainer: Trainer, ledger: Ledger, monitor: Monitor, *, workers: int = 1) -> None:
        """Prepares trainings; ``workers`` of them run at once, in threads."""
        self._trainer, self._ledger, self._monitor, self._workers = trainer, ledger, monitor, workers

    def run(self, jobs: Sequence[tuple[LossPair, int]], *, purpose: str, what: str) -> Iterator[Outcome]:
        """Trains under each pair of losses with its seed, unless the ledger has the result.

        A training that diverges or raises is recorded with its reason and yields AP NaN.

        Args:
          jobs: losses and seeds.
          purpose: one of the trainer's purposes.
          what: shown while they run.

        Yields:
          The outcomes, in the order of the jobs.
        """
        keys = [self._key(losses, purpose, seed) for losses, seed in jobs]
        todo = {key: job for key, job in zip(keys, jobs, strict=True) if self._ledger.training(key) is None}
        stop = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            futures = {key: pool.submit(self._train, *job, purpose, stop) for key, job in todo.items()}
            try:
                for number, key in enumerate(keys, start=1):
                    if key in futures:
                        self._monitor.activity(what, number, len(jobs))
                    while key in futures:
                        self._record_finished(futures)
                    row = self._ledger.training(key)
                    self._monitor.trained(purpose, row["seconds"] / min(self._workers, len(jobs)))
                    ap = math.nan if row["ap"] is None else row["ap"]
                    yield Outcome(ap, row["metrics"], row["failure"], row["seconds"])
            finally:
                stop.set()
                for future in futures.values():
                    future.cancel()

    def _record_finished(self, futures: dict[str, concurrent.futures.Future]) -> None:
        """Waits for any training and records all that have finished."""
        finished, _ = concurrent.futures.wait(futures.values(), return_when=concurrent.futures.FIRST_COMPLETED)
        for key in [key for key, future in futures.items() if future in finished]:
            self._ledger.record_training(futures.pop(key).result() | {"key": key})

    def _train(self, losses: LossPair, seed: int, purpose: str, stop: threading.Event) -> dict[str, Any]:
        started = time.monotonic()
        ap, metrics, failure = None, {}, ""
        try:
            ap, metrics = self._trainer.train(losses, purpose=purpose, seed=seed, stop=stop)
        except TrainingDiverged as error:
            failure = str(error)
        except (OSError, Stopped):
            raise
        except Exception as error:  # a candidate may break anything below; the search goes on without it
            failure = f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return {
            "purpose": purpose,
            "cls": str(losses.cls),
            "box": str(losses.box),
            "cls_weight": losses.cls_weight,
            "box_weight": losses.box_weight,
            "seed": seed,
            "steps": self._trainer.steps(purpose),
            "ap": ap,
            "failure": failure,
            "metrics": metrics,
            "seconds": time.monotonic() - started,
        }

    def _key(self, losses: LossPair, purpose: str, seed: int) -> str:
        pair = [to_authors(losses.cls), losses.cls_weight, to_authors(losses.box), losses.box_weight]
        return json.dumps([purpose, seed, self._trainer.steps(purpose), *pair])
