"""Trains one detector for every purpose of a search, with steps that are compiled once."""

import functools
import hashlib
import json
import math
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cse_jax.search.task import LossPair, Task
from cse_jax.search.trainer import OutOfMemory, Purpose, Training, TrainingDiverged
from detectors import checkpoint
from detectors.data.datasets import Dataset
from detectors.data.pipeline import Source, one_image_per_category, train_batches
from detectors.evaluation.coco import Metrics, NotFinite, detect, evaluate_detector, ground_truth
from detectors.evaluation.resampling import Matches, all_matches
from detectors.losses import DetectionLosses, as_term
from detectors.models.detector import Detector
from detectors.parallel import row
from detectors.training.batched import JittedMany, ManyState, evaluate_many, jit_many, stack_losses
from detectors.training.fitting import remembered_count
from detectors.training.loop import fit, fit_many
from detectors.training.pausing import filled, pause, resumed
from detectors.training.remembered import remembered
from detectors.training.schedule import ScheduleConfig
from detectors.training.starts import Starts
from detectors.training.step import JittedDetector, TrainConfig, TrainState

_NOT_FINITE = "a detection is not finite"
_Purpose = Purpose | Literal["start"]  # the training with whose features others begin


def task_of(detector: type[Detector]) -> Task:
    """What a search must know of a detector."""
    return Task(detector.cls_space, detector.box_units, detector.box_weight)


class DetectorTrainer:
    """A ``cse_jax.search.trainer.Trainer`` for a detector and a data set."""

    def __init__(
        self,
        compiled: JittedDetector,
        build: Callable[[nnx.Rngs], Detector],
        config: TrainConfig,
        data: Dataset,
        schedule: ScheduleConfig,
        *,
        is_output: Callable[[tuple], bool],
        task: Task,
        flip: float,
        workers: int = 0,
        seed: int,
        own_starts: bool = False,
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
          task: what the search must know of the detector; its default losses make the shared start and the features.
          flip: probability of mirroring a training image.
          workers: processes that decode training images; 0 for threads of this one (``DataConfig.workers``).
          seed: of the choice of one image per category, and of the features.
          own_starts: whether final trainings begin with a shared start of their own seed, not with that of ``seed``.
          checkpoints: folder for final models, the features and interrupted trainings.
        """
        self._compiled, self._build, self._config = compiled, build, config
        self._schedule = schedule
        self.task, self._flip, self._seed, self._checkpoints = task, flip, seed, checkpoints
        self._batching: dict[str, Any] = {"batch_size": config.batch_size, "flip": flip, "workers": workers}
        self._heads = jit_many(build, config, own=is_output)
        self._whole = jit_many(build, config)
        self._starts = Starts(
            compiled,
            shared=self.shared_start,
            seed=seed,
            own=own_starts,
            is_output=is_output,
            folder=checkpoints,
        )
        one_each = one_image_per_category(data.train, seed)
        self._splits: dict[str, tuple[Source, Source]] = {
            "probe": (one_each, data.select.subset(range(min(schedule.probe_images, len(data.select))))),
            "overfit": (one_each, one_each),
            "proxy": (data.train, data.select),
            "final": (data.train, data.test),
            "table": (data.train, data.select),
            "start": (data.train, data.select),
        }
        self._test = data.test

    @property
    def shared_start(self) -> bool:
        """Whether trainings on the train split begin with a detector that the default losses have trained."""
        return self._schedule.start > 0

    def horizons(self, purpose: _Purpose) -> tuple[int, ...]:
        """Steps at which a training for a purpose is scored."""
        steps = getattr(self._schedule, purpose)
        return steps if isinstance(steps, tuple) else (steps,)

    def at_once(self, purpose: Purpose) -> int:
        """How many losses are trained side by side for a purpose, spread over the devices: a multiple of these."""
        count = self._schedule.probe_at_once if purpose == "probe" else self._whole_at_once
        alone = purpose != "probe" and count == 1  # whose batches the devices share instead
        return 1 if alone else -(-count // self._heads.devices) * self._heads.devices

    def train(
        self, losses: Sequence[LossPair], *, purpose: Purpose, seed: int, horizon: int, stop: threading.Event
    ) -> list[Training]:
        """Trains, from the start or from where this very training was paused or interrupted, and evaluates.

        Raises:
          Stopped: ``stop`` was set meanwhile.
          OutOfMemory: the detectors don't fit the device.
        """
        try:
            return self._train(losses, purpose, seed, horizon, stop)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfMemory(
                f"the device's memory is too small for {len(losses)} training(s) at once with batches of "
                f"{self._config.batch_size}: lower --config.schedule.at_once, --config.schedule.probe_at_once or "
                "--config.train.batch_size"
            ) from error

    def _train(
        self, losses: Sequence[LossPair], purpose: Purpose, seed: int, horizon: int, stop: threading.Event
    ) -> list[Training]:
        if self._schedule.start or purpose == "probe":
            of_start = self._starts.of(purpose, seed)
            self._prepare(of_start, stop)
            if failure := self._starts.failure(of_start):
                return [Training(None, failure=failure) for _ in losses]
        if purpose == "probe":
            fresh = self._compiled.init(seed).model
            start = functools.partial(self._heads.init, fresh, common=self._starts.features)
            return self._train_many(self._heads, start, losses, purpose, seed, horizon, stop)
        together = self._side_by_side(losses, purpose, seed)
        found: dict[LossPair, Training] = {}
        if together:
            start = functools.partial(self._whole.init, self._starts.first(purpose, seed).model)
            trained = self._train_many(self._whole, start, together, purpose, seed, horizon, stop)
            found |= zip(together, trained, strict=True)
        found |= {p: self._train_one(p, purpose, seed, horizon, stop) for p in losses if p not in found}
        return [found[pair] for pair in losses]

    def _side_by_side(self, losses: Sequence[LossPair], purpose: Purpose, seed: int) -> list[LossPair]:
        """Which of the losses are trained together: what was paused alone goes on alone, and so does a single one."""
        if self.at_once(purpose) == 1:
            return []
        together = [p for p in losses if p.is_data and not checkpoint.exists(self._partial(p, purpose, seed))]
        alone = len(together) == 1 and not self._paused(together[0], purpose, seed).exists()
        return [] if alone else together

    def prepare(self, stop: threading.Event | None = None) -> None:
        """Trains the default losses for the shared start, or else to the end of the proxy task, and keeps the detector.

        If they diverge nothing is kept, and what needs the detector fails: ``train`` says so.

        Raises:
          Stopped: ``stop`` was set meanwhile.
        """
        self._prepare(self._seed, stop or threading.Event())

    @property
    def features(self) -> tuple[nnx.State, nnx.State]:
        """Parameters and the rest of the prepared detector."""
        self.prepare()
        return self._starts.features

    def _prepare(self, seed: int, stop: threading.Event) -> None:
        """The start of a seed, or the features of the first one."""
        default, purpose = self.task.default, "start" if self.shared_start else "proxy"
        partial = self._partial(default, purpose, seed)
        with self._starts.making(seed, stop) as missing:
            if not missing:
                return
            try:
                state = self._fit(default, purpose, seed, self.horizons(purpose)[-1], stop)
            except TrainingDiverged as error:
                self._starts.fail(seed, f"the training of the default losses that it begins with diverged: {error}")
            else:
                if purpose == "proxy":
                    checkpoint.save(partial, state)
                self._starts.save(seed, state.model)
            if purpose == "start":
                checkpoint.delete(partial)

    def forget(self, losses: LossPair, *, purpose: Purpose, seed: int) -> None:
        """Drops the state of a paused training."""
        self._paused(losses, purpose, seed).unlink(missing_ok=True)
        checkpoint.delete(self._partial(losses, purpose, seed))

    def gradient_norms(self, losses: Sequence[LossPair]) -> list[tuple[float, float]]:
        """Norms of both losses' gradients in the output layers that the default losses have trained, on one batch."""
        features = self.features
        batch = next(self._batches("proxy", self._seed, 0))
        count, norms = self.at_once("probe"), []
        for start in range(0, len(losses), count):
            chunk = self._padded(losses[start : start + count], count)
            state = self._heads.init(features, count)
            norms += self._heads.gradient(state, batch, chunk, jnp.int32(self._seed)).tolist()[: len(losses) - start]
        return [tuple(pair) for pair in norms]

    def matches(self, losses: LossPair, *, seed: int) -> list[Matches]:
        """Which objects of the test split a final training's model finds, by category.

        Raises:
          CheckpointError: it has no model.
        """
        state, source = self._compiled.init(self._seed), self._splits["final"][1]
        params, rest = checkpoint.restore(self._partial(losses, "final", seed).with_suffix(""), state.model)
        predict = functools.partial(self._compiled.predict, state._replace(params=params, rest=rest, ema=None))
        found = detect(predict, source, batch_size=self._config.batch_size, masks=False)
        return all_matches(found, ground_truth(source.annotations), source.categories)

    def _fit(
        self,
        losses: LossPair,
        purpose: _Purpose,
        seed: int,
        horizon: int,
        stop: threading.Event,
        **evaluation: Any,
    ) -> TrainState:
        """Trains one detector up to a horizon, from where it was paused or interrupted."""
        return fit(
            self._compiled._replace(init=functools.partial(self._starts.first, purpose)),
            self._terms(losses),
            self._splits[purpose][0],
            steps=self.horizons(purpose)[-1],
            seed=seed,
            **self._batching,
            partial=self._partial(losses, purpose, seed),
            until=horizon,
            save_every=0 if purpose == "table" else self._schedule.save_every,  # its curve is in no checkpoint
            stop=stop,
            **evaluation,
        )

    def _train_one(
        self, losses: LossPair, purpose: Purpose, seed: int, horizon: int, stop: threading.Event
    ) -> Training:
        partial = self._partial(losses, purpose, seed)
        horizons = self.horizons(purpose)
        curve: list[tuple[int, float, float]] = []

        def score(step: int, state: TrainState) -> None:
            if step in horizons:
                select, test = (self._evaluate(state, split).ap for split in (self._splits[purpose][1], self._test))
                curve.append((step, select, test))

        evaluation = {"evaluate_every": math.gcd(*horizons), "evaluate": score} if purpose == "table" else {}
        try:
            state = self._fit(losses, purpose, seed, horizon, stop, **evaluation)
            metrics = self._evaluate(state, self._splits[purpose][1]) if purpose != "table" else None
        except (TrainingDiverged, NotFinite) as error:
            self.forget(losses, purpose=purpose, seed=seed)
            return Training(None, failure=_NOT_FINITE if isinstance(error, NotFinite) else str(error))
        if metrics is None:
            self.forget(losses, purpose=purpose, seed=seed)
            return Training(curve[-1][1], {"curve": curve})
        folder = partial.with_suffix("")
        if purpose == "final":
            checkpoint.save(folder, state.model)
        if horizon == horizons[-1]:
            self.forget(losses, purpose=purpose, seed=seed)
        described = _plain(metrics) | ({"checkpoint": folder.name} if purpose == "final" else {})
        return Training(metrics.ap, described)

    def _train_many(
        self,
        many: JittedMany,
        start: Callable[[int], ManyState],
        losses: Sequence[LossPair],
        purpose: Purpose,
        seed: int,
        horizon: int,
        stop: threading.Event,
    ) -> list[Training]:
        """Trains side by side; an interruption between two horizons loses the steps since the earlier one."""
        count, horizons = self.at_once(purpose), self.horizons(purpose)
        paused = [self._paused(pair, purpose, seed) for pair in losses]
        curves: list[list[tuple[int, float, float]]] = [[] for _ in losses]
        failures = [""] * len(losses)

        def score(step: int, state: ManyState) -> None:
            splits = self._splits[purpose][1], self._test
            both = zip(*(self._evaluate_many(many, state, source) for source in splits), strict=True)
            for k, (select, test) in zip(range(len(losses)), both, strict=False):  # without the padding
                if select is None or test is None:
                    failures[k] = _NOT_FINITE
                else:
                    curves[k].append((step, select.ap, test.ap))

        state, diverged = fit_many(
            many,
            resumed(start(count), paused),
            self._padded(losses, count),
            self._splits[purpose][0],
            until=horizon,
            steps=horizons[-1],
            seed=seed,
            stop=stop,
            evaluate_at=horizons if purpose == "table" else (),
            evaluate=score,
            **self._batching,
        )
        for k, step in diverged.items():
            if k < len(losses):
                failures[k] = f"not finite at step {step}"
        if purpose == "table":
            return [
                Training(None, failure=failure) if failure else Training(curve[-1][1], {"curve": curve})
                for failure, curve in zip(failures, curves, strict=True)
            ]
        scores = self._evaluate_many(many, state, self._splits[purpose][1])
        if purpose == "final":
            self._save_models(state, losses, seed, failures)
        for k, path in enumerate(paused):
            if horizon < horizons[-1] and not failures[k]:
                pause(state, k, path)
            else:
                path.unlink(missing_ok=True)
        return [
            Training(None, failure=failure or _NOT_FINITE)
            if failure or score is None
            else Training(score.ap, _plain(score))
            for failure, score in zip(failures, scores[: len(losses)], strict=True)
        ]

    def _evaluate_many(self, many: JittedMany, state: ManyState, source: Source) -> list[Metrics | None]:
        return evaluate_many(functools.partial(many.predict, state), source, self._config.batch_size)

    def _save_models(self, state: ManyState, losses: Sequence[LossPair], seed: int, failures: Sequence[str]) -> None:
        for k, pair in enumerate(losses):
            if not failures[k]:
                params = nnx.merge_state(jax.tree.map(lambda a, k=k: row(a, k), state.own), state.common[0])
                checkpoint.save(self._partial(pair, "final", seed).with_suffix(""), (params, state.common[1]))

    @functools.cached_property
    def _whole_at_once(self) -> int:
        """As set; else measured once on a kind of device: what others trained side by side is resumed side by side."""
        devices = jax.local_devices()
        if self._schedule.at_once or devices[0].platform == "cpu":
            return self._schedule.at_once or 1
        each = remembered(self._checkpoints / "at_once.json", devices[0].device_kind, self._measured_at_once)
        return each * len(devices)

    def _measured_at_once(self) -> int:
        """On one device."""
        device, *others = jax.local_devices()
        many = jit_many(self._build, self._config, devices=[device]) if others else self._whole
        batch, model = next(self._batches("proxy", self._seed, 0)), self._compiled.init(self._seed).model
        return remembered_count(many, model, batch, self._terms(self.task.default))

    def _batches(self, purpose: Purpose, seed: int, start: int):
        source = self._splits[purpose][0]
        return train_batches(source, batch_size=self._config.batch_size, seed=seed, flip=self._flip, start_step=start)

    def _evaluate(self, state: TrainState, source: Source) -> Metrics:
        def predict(image, image_size):
            return self._compiled.predict(state, image, image_size)

        return evaluate_detector(predict, source, batch_size=self._config.batch_size)

    def _terms(self, losses: LossPair) -> DetectionLosses:
        stable = self._config.stable_logs
        return DetectionLosses(
            as_term(losses.cls, losses.cls_weight, stable=stable), as_term(losses.box, losses.box_weight, stable=stable)
        )

    def _padded(self, losses: Sequence[LossPair], count: int) -> DetectionLosses:
        return stack_losses([self._terms(pair) for pair in filled(losses, count)])

    def _partial(self, losses: LossPair, purpose: _Purpose, seed: int) -> pathlib.Path:
        digest = hashlib.blake2b(json.dumps(losses.key).encode(), digest_size=6).hexdigest()
        return self._checkpoints / f"{purpose}-seed{seed}-{digest}.partial"

    def _paused(self, losses: LossPair, purpose: Purpose, seed: int) -> pathlib.Path:
        """The file of a training side by side with others between its horizons."""
        return self._partial(losses, purpose, seed).with_suffix(".paused.npz")


def _plain(metrics: Metrics) -> dict:
    """Figures for JSON, None where there is none."""
    return jax.tree.map(lambda v: v if np.isfinite(v) else None, metrics._asdict())
