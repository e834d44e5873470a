"""Searches for a loss: from random formulas to a final comparison of trained detectors.

    python launch/search.py
    python launch/search.py --config=configs/search/faster_rcnn.py --workdir=runs/two_stage
    python launch/search.py --config.search.classification.generations=5
    python launch/search.py --hours=8 --target=0.45
    python launch/search.py --proposals=mine.txt
    python launch/search.py --confirm=10
    python launch/search.py --retry_failed
    python launch/search.py --coordinator=host:1234 --processes=2 --process=0
    python launch/search.py --coordinator=host:1234 --processes=2 --process=1

After an interruption the same command resumes the search.  With --confirm the losses of the final table are then
trained again with as many fresh seeds, also when the search was finished before; launch/confirm.py does the same later.
A loss that diverges, or that has ended the process three times, is recorded as failed.  With --retry_failed all that
has failed is trained again, and everything is concluded anew.

A search ends early after --hours, with a loss that reaches the AP of --target, or when q is pressed on its terminal:
what it has found by then goes through the final comparison and is reported.  Ctrl-C leaves at once, with the page of
what is known.  The same command without these goes on where the search ended, and a finished search goes on with more
generations or seeds.

With --coordinator several processes train, on one machine or on many that share the work folder and the data.  Process
0 searches, and alone writes and shows what is found.  If one ends, all do; the same commands resume.

The formulas of --proposals, of either loss, are read and never executed, and pass the same filters as all others, in a
generation of their own before the next one; a finished search takes them, too.
"""

import script

import contextlib
import math
import pathlib
import shlex
import sys
import time
from collections.abc import Iterator

from absl import flags
from rich.console import Console

import compilation
import config_file
import interrupts
import keys
import pictures
import workers
from confirming import confirm
from cse_jax import loss_table, search, workdir
from cse_jax.errors import UserError
from cse_jax.reporting import page, report
from cse_jax.reporting.board import Board
from cse_jax.reporting.live_page import LivePage
from cse_jax.reporting.monitor import Monitor
from cse_jax.search import extension
from cse_jax.search.ends import Ends
from cse_jax.search.ledger import Ledger
from cse_jax.search.proposals import read as propose
from search_run import SearchRun

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
_HOURS = flags.DEFINE_float(
    "hours",
    None,
    "Hours that this run may take, its final comparison included: the search for losses ends in time for it.",
    lower_bound=1e-3,
    upper_bound=1e5,
)
_TARGET = flags.DEFINE_float(
    "target",
    None,
    "AP on the select split, 0 to 1: a loss that reaches it at the end of the proxy task ends the search for losses.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_PROPOSALS = flags.DEFINE_string(
    "proposals",
    None,
    "File of formulas to judge beside the search's own: one a line, in either notation; # begins a comment.",
)
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Also write figures for TensorBoard (needs tensorboardX).")
_QUIET = flags.DEFINE_bool("quiet", False, "Print nothing but the result and errors.")
_RETRY_FAILED = flags.DEFINE_bool(
    "retry_failed", False, "Train again what has failed, and conclude anew from all trainings."
)
_ALLOW_DEVICE_CHANGE = flags.DEFINE_bool(
    "allow_device_change", False, "Resume a search that was begun with another device; its report then names both."
)


def main(argv: list[str]) -> None:
    script.start(argv)
    workers.check()
    config: SearchRun = _CONFIG.value
    started = time.monotonic()
    folder = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / config.name)
    console = Console(file=sys.stdout)
    shown = Console(file=sys.stdout, quiet=_QUIET.value)
    ends = Ends(hours=_HOURS.value or math.inf, target=math.inf if _TARGET.value is None else _TARGET.value)

    resumes = f"Nothing finished is lost: the same command resumes the search in {folder}."
    with script.ending("The search", interrupted=resumes), compilation.kept(), workers.joined(config) as searches:
        if not searches:
            return
        with script.in_folder(
            "The search",
            folder,
            console,
            interrupted=f"{resumes} What it found so far: {folder / page.NAME}",
            kept=f"What was finished is kept in {folder}.",
        ):
            with workers.opened(config, folder) as opened:
                _search(config, folder, console, shown, ends, started, opened)
            if _CONFIRM.value and workdir.read_result(folder)["discovered"]:
                confirm(config, folder, _CONFIRM.value, shown)


def _search(
    config: SearchRun,
    folder: pathlib.Path,
    console: Console,
    shown: Console,
    ends: Ends,
    started: float,
    opened: workers.Opened,
) -> None:
    """Runs the search.

    Args:
      config: of the search.
      folder: where it works.
      console: for what is always said.
      shown: for the view of it while it runs.
      ends: what may end it early.
      started: when the script was.
      opened: who trains.
    """
    about, trainer = workdir.describe(config) | {"device": opened.device}, opened.trainer
    tried = loss_table.tried(loss_table.find(config.prior), trainer.task) if config.prior else None
    proposals = None
    if _PROPOSALS.value:
        proposals = propose(pathlib.Path(_PROPOSALS.value), trainer.task, max_nodes=config.search.filters.max_nodes)
        for line in proposals.bad:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    allowed = {"extendable": extension.EXTENDABLE, "allow_device_change": _ALLOW_DEVICE_CHANGE.value}
    with Ledger(folder / "ledger.sqlite", identity=about, **allowed) as ledger:
        about |= {
            "command": shlex.join(["python", "launch/search.py", *sys.argv[1:]]),
            "task": trainer.task.as_data(),
            "device": ", before that ".join([about["device"], *reversed(ledger.former_devices)]),
        }
        workdir.write_description(folder, about)
        for effect in extension.effects(ledger):
            shown.print(effect, markup=False, highlight=False, soft_wrap=True)
        if _RETRY_FAILED.value:
            shown.print(f"{ledger.forget_failures()} failed trainings are run again.")
        if (together := trainer.at_once("proxy")) > 1:
            shown.print(f"{together} whole detectors train side by side.")
        costs: dict[str, float] = {
            purpose: trainer.horizons(purpose)[-1] for purpose in ("probe", "overfit", "proxy", "final")
        }
        costs["probe"] /= trainer.at_once("probe")
        with (
            Monitor(shown, steps=costs) as monitor,
            LivePage(monitor, folder, trainer.task) as live,
            interrupts.at_end(live.stopped),
            _asked_by_key(ends, monitor),
            Board(live, folder) if _TENSORBOARD.value else contextlib.nullcontext(live) as progress,
        ):
            result = search.run(
                config.search,
                trainer=trainer,
                ledger=ledger,
                progress=progress,
                tried=tried,
                ends=ends,
                proposals=proposals.formulas if proposals else None,
            )
    known = [config.search.classification.seed_known, config.search.regression.seed_known]
    about |= {
        "name": config.name,
        "scale": _scale(config),
        "seeding": f"classification {known[0]}, regression {known[1]}",
        "seconds": time.monotonic() - started,
    }
    data = report.result_dict(result, about=about)
    report.write_result(folder, data)
    _draw(config, folder, shown)
    path = page.write(folder, trainer.task)
    report.show(shown, result)
    if compiled := compilation.summary():
        shown.print(compiled, markup=False, highlight=False, soft_wrap=True)
    said = [data["conclusion"], data["scope"], data["ended"], f"Report: {folder / 'report.md'}, page: {path}"]
    console.print("\n".join(filter(None, said)), markup=False, highlight=False, soft_wrap=True)


def _draw(config: SearchRun, folder: pathlib.Path, console: Console) -> None:
    """Draws what the detectors find, for the page; the search's result does not depend on it."""
    try:
        pictures.write(config, folder, workdir.read_result(folder))
    except (UserError, OSError) as error:
        console.print(f"There are no pictures of test images: {error}", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _asked_by_key(ends: Ends, monitor: Monitor) -> Iterator[None]:
    """Ends the search when q is pressed."""

    def ask() -> None:
        monitor.say("q: the search ends after the training that runs; what it has found is compared and reported.")
        ends.ask()

    with keys.heard("q", ask) as can:
        monitor.hint = "q ends the search with a report, Ctrl-C leaves at once" if can else ""
        yield


def _scale(config: SearchRun) -> str:
    """How candidates were weighted, in words."""
    filters = config.search.filters
    factors = ", ".join(f"{weight:g}" for weight in filters.weights)
    tried = f"; the best of the factors {factors} on fixed features" if len(filters.weights) > 1 else ""
    return _SCALES[filters.scale] + tried


if __name__ == "__main__":
    script.run(main)
