"""Searches for a loss: from random formulas to a final comparison of trained detectors.

    python launch/search.py
    python launch/search.py --config=configs/search/faster_rcnn.py --workdir=runs/two_stage
    python launch/search.py --config.search.classification.generations=5
    python launch/search.py --confirm=10
    python launch/search.py --retry_failed

After an interruption the same command resumes the search.  With --confirm the losses of the final table are then
trained again with as many fresh seeds, also when the search was finished before; launch/confirm.py does the same later.
A loss that diverges, or that has ended the process three times, is recorded as failed.  With --retry_failed all that
has failed is trained again, and everything is concluded anew.
"""

import script

import pathlib
import shlex
import sys
import time

from absl import flags
from rich.console import Console

import compilation
import config_file
from confirming import confirm
from cse_jax import loss_table, search, workdir
from cse_jax.reporting import page, report
from cse_jax.reporting.live_page import LivePage
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.ledger import Ledger
from search_run import SearchRun, trainer_of

_CONFIG = config_file.define("configs/search/default.py", "What to search.", SearchRun)
_SCALES = {
    "prediction": "every candidate's gradient matched to the default loss's on simulated predictions",
    "detector": "every candidate's gradient matched to the default loss's in the trained detector",
    "none": "raw",
}
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the search; runs/<config.name> by default.")
_CONFIRM = flags.DEFINE_integer(
    "confirm", 0, "Fresh seeds with which to confirm the result; 0 for none.", lower_bound=0, upper_bound=10_000
)

_RETRY_FAILED = flags.DEFINE_bool(
    "retry_failed", False, "Train again what has failed, and conclude anew from all trainings."
)


def main(argv: list[str]) -> None:
    script.start(argv)
    compilation.keep()
    config: SearchRun = _CONFIG.value
    started = time.monotonic()
    folder = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / config.name)
    console = Console(file=sys.stdout)

    with script.in_folder(
        "The search",
        folder,
        console,
        interrupted=f"Nothing finished is lost: the same command resumes the search in {folder}.",
        kept=f"What was finished is kept in {folder}.",
    ):
        _search(config, folder, console, started)
        if _CONFIRM.value and workdir.read_result(folder)["discovered"]:
            confirm(config, folder, _CONFIRM.value, console)


def _search(config: SearchRun, folder: pathlib.Path, console: Console, started: float) -> None:
    about = workdir.describe(config)
    trainer = trainer_of(config, folder)
    tried = loss_table.tried(loss_table.find(config.prior), trainer.task) if config.prior else None
    with Ledger(folder / "ledger.sqlite", identity=about) as ledger:
        about |= {
            "command": shlex.join(["python", "launch/search.py", *sys.argv[1:]]),
            "task": trainer.task.as_data(),
        }
        workdir.write_description(folder, about)
        if _RETRY_FAILED.value:
            console.print(f"{ledger.forget_failures()} failed trainings are run again.")
        costs: dict[str, float] = {
            purpose: trainer.horizons(purpose)[-1] for purpose in ("probe", "overfit", "proxy", "final")
        }
        costs["probe"] /= trainer.at_once("probe")
        with Monitor(console, steps=costs) as monitor, LivePage(monitor, folder, trainer.task) as live:
            result = search.run(config.search, trainer=trainer, ledger=ledger, progress=live, tried=tried)
    known = [config.search.classification.seed_known, config.search.regression.seed_known]
    about |= {
        "name": config.name,
        "scale": _scale(config),
        "seeding": f"classification {known[0]}, regression {known[1]}",
        "seconds": time.monotonic() - started,
    }
    data = report.result_dict(result, about=about)
    report.write_result(folder, data)
    path = page.write(folder, trainer.task)
    report.show(console, result)
    if compiled := compilation.summary():
        console.print(compiled, markup=False, highlight=False, soft_wrap=True)
    text = f"{data['conclusion']}\n{data['scope']}\nReport: {folder / 'report.md'}, page: {path}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _scale(config: SearchRun) -> str:
    """How candidates were weighted, in words."""
    filters = config.search.filters
    factors = ", ".join(f"{weight:g}" for weight in filters.weights)
    tried = f"; the best of the factors {factors} on fixed features" if len(filters.weights) > 1 else ""
    return _SCALES[filters.scale] + tried


if __name__ == "__main__":
    script.run(main)
