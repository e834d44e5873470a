"""Searches for a loss: from random formulas to a final comparison of trained detectors.

    python launch/search.py
    python launch/search.py --config=configs/search/faster_rcnn.py --workdir=runs/two_stage
    python launch/search.py --config.search.classification.generations=5

Interrupted, the same command goes on where the search stopped.
"""

import pathlib
import sys
import time

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from cse_jax.atlas.survivors import SurvivorsError
from cse_jax.reporting import calibration_report, report
from cse_jax.reporting.monitor import Monitor
from cse_jax.search import calibration, run, workdir
from cse_jax.search.ledger import Ledger, LedgerError
from cse_jax.search.trials import default_pair
from detectors.data.datasets import open_dataset
from detectors.models import build_detector
from detectors.training.initial_weights import starting_from
from detectors.training.run_config import CalibrationRun
from detectors.training.search_trainer import DetectorTrainer
from detectors.training.step import jit_detector

_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "search"
_CONFIG = config_flags.DEFINE_config_file("config", str(_CONFIGS / "default.py"), "What to search.")
_SCALES = {
    "prediction": "every candidate's gradient matched to the default loss's on simulated predictions",
    "detector": "every candidate's gradient matched to the default loss's in the trained detector",
    "none": "raw",
}
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the search; runs/<config.name> by default.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    workdir.hear_interrupts()
    config = _CONFIG.value
    started = time.monotonic()
    folder = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / config.name)
    console = Console(file=sys.stdout)
    try:
        with workdir.opened(folder):
            _search(config, folder, console, started)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. Nothing finished is lost: the same command goes on from {folder}.", markup=False)
        workdir.leave_interrupted()
    except (workdir.WorkdirError, LedgerError, SurvivorsError, run.SearchFailed, ValueError, OSError) as error:
        console.print(f"\nThe search stopped: {error}", style="red", markup=False, soft_wrap=True)
        console.print(f"What was finished is kept in {folder}.", markup=False)
        sys.exit(1)


def _search(config, folder: pathlib.Path, console: Console, started: float) -> None:
    about = workdir.describe(config)
    with Ledger(folder / "ledger.sqlite", identity=about) as ledger:
        workdir.write_description(folder, about)
        trainer, task = _trainer(config, folder)
        costs = {purpose: trainer.horizons(purpose)[-1] for purpose in ("probe", "verify", "proxy", "final")}
        costs["probe"] /= trainer.at_once("probe")
        with Monitor(console, steps=costs) as monitor:
            if isinstance(config, CalibrationRun):
                result = calibration.run(
                    config.calibration, config.search, **task, trainer=trainer, ledger=ledger, monitor=monitor
                )
            else:
                result = run.run(config.search, **task, trainer=trainer, ledger=ledger, monitor=monitor)
    if isinstance(config, CalibrationRun):
        calibration_report.write(folder, result)
        calibration_report.show(console, result)
        console.print(f"Report: {folder / 'report.md'}", markup=False, soft_wrap=True)
        return
    cascade = config.search.cascade
    scale = _SCALES[cascade.scale] + (
        f"; the best of the factors {', '.join(f'{w:g}' for w in cascade.weights)} on fixed features"
        if len(cascade.weights) > 1
        else ""
    )
    known = [config.search.classification.seed_known, config.search.regression.seed_known]
    about |= {"name": config.name, "scale": scale, "seeding": f"classification {known[0]}, regression {known[1]}"}
    about["seconds"] = time.monotonic() - started
    data = report.result_dict(result, about=about)
    report.write_result(folder, data)
    report.show(console, result)
    console.print(f"{data['conclusion']}\nReport: {folder / 'report.md'}", markup=False, soft_wrap=True)


def _trainer(config, folder: pathlib.Path) -> tuple[DetectorTrainer, dict]:
    """The detector's trainer, and what a search must know of the detector."""
    data = open_dataset(config.data)
    data.check_classes(config.detector.classes)
    if data.select is data.test:
        raise ValueError(
            "The search would select on the split that its final table reports: keep images of train for that, "
            f"--config.data.select_images={len(data.train) // 10}"
        )
    detector, build = build_detector(config.detector)
    trainer = DetectorTrainer(
        starting_from(jit_detector(build, config.train), build, config.weights),
        build,
        config.train,
        data,
        config.schedule,
        is_output=detector.is_output,
        default=default_pair(detector.cls_space, detector.box_weight),
        flip=config.data.flip,
        seed=config.search.seed,
        checkpoints=folder / "checkpoints",
    )
    return trainer, {
        "cls_space": detector.cls_space,
        "box_weight": detector.box_weight,
        "units": detector.box_units,
    }


if __name__ == "__main__":
    app.run(main)
