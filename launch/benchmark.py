"""Measures this project beside what else one could use, in one run of one process.

    python launch/benchmark.py --suite=losses
    python launch/benchmark.py --suite=losses --size=full
    python launch/benchmark.py --suite=screening
    python launch/benchmark.py --suite=simulation
    python launch/benchmark.py --suite=detectors
    python launch/benchmark.py --suite=convolutions --size=full
    python launch/benchmark.py --suite=input
    python launch/benchmark.py --suite=scaling
    python launch/benchmark.py --suite=accelerator --markdown=gpu.md
    python launch/benchmark.py --suite=analysis --topology=v5e:2x2
    python launch/benchmark.py --suite=strategies --table=runs/fcos_digits.parquet
    python launch/benchmark.py --suite=filters

Medians over alternating rounds; ratios are what to compare between machines.
"""

import script

import os
import pathlib
import sys

if any("suite=screening" in argument for argument in sys.argv):  # batches run side by side instead
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
if any("topology=" in argument for argument in sys.argv):
    os.environ["JAX_PLATFORMS"] = "cpu"  # the TPU is not there
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nor is a cloud that would describe it
if any("suite=detectors" in argument for argument in sys.argv):
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory of the same device
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning, PyTorch's threads lose tenfold on a busy machine

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks import (
    accelerator,
    analysis,
    convolutions,
    detectors,
    device,
    filters,
    input_pipeline,
    losses,
    scaling,
    screening,
    simulation,
    strategies,
)
from benchmarks.report import Report, markdown, shown
from cse_jax.errors import InputError

SUITES = {
    "losses": losses.measure,
    "screening": screening.measure,
    "simulation": simulation.measure,
    "detectors": detectors.measure,
    "convolutions": convolutions.measure,
    "input": input_pipeline.measure,
    "accelerator": accelerator.measure,
    "analysis": lambda report, **keywords: analysis.measure(report, topology=_TOPOLOGY.value, **keywords),
    "scaling": scaling.measure,
    "filters": lambda report, **keywords: filters.measure(report, table=_TABLE.value, **keywords),
    "strategies": lambda report, **keywords: strategies.measure(
        report, table=_TABLE.value, prior=_PRIOR.value, **keywords
    ),
}

_SUITE = flags.DEFINE_enum("suite", None, list(SUITES), "What to measure.", required=True)
_SIZE = flags.DEFINE_enum(
    "size",
    None,
    ["smallest", "small", "full"],
    "small: the detectors and populations of a search, R50 at 256 x 320 in the suite of detectors (default on CPU); "
    "full: R50 at 800 x 1344 (default elsewhere); smallest: only to see that it runs.",
)
_ROUNDS = flags.DEFINE_integer(
    "rounds",
    None,
    "Rounds of each measurement; 7 by default, and 3 in the suite accelerator.",
    lower_bound=1,
    upper_bound=1000,
)
_TABLE = flags.DEFINE_string(
    "table", None, "Table of trained losses, in the suites of strategies and filters; the package's by default."
)
_PRIOR = flags.DEFINE_string(
    "prior", None, "Table of another task, from which the strategy surrogate may start as well."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU for which the suite of analysis compiles, though it is not there: v5e:2x2; needs libtpu."
)
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Also write the tables to this file, as a section of a page.")


def main(argv: list[str]) -> None:
    script.start(argv)
    for flag, value in (("json", _JSON.value), ("markdown", _MARKDOWN.value)):
        if value and not pathlib.Path(value).absolute().parent.is_dir():
            raise InputError(f"--{flag}={value} is in no folder that exists")
    console = Console(file=sys.stdout, width=150 if not sys.stdout.isatty() else None)
    where = device.asked() if _SUITE.value == "accelerator" else device.here()  # which is left to those it starts
    size = _SIZE.value or ("small" if where.platform == "cpu" else "full")
    rounds = _ROUNDS.value or (3 if _SUITE.value == "accelerator" else 7)
    about = {"suite": _SUITE.value, "size": size, "device": str(where), "jax": jax.__version__}
    first = f"{_SUITE.value}, size {size}, {rounds} rounds; {where}, jax {jax.__version__}"
    console.print(first, markup=False)
    report = Report(about, lambda text: console.print(text, markup=False), _JSON.value and pathlib.Path(_JSON.value))
    with script.ending("The measurement"):
        SUITES[_SUITE.value](report, size=size, rounds=rounds)
    for title, rows in report.tables.items():
        table = Table(title=title, title_justify="left")
        for column in rows[0]:
            table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
        for row in rows:
            table.add_row(*(shown(row.get(column)) for column in rows[0]))
        console.print(table)
    if _MARKDOWN.value:
        text = "\n\n".join([f"## {where.kind}", f"{first}.", *report.notes, markdown(report.tables)])
        pathlib.Path(_MARKDOWN.value).write_text(text)


if __name__ == "__main__":
    script.run(main)
