"""Trainings of a detector under a pair of losses, remembered in the ledger so that none is run twice."""

import dataclasses
import json
import math
import time
from typing import Any, Protocol

from cse_jax.expression import Expression
from cse_jax.ledger import Ledger, LedgerError
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

    def train(self, losses: LossPair, *, purpose: str, seed: int) -> tuple[float, dict[str, Any]]:
        """Trains and returns AP and metrics; raises ``TrainingDiverged`` if the loss becomes non-finite."""


class TrainingDiverged(RuntimeError):
    """The candidate's loss or gradient became non-finite."""


class Trials:
    """Runs trainings, or recalls them."""

    def __init__(self, trainer: Trainer, ledger: Ledger, monitor: Monitor) -> None:
        self._trainer, self._ledger, self._monitor = trainer, ledger, monitor

    def run(
        self, losses: LossPair, *, purpose: str, seed: int, what: str = "training", number: int = 1, of: int = 1
    ) -> Outcome:
        """Trains under the losses unless the ledger has the result.

        A training that diverges or raises is recorded with its reason and returned with AP NaN.

        Args:
          losses: the losses.
          purpose: one of the trainer's purposes.
          seed: of initialisation and batches.
          what, number, of: shown while it runs: what this training is for, and its place in a series.
        """
        key = self._key(losses, purpose, seed)
        row = self._ledger.training(key)
        if row is None:
            self._monitor.activity(what, number, of)
            row = self._train(losses, purpose, seed) | {"key": key}
            self._ledger.record_training(row)
        self._monitor.trained(purpose, row["seconds"])
        ap = math.nan if row["ap"] is None else row["ap"]
        return Outcome(ap, row["metrics"], row["failure"], row["seconds"])

    def _train(self, losses: LossPair, purpose: str, seed: int) -> dict[str, Any]:
        started = time.monotonic()
        ap, metrics, failure = None, {}, ""
        try:
            ap, metrics = self._trainer.train(losses, purpose=purpose, seed=seed)
        except TrainingDiverged as error:
            failure = str(error)
        except (OSError, LedgerError):
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
