"""Trains one detector under any losses: once, or for each purpose of a search with one compiled step."""

import dataclasses
import hashlib
import json
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cse_jax.printing import to_authors
from cse_jax.trials import LossPair, Stopped, TrainingDiverged
from detectors import checkpoint
from detectors.data.datasets import Dataset
from detectors.data.pipeline import Source, one_image_per_category, train_batches
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
        partial = folder.with_suffix(".partial")
        state = fit(
            self._compiled,
            DetectionLosses(term(losses.cls, losses.cls_weight), term(losses.box, losses.box_weight)),
            train_source,
            steps=self.steps(purpose),
            seed=seed,
            batch_size=self._batch_size,
            flip=self._flip,
            partial=partial,
            save_every=self._schedule.save_every,
            stop=stop,
        )
        if purpose == "final":
            checkpoint.save(folder, state.model)
        metrics = self._evaluate(state, eval_source)
        checkpoint.delete(partial)
        described = metrics._asdict() | ({"checkpoint": folder.name} if purpose == "final" else {})
        return metrics.ap, jax.tree.map(lambda v: v if isinstance(v, str) or np.isfinite(v) else None, described)

    def _evaluate(self, state: TrainState, source: Source) -> Metrics:
        def predict(image, image_size):
            return self._compiled.predict(state, image, image_size)

        return evaluate_detector(predict, source, batch_size=self._batch_size)

    def _name(self, losses: LossPair, purpose: str, seed: int) -> str:
        pair = [to_authors(losses.cls), losses.cls_weight, to_authors(losses.box), losses.box_weight]
        digest = hashlib.blake2b(json.dumps(pair).encode(), digest_size=6).hexdigest()
        return f"{purpose}-seed{seed}-{digest}"


def fit(
    compiled: Compiled,
    losses: DetectionLosses,
    source: Source,
    *,
    steps: int,
    seed: int,
    batch_size: int,
    flip: float,
    partial: pathlib.Path,
    save_every: int = 0,
    workers: int = 0,
    stop: threading.Event | None = None,
    progress: Callable[[int, dict[str, Any]], None] | None = None,
    evaluate_every: int = 0,
    evaluate: Callable[[int, TrainState], None] | None = None,
) -> TrainState:
    """Trains from scratch, or from the checkpoint of the same training that was interrupted.

    The batch of a step is a function of the step, so a checkpoint says where in the data a training was.

    Args:
      compiled: the detector's functions.
      losses: of its head.
      source: images to train on.
      steps: length of the training.
      seed: of weights, batches and sampling.
      batch_size: images per step.
      flip: probability of mirroring an image.
      partial: where the state is saved meanwhile; the caller deletes it when it has what it wants.
      save_every: steps between saves; 0 for none.
      workers: processes that make batches; 0 for threads of this one.
      stop: set by another thread to give the training up.
      progress: called with the steps done and the last one's metrics, at least every ``CHECK_EVERY`` steps;
        ``data_seconds`` is what a step waited for its batch on average.
      evaluate_every: steps between calls of ``evaluate``; 0 for none.
      evaluate: called with the steps done and the state; not called again for what was done before an interruption.

    Raises:
      TrainingDiverged: loss or gradient became non-finite; names the step and the parts of the loss.
      Stopped: ``stop`` was set.
    """
    state = compiled.init(seed)
    if checkpoint.exists(partial):
        state = checkpoint.restore(partial, state)
    start = int(state.step)
    batches = train_batches(
        source, batch_size=batch_size, seed=seed, flip=flip, start_step=start, workers=workers if start < steps else 0
    )
    length, seed = jnp.int32(steps), jnp.int32(seed)
    unseen: list[dict[str, jax.Array]] = []
    waited = 0.0
    try:
        for done in range(start + 1, steps + 1):
            if stop is not None and stop.is_set():
                raise Stopped(f"stopped at step {done - 1}")
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            state, metrics = compiled.step(state, batch, losses, length, seed)
            unseen.append(metrics)
            save = save_every and done % save_every == 0 and done < steps
            look = evaluate_every and done % evaluate_every == 0
            if len(unseen) == CHECK_EVERY or save or look or done == steps:
                last = _finite(unseen, done) | {"data_seconds": waited / len(unseen)}
                unseen, waited = [], 0.0
                if progress:
                    progress(done, last)
            if look and evaluate:
                evaluate(done, state)
            if save:
                checkpoint.save(partial, state)
    finally:
        if hasattr(batches, "close"):
            batches.close()
    return state


def _finite(metrics: list[dict[str, jax.Array]], steps_done: int) -> dict[str, Any]:
    """The last of the steps' metrics; raises if a step diverged."""
    fetched = jax.device_get(metrics)
    for ago, values in zip(range(len(fetched) - 1, -1, -1), fetched, strict=True):
        if not values["finite"]:
            parts = ", ".join(f"{name} {values[name]:.4g}" for name in sorted(values) if name != "finite")
            raise TrainingDiverged(f"not finite at step {steps_done - ago}: {parts}")
    return fetched[-1]
