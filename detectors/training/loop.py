"""The steps of a training, from scratch or resumed where it was interrupted: of one detector, or of many together."""

import collections
import contextlib
import itertools
import pathlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cse_jax.search.trainer import Stopped, TrainingDiverged
from detectors import checkpoint
from detectors.data.pipeline import Source, train_batches
from detectors.losses import DetectionLosses
from detectors.parallel import share
from detectors.structures import Batch
from detectors.training.batched import JittedMany, ManyState
from detectors.training.step import JittedDetector, TrainState

CHECK_EVERY = 25  # steps between looks at the losses: a look waits for the device
_AHEAD = 8  # steps that are given to the device before their figures are looked at


def fit(
    compiled: JittedDetector,
    losses: DetectionLosses,
    source: Source,
    *,
    steps: int,
    seed: int,
    batch_size: int,
    flip: float,
    partial: pathlib.Path,
    until: int | None = None,
    save_every: int = 0,
    workers: int = 0,
    stop: threading.Event | None = None,
    progress: Callable[[int, dict[str, Any]], None] | None = None,
    evaluate_every: int = 0,
    evaluate: Callable[[int, TrainState], None] | None = None,
) -> TrainState:
    """Trains from scratch, or resumes the same training from the checkpoint that an interruption left.

    The batch of a step is a function of the step, so a checkpoint tells which batches are left.

    Args:
      compiled: the detector's functions.
      losses: losses of its head.
      source: images to train on.
      steps: length of the training, for which the learning rate is scheduled.
      seed: seed of weights, batches and sampling.
      batch_size: images per step.
      flip: probability of mirroring an image.
      partial: checkpoint in which the state is saved during the training; the caller deletes it when done.
      until: step after which the training pauses and leaves its state in ``partial``; ``steps`` by default.
      save_every: steps between saves; 0 for none.
      workers: processes that make batches; 0 for threads of this one.
      stop: another thread sets it to stop the training.
      progress: called with the steps done and the last one's metrics, at least every ``CHECK_EVERY`` steps;
        ``data_seconds`` is how long a step waited for its batch on average.
      evaluate_every: steps between calls of ``evaluate``; 0 for none.
      evaluate: called with the steps done and the state; not called again for steps before an interruption.

    Raises:
      TrainingDiverged: loss or gradient became non-finite; names the step and the parts of the loss.
      Stopped: ``stop`` was set.
    """
    state = compiled.init(seed)
    if checkpoint.exists(partial):
        state = checkpoint.restore(partial, state)
    start, end = int(state.step), steps if until is None else until
    length, key_seed = jnp.int32(steps), jnp.int32(seed)
    unseen: list[dict[str, jax.Array]] = []
    waited = 0.0
    options = dict(batch_size=batch_size, seed=seed, flip=flip, share=share())
    with placed_batches(source, compiled.place, start=start, end=end, workers=workers, **options) as batches:
        for done in range(start + 1, end + 1):
            if stop is not None and stop.is_set():
                raise Stopped(f"stopped at step {done - 1}")
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            state, metrics = compiled.step(state, batch, losses, length, key_seed)
            unseen.append(metrics)
            save = done < steps and (done == end or (save_every and done % save_every == 0))
            look = evaluate_every and done % evaluate_every == 0
            if len(unseen) == CHECK_EVERY or save or look or done == end:
                last = _finite(unseen, done) | {"data_seconds": waited / len(unseen)}
                unseen, waited = [], 0.0
                if progress:
                    progress(done, last)
            if look and evaluate:
                evaluate(done, state)
            if save:
                checkpoint.save(partial, state)
    return state


def fit_many(
    many: JittedMany,
    state: ManyState,
    losses: DetectionLosses,
    source: Source,
    *,
    until: int,
    steps: int,
    seed: int,
    stop: threading.Event,
    evaluate_at: Collection[int] = (),
    evaluate: Callable[[int, ManyState], None] | None = None,
    **options: Any,
) -> tuple[ManyState, dict[int, int]]:
    """Trains many detectors side by side up to a step; an interruption loses what was done.

    Args:
      many: the detectors' functions.
      state: where they are.
      losses: of each, along the first axis.
      source, steps, seed: as of ``fit``.
      until: step at which to end.
      stop: another thread sets it to stop the training.
      evaluate_at: steps after which ``evaluate`` is called with the steps done and the state.
      **options: of ``placed_batches``, but for the seed.

    Returns:
      The state, and by its place of each detector that diverged the first step of which loss or gradient was not
      finite; the others are trained as if it were not there.

    Raises:
      Stopped: ``stop`` was set.
    """
    start, diverged = int(state.step), dict[int, int]()
    running: collections.deque[tuple[int, jax.Array]] = collections.deque()
    with placed_batches(source, many.place, start=start, end=until, seed=seed, **options) as batches:
        for done in range(start + 1, until + 1):
            if stop.is_set():
                raise Stopped(f"stopped at step {done - 1}")
            state, metrics = many.step(state, next(batches), losses, steps, seed)
            running.append((done, metrics["finite"]))
            while len(running) > (_AHEAD if done < until else 0):
                step, finite = running.popleft()
                for k in np.flatnonzero(~np.asarray(finite)).tolist():
                    diverged.setdefault(k, step)
            if evaluate and done in evaluate_at:
                evaluate(done, state)
    return state, diverged


@contextlib.contextmanager
def placed_batches(
    source: Source,
    place: Callable[[Batch], Batch],
    *,
    start: int,
    end: int,
    workers: int = 0,
    **options: Any,
) -> Iterator[Iterator[Batch]]:
    """The batches of the steps from ``start`` to ``end``, on the device; each is on its way there one step early.

    Args:
      source: images to train on.
      place: begins to copy a batch to the device.
      start, end: steps done before and after.
      workers: as for ``train_batches``.
      **options: of ``train_batches``.
    """
    batches = train_batches(source, start_step=start, workers=workers if start < end else 0, **options)
    try:
        yield _one_ahead(map(place, itertools.islice(batches, max(end - start, 0))))
    finally:
        close = getattr(batches, "close", None)  # with workers
        if close:
            close()


def _one_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    ahead = next(batches, None)
    while ahead is not None:
        current, ahead = ahead, next(batches, None)
        yield current


def _finite(metrics: list[dict[str, jax.Array]], steps_done: int) -> dict[str, Any]:
    """The last of the steps' metrics; raises if a step diverged."""
    fetched = jax.device_get(metrics)
    for ago, values in zip(range(len(fetched) - 1, -1, -1), fetched, strict=True):
        if not values["finite"]:
            parts = ", ".join(f"{name} {values[name]:.4g}" for name in sorted(values) if name != "finite")
            raise TrainingDiverged(f"not finite at step {steps_done - ago}: {parts}")
    return fetched[-1]
