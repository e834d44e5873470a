"""What ``search.py --confirm`` and ``confirm.py`` share: the trainings of a confirmation, in a folder of their own."""

import contextlib
import dataclasses
import functools
import math
import pathlib

import numpy as np
from rich.console import Console

import workers
from cse_jax import workdir
from cse_jax.reporting import confirmation_report
from cse_jax.reporting.monitor import Monitor
from cse_jax.search import confirmation
from cse_jax.search.comparison import Row
from cse_jax.search.confirmation import Confirmation
from cse_jax.search.ledger import Ledger
from cse_jax.search.task import LossPair
from detectors.checkpoint import CheckpointError
from detectors.evaluation.resampling import draws, resampled_ap
from detectors.models import build_detector
from detectors.training.search_trainer import DetectorTrainer, task_of
from search_run import SearchRun, of_trainings


def folder_of(config: SearchRun, search: pathlib.Path) -> pathlib.Path:
    """Where the confirmation of a search by a config goes."""
    return search / "confirm" / config.name


def confirm(config: SearchRun, search: pathlib.Path, seeds: int, console: Console, *, own_starts: bool = True) -> None:
    """Retrains the rows of a search's final table with fresh seeds and says what they show.

    Args:
      config: of detector, data and schedule, the search's own or another.
      search: folder of the finished search.
      seeds: how many.
      console: where to show the work and the table.
      own_starts: whether each seed has a shared start of its own, where the config's trainings begin with one.

    Raises:
      InputError: nothing was discovered, the detector takes other losses, or the folder holds a confirmation by another
        config of this name.
      WorkdirError: there is no finished search.
    """
    result = workdir.read_result(search)
    confirmation.contestants(result, task_of(build_detector(config.detector)[0]))  # before any work
    with workdir.opened(folder_of(config, search)) as folder, contextlib.ExitStack() as stack:
        remedy = "give this confirmation a name of its own, such as --config.name=scratch, or delete that folder"
        workdir.check_same_config(folder, dataclasses.asdict(config), remedy=remedy, relevant=of_trainings)
        own_starts = own_starts and config.schedule.start > 0
        opened = stack.enter_context(workers.opened(config, folder, selects=False, own_starts=own_starts))
        about, trainer = workdir.describe(config) | {"device": opened.device}, opened.trainer
        about |= {"own_starts": True} if own_starts else {}
        one_start = trainer.shared_start and not own_starts
        identity = about | {"config": of_trainings(about["config"])}
        with Ledger(folder / "ledger.sqlite", identity=identity) as ledger:
            workdir.write_description(folder, about)
            with Monitor(console, steps={"final": trainer.horizons("final")[-1]}) as monitor:
                found = confirmation.run(
                    result, seeds, trainer=trainer, ledger=ledger, progress=monitor,
                    workers=config.search.workers, time_limit=config.search.time_limit,
                )  # fmt: skip
                monitor.activity("the same models over other images")
                errors = _image_errors(opened.local, found)
        about |= {
            "search": str(search),
            "title": f"Confirmation of the search in {search}",
            "split": "test",
            "note": "No selection and no final table has used these seeds."
            + (" Each of them had a start of its own, which all losses share." if own_starts else ""),
        }
        data = confirmation_report.confirmation_dict(found, image_errors=errors, about=about, one_start=one_start)
        confirmation_report.write(folder, data)
    confirmation_report.show(console, found)
    text = f"{data['conclusion']}\n{data['scope']}\nConfirmation: {folder / 'confirm.md'}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _image_errors(trainer: DetectorTrainer, found: Confirmation) -> list[float]:
    """Standard errors over images of the pair's difference to each row; NaN where a training left no whole model."""
    pair = found.table[-1]

    @functools.cache
    def resampled(losses: LossPair) -> np.ndarray:
        of_seeds = [trainer.matches(losses, seed=seed) for seed in found.seeds]
        return np.mean([resampled_ap(matches, draws(len(matches[0].objects))) for matches in of_seeds], axis=0)

    def error(row: Row) -> float:
        if pair.failures or row.failures:
            return math.nan
        try:
            return float(np.nanstd(resampled(pair.losses) - resampled(row.losses), ddof=1))
        except CheckpointError:
            return math.nan

    return [error(row) for row in found.table]
