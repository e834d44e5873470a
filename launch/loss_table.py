"""Makes a table of trained losses: many different losses, each trained to the end, with every stage's score of it.

    python launch/loss_table.py --config=configs/loss_table/fcos_digits.py
    python launch/loss_table.py --config=configs/loss_table/fcos_digits.py --config.table.seeds=4
    python launch/loss_table.py --report=runs/fcos_digits.parquet

The file is written every few seconds, and after an interruption, on another machine too, the same command goes on with
it.  The report says how noisy the trainings are, which stages predict their outcome, and how good the best losses are.
"""

import script

import pathlib
import sys

from absl import flags
from rich.console import Console

import compilation
import config_file
from cse_jax import loss_table, workdir
from cse_jax.loss_table.making import make
from cse_jax.reporting import loss_table_report
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.task import PARTS
from search_run import TASK, LossTableRun, trainer_of

_CONFIG = config_file.define("configs/loss_table/fcos_digits.py", "Which losses, detector and data.", LossTableRun)
_FILE = flags.DEFINE_string("file", None, "The table; runs/<config.name>.parquet by default.")
_REPORT = flags.DEFINE_string("report", None, "Only report on this table, and train nothing.")
_BESIDE = flags.DEFINE_string("beside", None, "Say also how far this table, of other trainings, agrees on the order.")
_OF_THE_MACHINE = (  # fields of the task that another machine may have otherwise
    *(f"data.{name}" for name in ("data_dir", "root", "workers", "cache")),
    *(f"schedule.{name}" for name in ("at_once", "probe_at_once", "save_every")),
)


def main(argv: list[str]) -> None:
    script.start(argv)
    config: LossTableRun = _CONFIG.value
    console = Console(file=sys.stdout)
    if _REPORT.value:
        _show(loss_table.read(pathlib.Path(_REPORT.value)), config, console)
        return
    path = pathlib.Path(_FILE.value or pathlib.Path("runs") / f"{config.name}.parquet")
    folder = path.with_suffix("")

    interrupted = f"What is finished is in {path}; the same command goes on with it."
    kept = f"What was finished is in {path}."
    with script.in_folder("The table", folder, console, interrupted=interrupted, kept=kept), compilation.kept():
        _show(_make(config, path, folder, console), config, console)


def _make(config: LossTableRun, path: pathlib.Path, folder: pathlib.Path, console: Console) -> loss_table.LossTable:
    parts = [part for part in PARTS if part in config.parts]
    trainer = trainer_of(config, folder)
    about = workdir.describe(config)
    about["task"] = {name: about["config"][name] for name in TASK}
    del about["config"]
    about["box_units"] = trainer.task.box_units
    costs = {purpose: float(trainer.horizons(purpose)[-1]) for purpose in ("probe", "overfit", "table")}
    costs["probe"] /= trainer.at_once("probe")
    with Monitor(console, steps=costs) as monitor:
        return make(
            config.table, config.filters, parts=parts, trainer=trainer, progress=monitor, path=path, about=about,
            free=_OF_THE_MACHINE,
        )  # fmt: skip


def _show(table: loss_table.LossTable, config: LossTableRun, console: Console) -> None:
    beside = loss_table.read(pathlib.Path(_BESIDE.value)) if _BESIDE.value else None
    for text in loss_table_report.sections(table, config.filters, beside):
        console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    script.run(main)
