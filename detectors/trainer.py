"""Trains one detector under any losses, for each purpose of a search, with one compiled step."""

import dataclasses
import hashlib
import json
import pathlib
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cse_jax.printing import to_authors
from cse_jax.trials import LossPair, Stopped, TrainingDiverged
from detectors import checkpoint
from detectors.data.pipeline import Dataset, Source, one_image_per_category, train_batches
from detectors.evaluation import Metrics, evaluate_detector
from detectors.losses import DetectionLosses, term
from detectors.training import Compiled, TrainState

CHECK_EVERY = 25  # steps between looks at the losses: a look waits for the device


@dataclasses.dataclass
class ScheduleConfig:
    """Length of the trainings of a search, in steps.

    Attributes:
      verify: on one image per category (model optimization simulation).
      proxy: on the train split, scored on the select split.
      final: on the train split, scored on the test split.
      save_every: steps between checkpoints from which an interrupted training goes on; 0 for none.
    """

    verify: int = 60
    proxy: int = 300
    final: int = 300
    save_every: int = 0


class DetectorTrainer:
    """A ``cse_jax.trials.Trainer`` for a detector and a data set."""

    def __init__(
        self,
        compiled: Compiled,
        data: Dataset,
        schedule: ScheduleConfig,
        *,
        batch_size: int,
        flip: float,
        seed: int,
        checkpoints: pathlib.Path,
    ) -> None:
        """Prepares trainings.

        Args:
          compiled: the detector's functions.
          data: the splits.
          schedule: lengths.
          batch_size: images per step.
          flip: probability of mirroring a training image.
          seed: of the choice of one image per category.
          checkpoints: folder for final models and interrupted trainings.
        """
        self._compiled, self._schedule = compiled, schedule
        self._batch_size, self._flip, self._checkpoints = batch_size, flip, checkpoints
        one_each = one_image_per_category(data.train, seed)
        self._splits: dict[str, tuple[Source, Source]] = {
            "verify": (one_each, one_each),
            "proxy": (data.train, data.select),
            "final": (data.train, data.test),
        }

    def steps(self, purpose: str) -> int:
        """Training steps for a purpose."""
        return getattr(self._schedule, purpose)

    def train(
        self, losses: LossPair, *, purpose: str, seed: int, stop: threading.Event
    ) -> tuple[float, dict[str, Any]]:
        """Trains from scratch, or from the last checkpoint of this very training, and evaluates.

        Returns:
          AP on the split of the purpose, and further metrics.

        Raises:
          TrainingDiverged: loss or gradient became non-finite; names the step and the parts of the loss.
          Stopped: ``stop`` was set meanwhile.
        """
        train_source, eval_source = self._splits[purpose]
        folder = self._checkpoints / self._name(losses, purpose, seed)
        state = self._fit(losses, train_source, self.steps(purpose), seed, folder.with_suffix(".partial"), stop)
        if purpose == "final":
            checkpoint.save(folder, (state.params, state.rest))
        metrics = self._evaluate(state, eval_source)
        checkpoint.delete(folder.with_suffix(".partial"))
        described = metrics._asdict() | ({"checkpoint": folder.name} if purpose == "final" else {})
        return metrics.ap, jax.tree.map(lambda v: v if isinstance(v, str) or np.isfinite(v) else None, described)

    def _fit(
        self, losses: LossPair, source: Source, steps: int, seed: int, partial: pathlib.Path, stop: threading.Event
    ) -> TrainState:
        state = self._compiled.init(seed)
        if checkpoint.exists(partial):
            state = checkpoint.restore(partial, state)
        as_data = DetectionLosses(term(losses.cls, losses.cls_weight), term(losses.box, losses.box_weight))
        start = int(state.step)
        batches = train_batches(source, batch_size=self._batch_size, seed=seed, flip=self._flip, start_step=start)
        length, seed = jnp.int32(steps), jnp.int32(seed)
        unseen: list[dict[str, jax.Array]] = []
        for step in range(start, steps):
            if stop.is_set():
                raise Stopped(f"stopped at step {step}")
            state, metrics = self._compiled.step(state, next(batches), as_data, length, seed)
            unseen.append(metrics)
            last = step + 1 == steps
            if len(unseen) == CHECK_EVERY or last:
                _raise_if_diverged(unseen, step + 1)
                unseen = []
            if self._schedule.save_every and (step + 1) % self._schedule.save_every == 0 and not last:
                _raise_if_diverged(unseen, step + 1)
                checkpoint.save(partial, state)
        return state

    def _evaluate(self, state: TrainState, source: Source) -> Metrics:
        def predict(image, image_size):
            return self._compiled.predict(state, image, image_size)

        return evaluate_detector(predict, source, batch_size=self._batch_size)

    def _name(self, losses: LossPair, purpose: str, seed: int) -> str:
        pair = [to_authors(losses.cls), losses.cls_weight, to_authors(losses.box), losses.box_weight]
        digest = hashlib.blake2b(json.dumps(pair).encode(), digest_size=6).hexdigest()
        return f"{purpose}-seed{seed}-{digest}"


def _raise_if_diverged(metrics: list[dict[str, jax.Array]], steps_done: int) -> None:
    for ago, values in zip(range(len(metrics) - 1, -1, -1), jax.device_get(metrics), strict=True):
        if not values["finite"]:
            parts = ", ".join(f"{name} {values[name]:.4g}" for name in sorted(values) if name != "finite")
            raise TrainingDiverged(f"not finite at step {steps_done - ago}: {parts}")
