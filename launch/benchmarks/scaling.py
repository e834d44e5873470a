"""The driver of a search without its trainings: what each costs it, and how many workers it can keep busy."""

import contextlib
import dataclasses
import heapq
import io
import pathlib
import resource
import tempfile
import threading
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from benchmarks.report import Report
from cse_jax.language import spaces
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.ledger import Ledger
from cse_jax.search.task import LossPair, Task
from cse_jax.search.trainer import Purpose, Training
from cse_jax.search.trials import Trials

_SIZES = {  # trainings; workers of real threads and the seconds that their trainings sleep; workers simulated
    "smallest": (50, (2,), 0.05, (1, 1000)),
    "small": (10_000, (1, 10, 100, 1000), 1.0, (1, 10, 100, 300, 1000)),
    "full": (100_000, (1, 10, 100, 1000), 1.0, (1, 10, 100, 300, 1000)),
}
_SECONDS = (1.0, 10.0, 60.0, 600.0)  # of simulated trainings
_STAGES = {"heads, 32 side by side": 8, "one image per category": 10, "proxy": 5, "proxy, the better half": 3}
_WIDE = {"heads, 32 side by side": 64, "one image per category": 1000, "proxy": 500, "proxy, the better half": 250}


class _Stub:
    """A trainer whose trainings only last."""

    shared_start = False
    task = Task(spaces.BINARY_CLASS, "strides")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def horizons(self, purpose: Purpose) -> tuple[int, ...]:
        return (1,)

    def at_once(self, purpose: Purpose) -> int:
        return 1

    def train(
        self, losses: Sequence[LossPair], *, purpose: Purpose, seed: int, horizon: int, stop: threading.Event
    ) -> list[Training]:
        time.sleep(self.seconds)
        return [Training(0.5, {"ap50": 0.6})] * len(losses)

    def prepare(self) -> None: ...

    def forget(self, losses: LossPair, *, purpose: Purpose, seed: int) -> None: ...

    def gradient_norms(self, losses: Sequence[LossPair]) -> list[tuple[float, float]]:
        return [(1.0, 1.0)] * len(losses)


def measure(report: Report, *, size: str, rounds: int) -> None:
    """All tables of the suite."""
    count, workers, seconds, simulated = _SIZES[size]
    costs = []
    with tempfile.TemporaryDirectory() as folder, _trials(pathlib.Path(folder), 0.0, 2) as trials:
        for tenth in range(10):
            started = time.perf_counter()
            _run(trials, count // 10, tenth * count)
            costs.append(1e3 * (time.perf_counter() - started) / (count // 10))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            done = (tenth + 1) * count // 10
            row = {"trainings so far": done, "each, ms": costs[-1], "peak MiB": peak}
            report.row("Cost of a training to the driver", row)
    cost = float(np.median(costs)) / 1e3
    report.say(f"{count} trainings that cost nothing: {1e3 * cost:.2f} ms each")
    for each in workers:
        with tempfile.TemporaryDirectory() as folder, _trials(pathlib.Path(folder), seconds, each) as trials:
            started = time.perf_counter()
            _run(trials, 4 * each, 0)
            rate = 4 * each / (time.perf_counter() - started)
        model = _simulated([seconds] * 4 * each, each, cost)
        row = {"workers": each, "per second": rate, "simulated": 4 * each / model, "ideal": each / seconds}
        report.row(f"Threads whose trainings sleep {seconds:g} s", row)
    for length in _SECONDS:
        used = {f"{each} workers": _busy([length] * 20 * each, each, cost) for each in simulated}
        report.row(
            "Share of the workers' time that is used, 20 trainings each", {"seconds of a training": length} | used
        )
    for name, stages in (("default", _STAGES), ("wide", _WIDE)):
        used = {f"{each} workers": _stages(stages, each, cost) for each in simulated}
        report.row("The same in a generation, stage after stage, trainings of 60 s", {"sizes": name} | used)


@contextlib.contextmanager
def _trials(folder: pathlib.Path, seconds: float, workers: int):
    silent = Console(file=io.StringIO())
    with Ledger(folder / "ledger.sqlite", identity={}) as ledger, Monitor(silent, steps={"overfit": 1}) as monitor:
        yield Trials(_Stub(seconds), ledger, monitor, workers=workers)


def _run(trials: Trials, count: int, first: int) -> None:
    default = trials.trainer.task.default
    jobs = [(dataclasses.replace(default, cls_weight=float(1 + first + k)), 0) for k in range(count)]
    for _ in trials.run(jobs, purpose="overfit", what="stub"):
        pass


def _simulated(lengths: Sequence[float], workers: int, cost: float) -> float:
    """Seconds that trainings take if the driver, one thing after the other, gives each to the first free worker."""
    free, driver, end = [0.0] * workers, 0.0, 0.0
    for length in lengths:
        driver = max(driver, heapq.heappop(free)) + cost
        heapq.heappush(free, driver + length)
        end = max(end, driver + length)
    return end


def _busy(lengths: Sequence[float], workers: int, cost: float) -> float:
    uneven = np.random.default_rng(0).uniform(0.7, 1.3, len(lengths)) * lengths
    return float(sum(uneven) / workers / _simulated(list(uneven), workers, cost))


def _stages(stages: dict[str, int], workers: int, cost: float) -> float:
    each = [[60.0] * trainings for trainings in stages.values()]
    return sum(map(sum, each)) / workers / sum(_simulated(lengths, workers, cost) for lengths in each)
