"""Trains one detector for every purpose of a search, with steps that are compiled once."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import threading
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cse_jax.language.expression import to_authors
from cse_jax.search.trials import LossPair, Stopped, Training, TrainingDiverged
from detectors import checkpoint
from detectors.data.datasets import Dataset
from detectors.data.pipeline import Source, one_image_per_category, train_batches
from detectors.evaluation.coco import Metrics, evaluate_detector
from detectors.losses import DetectionLosses, term
from detectors.training.batched import JittedMany, ManyState, evaluate_many, fitting_count, jit_many, stack_losses
from detectors.training.loop import fit
from detectors.training.step import JittedDetector, TrainConfig, TrainState


@dataclasses.dataclass
class ScheduleConfig:
    """Length of the trainings of a search, in steps.

    Attributes:
      probe: steps at which heads on fixed features, trained on one image per category, are scored; the last is the end.
      probe_images: of the select split, on which they are scored.
      probe_at_once: heads trained side by side.
      verify: of whole detectors on one image per category (model optimization simulation).
      proxy: steps at which trainings on the train split are scored on the select split; the last is the end.
      final: on the train split, scored on the test split.
      at_once: whole detectors trained side by side; 0 for one on a CPU, and elsewhere for as many as fit the memory and
        make it faster.
      save_every: steps between checkpoints from which an interrupted training goes on; 0 for none.
    """

    probe: tuple[int, ...] = (30, 60)
    probe_images: int = 64
    probe_at_once: int = 32
    verify: int = 60
    proxy: tuple[int, ...] = (120, 300)
    final: int = 300
    at_once: int = 0
    save_every: int = 0


class DetectorTrainer:
    """A ``cse_jax.search.run.trials.Trainer`` for a detector and a data set."""

    def __init__(
        self,
        compiled: JittedDetector,
        build: Callable[[nnx.Rngs], nnx.Module],
        config: TrainConfig,
        data: Dataset,
        schedule: ScheduleConfig,
        *,
        is_output: Callable[[tuple], bool],
        default: LossPair,
        flip: float,
        seed: int,
        checkpoints: pathlib.Path,
    ) -> None:
        """Prepares trainings.

        Args:
          compiled: the detector's functions; ``init`` says what trainings start from.
          build: makes the detector from random numbers.
          config: the optimisation.
          data: the splits.
          schedule: lengths.
          is_output: which parameters are trained on fixed features (``Detector.is_output``).
          default: the losses whose proxy training makes the fixed features.
          flip: probability of mirroring a training image.
          seed: of the choice of one image per category, and of the features.
          checkpoints: folder for final models, the features and interrupted trainings.
        """
        self._compiled, self._config, self._schedule = compiled, config, schedule
        self._default, self._flip, self._seed, self._checkpoints = default, flip, seed, checkpoints
        self._heads = jit_many(build, config, own=is_output)
        self._whole = jit_many(build, config)
        self._lock = threading.Lock()
        self._kept: dict[tuple, tuple] = {}  # states of trainings side by side between their horizons
        one_each = one_image_per_category(data.train, seed)
        self._splits: dict[str, tuple[Source, Source]] = {
            "probe": (one_each, data.select.subset(range(min(schedule.probe_images, len(data.select))))),
            "verify": (one_each, one_each),
            "proxy": (data.train, data.select),
            "final": (data.train, data.test),
        }

    def horizons(self, purpose: str) -> tuple[int, ...]:
        """Steps at which a training for a purpose is scored."""
        steps = getattr(self._schedule, purpose)
        return steps if isinstance(steps, tuple) else (steps,)

    def at_once(self, purpose: str) -> int:
        """How many losses are trained side by side for a purpose."""
        return self._schedule.probe_at_once if purpose == "probe" else self._whole_at_once

    def train(
        self, losses: Sequence[LossPair], *, purpose: str, seed: int, horizon: int, stop: threading.Event
    ) -> list[Training]:
        """Trains from scratch, or from where this very training was paused or interrupted, and evaluates.

        Raises:
          Stopped: ``stop`` was set meanwhile.
        """
        if purpose == "probe":
            features, fresh = self._features(stop), self._compiled.init(seed).model
            many, start = self._heads, functools.partial(self._heads.init, fresh, common=features)
        elif len(losses) == 1 or self.at_once(purpose) == 1:
            return [self._train_one(each, purpose, seed, horizon, stop) for each in losses]
        else:
            many, start = self._whole, functools.partial(self._whole.init, self._compiled.init(seed).model)
        return self._train_many(many, start, losses, purpose, seed, horizon, stop)

    def forget(self, losses: LossPair, *, purpose: str, seed: int) -> None:
        """Drops the state of a paused training."""
        self._kept.pop((purpose, losses, seed), None)
        checkpoint.delete(self._partial(losses, purpose, seed))

    def gradient_norms(self, losses: Sequence[LossPair]) -> list[tuple[float, float]]:
        """Norms of both losses' gradients in the output layers that the default losses have trained, on one batch."""
        features = self._features(threading.Event())
        batch = next(self._batches("proxy", self._seed, 0))
        count, norms = self._schedule.probe_at_once, []
        for start in range(0, len(losses), count):
            chunk = _padded(losses[start : start + count], count)
            state = self._heads.init(features, count)
            norms += self._heads.gradient(state, batch, chunk, jnp.int32(self._seed)).tolist()[: len(losses) - start]
        return [tuple(pair) for pair in norms]

    def _train_one(self, losses: LossPair, purpose: str, seed: int, horizon: int, stop: threading.Event) -> Training:
        train_source, eval_source = self._splits[purpose]
        partial, steps = self._partial(losses, purpose, seed), self.horizons(purpose)[-1]
        try:
            state = fit(
                self._compiled,
                _terms(losses),
                train_source,
                steps=steps,
                seed=seed,
                batch_size=self._config.batch_size,
                flip=self._flip,
                partial=partial,
                until=horizon,
                save_every=self._schedule.save_every,
                stop=stop,
            )
        except TrainingDiverged as error:
            checkpoint.delete(partial)
            return Training(None, failure=str(error))
        folder = partial.with_suffix("")
        if purpose == "final":
            checkpoint.save(folder, state.model)
        if self._makes_features(losses, purpose, seed, horizon):
            checkpoint.save(self._features_folder, state.model)
        metrics = self._evaluate(state, eval_source)
        if horizon == steps:
            checkpoint.delete(partial)
        described = _plain(metrics) | ({"checkpoint": folder.name} if purpose == "final" else {})
        return Training(metrics.ap, described)

    def _train_many(
        self,
        many: JittedMany,
        start: Callable[[int], ManyState],
        losses: Sequence[LossPair],
        purpose: str,
        seed: int,
        horizon: int,
        stop: threading.Event,
    ) -> list[Training]:
        """Trains side by side; what is paused is kept in memory, and begins anew after an interruption."""
        count, steps = self.at_once(purpose), self.horizons(purpose)[-1]
        names = [(purpose, pair, seed) for pair in losses]
        state = start(count)
        kept = [self._kept.get(name) for name in names]
        if None not in kept and len({step for step, _ in kept}) == 1:
            own = jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *_filled([own for _, own in kept], count))
            state = state._replace(own=own[0], opt_state=own[1], step=jnp.int32(kept[0][0]))
        chunk, failures = _padded(losses, count), [""] * len(losses)
        first = int(state.step)
        batches = self._batches(purpose, seed, first)
        for done in range(first + 1, horizon + 1):
            if stop.is_set():
                raise Stopped(f"stopped at step {done - 1}")
            state, metrics = many.step(state, next(batches), chunk, steps, seed)
            finite = np.asarray(metrics["finite"])
            for k in np.flatnonzero(~finite[: len(losses)]):
                failures[k] = failures[k] or f"not finite at step {done}"
        scores = evaluate_many(
            functools.partial(many.predict, state), self._splits[purpose][1], self._config.batch_size
        )
        if purpose == "final":
            self._save_models(state, losses, seed, failures)
        for k, name in enumerate(names):
            if horizon < steps and not failures[k]:
                own = jax.tree.map(lambda a, k=k: np.asarray(a[k]), (state.own, state.opt_state))
                self._kept[name] = horizon, own
            else:
                self._kept.pop(name, None)
        return [
            Training(None, failure=failure or "a detection is not finite")
            if failure or score is None
            else Training(score.ap, _plain(score))
            for failure, score in zip(failures, scores[: len(losses)], strict=True)
        ]

    def _save_models(self, state: ManyState, losses: Sequence[LossPair], seed: int, failures: Sequence[str]) -> None:
        for k, pair in enumerate(losses):
            if not failures[k]:
                params = nnx.merge_state(jax.tree.map(lambda a, k=k: a[k], state.own), state.common[0])
                checkpoint.save(self._partial(pair, "final", seed).with_suffix(""), (params, state.common[1]))

    @functools.cached_property
    def _whole_at_once(self) -> int:
        if self._schedule.at_once:
            return self._schedule.at_once
        batch = next(self._batches("proxy", self._seed, 0))
        return fitting_count(self._whole, self._compiled.init(self._seed).model, batch, _terms(self._default))

    def _batches(self, purpose: str, seed: int, start: int):
        source = self._splits[purpose][0]
        return train_batches(source, batch_size=self._config.batch_size, seed=seed, flip=self._flip, start_step=start)

    @property
    def _features_folder(self) -> pathlib.Path:
        return self._checkpoints / "features"

    def _makes_features(self, losses: LossPair, purpose: str, seed: int, horizon: int) -> bool:
        return (losses, purpose, seed, horizon) == (self._default, "proxy", self._seed, self.horizons("proxy")[-1])

    def _features(self, stop: threading.Event) -> tuple[nnx.State, nnx.State]:
        """The model that the default losses' proxy training has left."""
        with self._lock:
            if not checkpoint.exists(self._features_folder):
                self._train_one(self._default, "proxy", self._seed, self.horizons("proxy")[-1], stop)
            return self._restored

    @functools.cached_property
    def _restored(self) -> tuple[nnx.State, nnx.State]:
        return jax.device_put(checkpoint.restore(self._features_folder, self._compiled.init(self._seed).model))

    def _evaluate(self, state: TrainState, source: Source) -> Metrics:
        def predict(image, image_size):
            return self._compiled.predict(state, image, image_size)

        return evaluate_detector(predict, source, batch_size=self._config.batch_size)

    def _partial(self, losses: LossPair, purpose: str, seed: int) -> pathlib.Path:
        pair = [to_authors(losses.cls), losses.cls_weight, to_authors(losses.box), losses.box_weight]
        digest = hashlib.blake2b(json.dumps(pair).encode(), digest_size=6).hexdigest()
        return self._checkpoints / f"{purpose}-seed{seed}-{digest}.partial"


def _terms(losses: LossPair) -> DetectionLosses:
    return DetectionLosses(term(losses.cls, losses.cls_weight), term(losses.box, losses.box_weight))


def _filled(items: Sequence, count: int) -> list:
    """As many as ``count``, the last one repeated."""
    return [*items, *[items[-1]] * (count - len(items))]


def _padded(losses: Sequence[LossPair], count: int) -> DetectionLosses:
    return stack_losses([_terms(pair) for pair in _filled(losses, count)])


def _plain(metrics: Metrics) -> dict:
    """Figures for JSON, None where there is none."""
    return jax.tree.map(lambda v: v if np.isfinite(v) else None, metrics._asdict())
