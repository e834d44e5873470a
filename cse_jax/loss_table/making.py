"""Trains what a table lacks; the file is its memory, so that another process or machine can go on with it."""

import contextlib
import math
import pathlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cse_jax.errors import InputError
from cse_jax.loss_table.config import LossTableConfig
from cse_jax.loss_table.drawing import draw
from cse_jax.loss_table.table import Curve, LossTable, TableLoss, read, save
from cse_jax.search.config import FilterConfig
from cse_jax.search.progress import Progress
from cse_jax.search.task import LossPair, Part, Task
from cse_jax.search.trainer import Purpose, Trainer
from cse_jax.search.trials import Trials, training_key
from cse_jax.workdir import differences

SAVE_SECONDS = 10.0  # at most so much of what is finished is lost
BLOCK = 16  # losses, at least, that get all their seeds before the next ones
STAGES: tuple[Purpose, ...] = ("probe", "overfit")


class _File:
    """A table on disk as the memory of trainings (``trials.Memory``)."""

    def __init__(self, table: LossTable, path: pathlib.Path, task: Task, seed: int, trainer: Trainer) -> None:
        self.table, self.path = table, path
        self._saved = time.monotonic()
        self._rows: dict[str, dict[str, Any]] = {}
        self._losses: dict[tuple, list[TableLoss]] = {}  # by their pair, as a row of a training has it
        for loss in table.losses:
            losses = pair(loss, task)
            name = str(losses.cls), losses.cls_weight, str(losses.box), losses.box_weight
            self._losses.setdefault(name, []).append(loss)
            for at, curve in loss.trainings.items():
                key = training_key(losses, "table", at, table.horizons[-1])
                self._rows[key] = _recorded(curve, table.horizons)
            for purpose in STAGES:
                for horizon in trainer.horizons(purpose):
                    score = loss.scores.get(stage_name(purpose, horizon))
                    if score is not None:
                        self._rows[training_key(losses, purpose, seed, horizon)] = _scored(score)

    def training(self, key: str) -> dict[str, Any] | None:
        return self._rows.get(key)

    def record_training(self, row: Mapping[str, Any]) -> None:
        self._rows[row["key"]] = dict(row)
        for loss in self._losses[row["cls"], row["cls_weight"], row["box"], row["box_weight"]]:
            if row["purpose"] == "table":
                loss.trainings[row["seed"]] = _curve(row, self.table.horizons)
            else:
                score = math.nan if row["ap"] is None else row["ap"]
                loss.scores[stage_name(row["purpose"], row["steps"])] = score
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def sync(self) -> None: ...  # it is saved from time to time

    def usual_seconds(self, purpose: Purpose, steps: int) -> float:
        return math.nan  # a table sets no limit to the time of a training

    def attempts(self) -> Mapping[str, int]:
        return {}

    def attempt(self, keys: Collection[str]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # a table has no place for them

    def save(self) -> None:
        save(self.table, self.path)
        self._saved = time.monotonic()


def stage_name(purpose: str, horizon: int) -> str:
    """The column of a stage's score."""
    return f"{purpose} {horizon}"


def pair(loss: TableLoss, task: Task) -> LossPair:
    """A loss of a table beside the default of the other part."""
    return task.replaced(loss.part, loss.formula, loss.weight)


def make(
    config: LossTableConfig,
    filters: FilterConfig,
    *,
    parts: Sequence[Part],
    trainer: Trainer,
    progress: Progress,
    path: pathlib.Path,
    about: Mapping[str, Any],
    free: Collection[str] = (),
) -> LossTable:
    """Makes a table, or goes on with the one that the file holds.

    Args:
      config: which losses, how often.
      filters: how candidates are weighted, and the largest formula.
      parts: which losses of the detector to vary.
      trainer: trains the detector.
      progress: hears of it.
      path: the Parquet file.
      about: what the trainings depend on: ``"task"``, versions and device.  A table may be continued on another machine
        and with more seeds, but not with another task: detector, data set, optimisation or schedule.  The table's
        ``"machines"`` are all devices and versions that have worked on it.
      free: fields of the task, as ``schedule.at_once``, in which that may differ.

    Raises:
      LossTableError: the file is no table.
      InputError: the file holds a table of another task.
    """
    task, horizons = trainer.task, trainer.horizons("table")
    table = _opened(path, horizons, about, free)
    texts: dict[Part, tuple[str, ...]] = {"cls": config.classification, "box": config.regression}
    for part in parts:
        if not any(loss.part == part for loss in table.losses):
            progress.activity(f"drawing losses of {task.space(part).name}")
            table.losses += draw(
                part, task, texts[part], filters, generated=config.generated, rejected=config.rejected,
                population_size=config.population, seed=config.seed,
            )  # fmt: skip
            save(table, path)
    file = _File(table, path, task, config.seed, trainer)
    trials = Trials(trainer, file, progress, workers=config.workers)
    seeds = [config.first_seed + k for k in range(config.seeds)]
    everyone = sum(loss.part in parts for loss in table.losses)
    progress.expect(
        {purpose: everyone * len(trainer.horizons(purpose)) for purpose in STAGES if config.stages}
        | {"table": everyone * len(seeds)}
    )
    if config.stages or trainer.shared_start:
        progress.activity("default losses, the start of all trainings")
        trainer.prepare()
    try:
        for block in _blocks(table, parts, max(BLOCK, trainer.at_once("table"), trainer.at_once("probe"))):
            pairs = [pair(loss, task) for loss in block]
            what = f"losses {table.losses.index(block[0]) + 1} to {table.losses.index(block[-1]) + 1} of the table"
            if config.stages:
                for purpose in STAGES:
                    for horizon in trainer.horizons(purpose):
                        jobs = [(losses, config.seed) for losses in pairs]
                        list(trials.run(jobs, purpose=purpose, what=f"{what}, {purpose}", horizon=horizon))
            list(trials.run([(losses, seed) for seed in seeds for losses in pairs], purpose="table", what=what))
    finally:
        file.save()
    return table


def _opened(
    path: pathlib.Path, horizons: tuple[int, ...], about: Mapping[str, Any], free: Collection[str]
) -> LossTable:
    if not path.exists():
        return LossTable(horizons, [], dict(about))
    table = read(path)
    machine = _machine(about)
    if machine not in (known := table.about.setdefault("machines", [_machine(table.about)])):
        known.append(machine)
    changed = differences(table.about["task"], about["task"], free=free)
    if table.horizons != horizons:
        changed.append(f"horizons: {table.horizons} -> {horizons}")
    if changed:
        raise InputError(
            f"{path} holds trainings of another task ({'; '.join(changed[:5])}); choose another file, or the config "
            "that it was made with"
        )
    return table


def _machine(about: Mapping[str, Any]) -> dict[str, Any]:
    """Where trainings ran: sums are rounded differently elsewhere."""
    return {name: about[name] for name in ("device", "versions") if name in about}


def _blocks(table: LossTable, parts: Sequence[Part], size: int) -> list[list[TableLoss]]:
    """The losses in groups, the parts taking turns, so that a table that is not finished has both."""
    of_part = [[loss for loss in table.losses if loss.part == part] for part in parts]
    blocks = []
    for start in range(0, max(map(len, of_part), default=0), size):
        blocks += [losses[start : start + size] for losses in of_part if losses[start : start + size]]
    return blocks


def _curve(row: Mapping[str, Any], horizons: tuple[int, ...]) -> Curve:
    if row["failure"]:
        nothing = (math.nan,) * len(horizons)
        return Curve(nothing, nothing, row["failure"], row["seconds"])
    curve = row["metrics"]["curve"]
    return Curve(tuple(p[1] for p in curve), tuple(p[2] for p in curve), "", row["seconds"])


def _recorded(curve: Curve, horizons: tuple[int, ...]) -> dict[str, Any]:
    """A training as ``Trials`` records it."""
    points = [list(point) for point in zip(horizons, curve.select, curve.test, strict=True)]
    ap = None if curve.failure else curve.select[-1]
    return {"ap": ap, "failure": curve.failure, "metrics": {"curve": points}, "seconds": curve.seconds}


def _scored(score: float) -> dict[str, Any]:
    failed = not math.isfinite(score)
    return {"ap": None if failed else score, "failure": "failed" if failed else "", "metrics": {}, "seconds": 0.0}
