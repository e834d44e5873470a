"""What a search asks of whatever trains detectors for it."""

import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from cse_jax.errors import UserError
from cse_jax.search.task import LossPair, Task

Purpose = Literal["probe", "overfit", "proxy", "final", "table"]


class Training(NamedTuple):
    """What a trainer says of one training.

    Attributes:
      ap: average precision (COCO, IoU .50:.95) on the split of the purpose; None if the training failed.
      metrics: further figures, by name.
      failure: empty, or why the loss could not be trained: it diverged, or a number was not finite.
    """

    ap: float | None
    metrics: dict[str, Any] = {}
    failure: str = ""


@runtime_checkable
class Trainer(Protocol):
    """Trains one detector under any losses; ``detectors.training.search_trainer`` has one.

    The purposes of trainings are ``"probe"`` (output layers on fixed features), ``"overfit"`` (one image per category,
    scored on the same images), ``"proxy"`` (a short training), ``"final"``, and ``"table"`` (for the table of trained
    losses).  The metrics of the last have a ``curve`` of (step, AP on the select split, AP on the test split) at each
    horizon; its AP is that on the select split at the end.
    """

    @property
    def task(self) -> Task:
        """What the search must know of the detector."""
        ...

    @property
    def shared_start(self) -> bool:
        """Whether whole trainings begin with what ``prepare`` makes."""
        ...

    def horizons(self, purpose: Purpose) -> tuple[int, ...]:
        """Steps at which a training for a purpose is scored, ascending; the last is its end."""
        ...

    def at_once(self, purpose: Purpose) -> int:
        """How many losses ``train`` should be given for a purpose."""
        ...

    def train(
        self, losses: Sequence[LossPair], *, purpose: Purpose, seed: int, horizon: int, stop: threading.Event
    ) -> list[Training]:
        """Trains under each of the losses up to a horizon, and scores; may be called from several threads at once.

        A training that was brought to an earlier horizon resumes there if what it left is still there.  A loss that
        diverges gets a ``Training`` with the reason.  Everything else that goes wrong is raised.

        Raises:
          Stopped: ``stop`` was set meanwhile.
          TrainingLost: a worker in another process, which trained them, has died.
          OutOfMemory: the losses don't fit the device's memory together.
        """
        ...

    def prepare(self) -> None:
        """Makes what probes and gradients need, unless it is there: a detector that the default losses have trained.

        With a shared start that is a training of its own.  Otherwise it brings the default losses' proxy training with
        the first seed to its end, from where it was paused.
        """
        ...

    def forget(self, losses: LossPair, *, purpose: Purpose, seed: int) -> None:
        """Drops what is kept of a training that will not be resumed."""
        ...

    def gradient_norms(self, losses: Sequence[LossPair]) -> list[tuple[float, float]]:
        """Norms of the gradients of the classification and the box loss in a trained head, on a calibration batch."""
        ...


class TrainingDiverged(RuntimeError):
    """A loss or its gradient became non-finite."""


class OutOfMemory(UserError, RuntimeError):
    """The device's memory is too small for a training, whatever the loss."""


class Stopped(RuntimeError):
    """The training was given up because the search is being interrupted, or because it took too long."""


class TrainingLost(RuntimeError):
    """The worker that trained has died, or was given up; the losses are not to blame unless it happens again."""


class ProcessLost(UserError, RuntimeError):
    """Another process of those that train together has ended before the work was done; the message says which."""
