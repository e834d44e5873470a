"""Candidates tried per minute: with one compiled step for all of them, beside one at a time, compiled for each."""

import concurrent.futures
import functools
import pathlib
import resource
import tempfile
import threading
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.losses import traced
from benchmarks.report import Report
from benchmarks.smallest import fcos_smallest
from cse_jax.language import zoo
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.population import decode
from cse_jax.language.spaces import BOX, SPACES, Space
from cse_jax.sampling.random_graphs import grow, tokens_of
from cse_jax.screening.simulation import simulate
from cse_jax.screening.verification import judge
from cse_jax.search.config import SearchConfig
from cse_jax.search.task import LossPair
from detectors.data.datasets import DataConfig, open_dataset
from detectors.data.digit_scenes import DigitScenesConfig
from detectors.data.pipeline import eval_batches
from detectors.evaluation.coco import evaluate_detector
from detectors.models import build_detector
from detectors.models.fcos import FCOS, fcos_tiny
from detectors.training.batched import evaluate_many, jit_many, stack_losses
from detectors.training.fitting import bytes_needed
from detectors.training.loop import fit
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from detectors.training.search_trainer import DetectorTrainer, task_of
from detectors.training.step import JittedDetector, jit_detector

NEVER = threading.Event()
_WORKERS = SearchConfig().workers
_SIZES = {  # simulated; probed, trained, compiled each
    "smallest": (4, 4, 2, 1),
    "small": (1024, 64, 8, 2),
    "full": (16384, 256, 64, 1),
}
_SCHEDULES = {
    "smallest": ScheduleConfig(probe=(1, 2), probe_images=8, probe_at_once=4, overfit=2, proxy=(2, 4)),
    "small": ScheduleConfig(overfit=80, proxy=(200, 550)),
    "full": ScheduleConfig(probe_at_once=128, overfit=80, proxy=(200, 400), at_once=64),
}
_SIDE_BY_SIDE = {"smallest": (1,), "small": (1, 2, 4), "full": (64,)}
_WAYS = {
    "probe": "heads on fixed features",
    "proxy": "proxy task, to its end",
    "overfit": "whole detector, one image per category",
}
_HALVING = "proxy task, halved at each horizon"
_SIMULATION, _TOGETHER = "Prediction-space simulation", "Whole detectors side by side"
_TRIED = "Candidates per minute"


def measure(report: Report, *, size: str, rounds: int) -> None:
    """All tables of the suite; what says most comes first."""
    simulated, probed, trained, compiled_each = _SIZES[size]
    ways = list(_WAYS)[: 1 if size == "smallest" else None]
    others = [] if size == "smallest" else [space for space in SPACES.values() if space != BOX]
    report.plan(_SIMULATION, [space.name for space in (BOX, *others)])
    report.plan(_TRIED, [_WAYS[purpose] for purpose in ways] + [_HALVING] * ("proxy" in ways))
    report.plan(_TOGETHER, [f"{count} at once" for count in _SIDE_BY_SIDE[size]])
    converging = functools.partial(_converging, **({"per_operator": 1, "width": 16} if size == "smallest" else {}))
    report.row(_SIMULATION, _simulation(BOX, converging(BOX, simulated, 1), rounds))
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(size, pathlib.Path(folder))
        candidates = [bench.task.replaced("box", formula, 1.0) for formula in converging(BOX, max(probed, trained), 7)]
        rows = {}
        for purpose in ways:
            report.say(_WAYS[purpose])
            count = probed if purpose == "probe" else trained
            rows[purpose] = bench.compare(purpose, candidates[:count], candidates[:compiled_each], rounds)
            report.row(_TRIED, rows[purpose])
            if purpose == "probe":
                report.say("detectors side by side")
                for together in _SIDE_BY_SIDE[size]:
                    report.row(_TOGETHER, bench.side_by_side(together, rounds))
        for space in others:
            report.row(_SIMULATION, _simulation(space, converging(space, simulated, 1), rounds))
        if "proxy" in ways:
            report.row(_TRIED, bench.halving(candidates[:trained], rows["proxy"]))


def _converging(space: Space, count: int, seed: int, **growth: int) -> list[Expression]:
    """Random formulas of a space that pass the gate."""
    with float64():
        grown = grow(jax.random.key(seed), space, **growth)
        rows = np.flatnonzero(grown.candidate)[: 1 << 15]
        tokens = tokens_of(grown, rows, space)
    good = decode(tokens[judge(tokens, space).passed(sign_flip=False)], space)
    good = [formula for formula in good if len(formula) <= 40] or [zoo.default(space)]
    return [good[k % len(good)] for k in range(count)]


def _simulation(space: Space, candidates: Sequence[Expression], rounds: int) -> dict:
    simulate(candidates, space)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        simulate(candidates, space)
        seconds.append(time.perf_counter() - started)
    return {
        "space": space.name,
        "candidates": len(candidates),
        "nodes, mean": float(np.mean([len(c) for c in candidates])),
        "predictions": " x ".join(map(str, space.prediction("pixels", 0).start.shape)),
        "per second": len(candidates) / float(np.median(seconds)),
    }


class _Bench:
    """A small FCOS on digit scenes, and every way to try losses with it."""

    def __init__(self, size: str, folder: pathlib.Path) -> None:
        scenes = dict(train_images=20, select_images=8, test_images=8) if size == "smallest" else {}
        config = DataConfig(digit_scenes=DigitScenesConfig(**scenes))
        self.data = open_dataset(config)
        self.folder, self.schedule = folder, _SCHEDULES[size]
        detector = fcos_smallest() if size == "smallest" else fcos_tiny()
        _, self._build = build_detector(detector, config.normalisation)
        self.task = task_of(FCOS)
        self.compiled = self._compile()
        self.trainer = DetectorTrainer(
            self.compiled,
            self._build,
            self._config,
            self.data,
            self.schedule,
            is_output=FCOS.is_output,
            task=self.task,
            flip=0.0,
            seed=0,
            checkpoints=folder,
        )

    _config = training_in_seconds(learning_rate=0.002)

    def _compile(self) -> JittedDetector:
        return jit_detector(self._build, self._config)

    def compare(self, purpose: str, ours: Sequence[LossPair], theirs: Sequence[LossPair], rounds: int) -> dict:
        """Rates of both ways, in rounds that alternate; the first of ours, which compiles, is not counted."""
        count = self.trainer.at_once(purpose)
        one = self._probe_compiled if purpose == "probe" else functools.partial(self._train_compiled, purpose)
        self._train(purpose, ours[:count])
        rates = {"ours": [], "theirs": []}
        for _ in range(max(1, rounds // 3)):
            for name, run, losses in (
                ("ours", lambda losses: self._train(purpose, losses), ours),
                ("theirs", lambda losses: [one(pair) for pair in losses], theirs),
            ):
                started = time.perf_counter()
                run(losses)
                rates[name].append(60.0 * len(losses) / (time.perf_counter() - started))
        median = {name: float(np.median(values)) for name, values in rates.items()}
        each = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
        return {
            "what": _WAYS[purpose],
            "steps": self.trainer.horizons(purpose)[-1],
            "at once": count,
            "ours": median["ours"],
            "one at a time, compiled for each": median["theirs"],
            "ratio": median["ours"] / median["theirs"],
            "each round": f"{min(each):.3g} - {max(each):.3g}",
            "idle": self._idle(purpose, median["ours"]),
            "peak MiB": _peak(),
        }

    def halving(self, candidates: Sequence[LossPair], whole: dict) -> dict:
        """The proxy task as a search runs it: the better half continues at each horizon."""
        self._train("proxy", candidates[:1], horizon=self.schedule.proxy[0], seed=2)
        started, going = time.perf_counter(), list(candidates)
        for horizon in self.schedule.proxy:
            aps = [training.ap or 0.0 for training in self._train("proxy", going, horizon=horizon, seed=1)]
            ranks = np.argsort(-np.array(aps), kind="stable")
            going = [going[k] for k in ranks[: (len(going) + 1) // 2]]
        rate = 60.0 * len(candidates) / (time.perf_counter() - started)
        peer = whole["one at a time, compiled for each"]
        return whole | {
            "what": _HALVING,
            "ours": rate,
            "ratio": rate / peer,
            "each round": "-",
            "idle": None,
            "peak MiB": _peak(),
        }

    def _train(self, purpose: str, losses: Sequence[LossPair], horizon: int | None = None, seed: int = 0) -> list:
        """As ``cse_jax.search.trials.Trials`` does it: groups of losses, two at a time."""
        horizon, count = horizon or self.trainer.horizons(purpose)[-1], self.trainer.at_once(purpose)
        groups = [losses[start : start + count] for start in range(0, len(losses), count)]
        train = functools.partial(self.trainer.train, purpose=purpose, seed=seed, horizon=horizon, stop=NEVER)
        with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
            return [training for group in pool.map(train, groups) for training in group]

    def _train_compiled(self, purpose: str, losses: LossPair) -> float:
        """Traces the losses as code into a step of their own."""
        train, evaluated = self.trainer._splits[purpose]
        with traced(losses.cls, losses.box):
            state = fit(
                self._compile(),
                self.trainer._terms(losses),
                train,
                steps=self.trainer.horizons(purpose)[-1],
                seed=0,
                batch_size=self._config.batch_size,
                flip=0.0,
                partial=self.folder / "none",
            )
        predict = functools.partial(self.compiled.predict, state)
        return evaluate_detector(predict, evaluated, batch_size=self._config.batch_size).ap

    def _probe_compiled(self, losses: LossPair) -> float:
        """Likewise, with the heads only."""
        features, fresh = self.trainer.features, self.compiled.init(0).model
        steps = self.schedule.probe[-1]
        batches = self.trainer._batches("probe", 0, 0)
        many, several = self.trainer._heads, stack_losses([self.trainer._terms(losses)])
        with traced(losses.cls, losses.box):
            own = jit_many(self._build, self._config, own=FCOS.is_output)
            state = own.init(fresh, 1, features)
            for _ in range(steps):
                state, _ = own.step(state, next(batches), several, steps, 0)
        predict = functools.partial(many.predict, state)
        return evaluate_many(predict, self.trainer._splits["probe"][1], self._config.batch_size)[0].ap

    def _idle(self, purpose: str, rate: float) -> float:
        """Share of the time of a candidate in which the device runs none of its compiled functions.

        These are timed by themselves in as many threads as trainings run in.
        """
        count, steps = self.trainer.at_once(purpose), self.trainer.horizons(purpose)[-1]
        evaluated = self.trainer._splits[purpose][1]
        batch = next(self.trainer._batches(purpose, 0, 0))
        looks = [(b.image, b.image_size) for b in list(eval_batches(evaluated, self._config.batch_size))]
        if purpose == "probe" or count > 1:
            many = self.trainer._heads if purpose == "probe" else self.trainer._whole
            several = stack_losses([self.trainer._terms(self.task.default)] * count)
            batch = many.place(batch)  # as trainings do: else it is compiled again
            start = lambda: many.init(self.compiled.init(0).model, count)  # noqa: E731
            step = lambda state: many.step(state, batch, several, 100, 0)  # noqa: E731
            predict = many.predict
        else:
            losses, batch = self.trainer._terms(self.task.default), self.compiled.place(batch)
            start = lambda: self.compiled.init(0)  # noqa: E731
            step = lambda state: self.compiled.step(state, batch, losses, jnp.int32(100), jnp.int32(0))  # noqa: E731
            predict = self.compiled.predict

        def run(begun: tuple) -> tuple[float, float]:
            state, metrics = begun
            started = time.perf_counter()
            for _ in range(20):
                state, metrics = step(state)
            jax.block_until_ready(metrics)
            stepped = time.perf_counter()
            for look in looks[:4]:
                jax.block_until_ready(predict(state, *look))
            return (stepped - started) / 20 * steps, (time.perf_counter() - stepped) / len(looks[:4]) * len(looks)

        begun = [step(start()) for _ in range(_WORKERS)]
        jax.block_until_ready(predict(begun[0][0], *looks[0]))
        with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
            busy = max(map(sum, pool.map(run, begun))) / _WORKERS / count
        return max(0.0, 1.0 - busy * rate / 60.0)

    def side_by_side(self, count: int, rounds: int) -> dict:
        """A step of ``count`` whole detectors at once."""
        many = self.trainer._whole
        batch = many.place(next(self.trainer._batches("proxy", 0, 0)))
        several = stack_losses([self.trainer._terms(self.task.default)] * count)
        started = time.perf_counter()
        state = many.init(self.compiled.init(0).model, count)
        state, metrics = many.step(state, batch, several, 100, 0)
        jax.block_until_ready(metrics)
        compiling, seconds = time.perf_counter() - started, []
        for _ in range(max(3, rounds)):
            started = time.perf_counter()
            state, metrics = many.step(state, batch, several, 100, 0)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - started)
        model, losses = self.compiled.init(0).model, self.trainer._terms(self.task.default)
        memory = bytes_needed(many.lower(model, count, batch, losses).compile())
        alone = self._alone(rounds)
        return {
            "detectors": count,
            "step, ms": 1e3 * float(np.median(seconds)),
            "each, ms": 1e3 * float(np.median(seconds)) / count,
            "one after the other, ms": alone,
            "compile, s": compiling,
            "memory, MiB": memory / 2**20,
        }

    def _alone(self, rounds: int) -> float:
        state, batch, losses = (
            self.compiled.init(0),
            self.compiled.place(next(self.trainer._batches("proxy", 0, 0))),
            self.trainer._terms(self.task.default),
        )
        seconds = []
        for _ in range(max(3, rounds) + 1):
            started = time.perf_counter()
            state, metrics = self.compiled.step(state, batch, losses, jnp.int32(100), jnp.int32(0))
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - started)
        return 1e3 * float(np.median(seconds[1:]))


def _peak() -> float:
    """Most memory of the device so far, or of the process where the device doesn't tell, MiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20
