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

from cse_jax import report, search, workdir
from cse_jax.ledger import Ledger, LedgerError
from cse_jax.monitor import Monitor
from cse_jax.survivors import SurvivorsError
from detectors.data.datasets import open_dataset
from detectors.initial_weights import starting_from
from detectors.models import build_detector
from detectors.trainer import DetectorTrainer
from detectors.training import compile_detector

_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "search"
_CONFIG = config_flags.DEFINE_config_file("config", str(_CONFIGS / "default.py"), "What to search.")
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
    except (workdir.WorkdirError, LedgerError, SurvivorsError, search.SearchFailed, ValueError, OSError) as error:
        console.print(f"\nThe search stopped: {error}", style="red", markup=False, soft_wrap=True)
        console.print(f"What was finished is kept in {folder}.", markup=False)
        sys.exit(1)


def _search(config, folder: pathlib.Path, console: Console, started: float) -> None:
    about = workdir.describe(config)
    with Ledger(folder / "ledger.sqlite", identity=about) as ledger:
        workdir.write_description(folder, about)
        data = open_dataset(config.data)
        detector, build = build_detector(config.detector)
        trainer = DetectorTrainer(
            starting_from(compile_detector(build, config.train), build, config.weights),
            data,
            config.schedule,
            batch_size=config.train.batch_size,
            flip=config.data.flip,
            seed=config.search.seed,
            checkpoints=folder / "checkpoints",
        )
        steps = {purpose: trainer.steps(purpose) for purpose in ("verify", "proxy", "final")}
        with Monitor(console, steps=steps) as monitor:
            result = search.run(
                config.search,
                cls_space=detector.cls_space,
                box_weight=detector.box_weight,
                units=detector.box_units,
                trainer=trainer,
                ledger=ledger,
                monitor=monitor,
            )
    scale = (
        "every candidate's gradient matched to the default loss's" if config.search.cascade.match_gradient else "raw"
    )
    known = [config.search.classification.seed_known, config.search.regression.seed_known]
    about |= {"name": config.name, "scale": scale, "seeding": f"classification {known[0]}, regression {known[1]}"}
    about["seconds"] = time.monotonic() - started
    data = report.result_dict(result, about=about)
    report.write_result(folder, data)
    report.show(console, result)
    console.print(f"{data['conclusion']}\nReport: {folder / 'report.md'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    app.run(main)
