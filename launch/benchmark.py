"""Measures this project beside what else one could use, in one run of one process.

    python launch/benchmark.py --suite=losses
    python launch/benchmark.py --suite=losses --size=full
    python launch/benchmark.py --suite=screening
    python launch/benchmark.py --suite=simulation
    python launch/benchmark.py --suite=detectors
    python launch/benchmark.py --suite=strategies --table=runs/fcos_digits.parquet

Medians over alternating rounds; ratios are what to compare between machines.
"""

import script

import json
import os
import pathlib
import platform
import sys

if any("screening" in argument for argument in sys.argv):  # batches run side by side instead
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
if any("detectors" in argument for argument in sys.argv):
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory of the same device
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning, PyTorch's threads lose tenfold on a busy machine

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks import detectors, losses, screening, simulation, strategies
from cse_jax.errors import InputError

SUITES = {
    "losses": losses.measure,
    "screening": screening.measure,
    "simulation": simulation.measure,
    "detectors": detectors.measure,
    "strategies": lambda **keywords: strategies.measure(table=_TABLE.value, prior=_PRIOR.value, **keywords),
}

_SUITE = flags.DEFINE_enum("suite", None, list(SUITES), "What to measure.", required=True)
_SIZE = flags.DEFINE_enum(
    "size",
    None,
    ["smallest", "small", "full"],
    "small: the detectors and populations of a search, R50 at 256 x 320 in the suite of detectors (default on CPU); "
    "full: R50 at 800 x 1344 (default elsewhere); smallest: only to see that it runs.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds of each measurement.", lower_bound=1, upper_bound=1000)
_TABLE = flags.DEFINE_string(
    "table", None, "Table of trained losses of the suite of strategies; the package's by default."
)
_PRIOR = flags.DEFINE_string(
    "prior", None, "Table of another task, from which the strategy surrogate may start as well."
)
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(argv: list[str]) -> None:
    script.start(argv)
    if _JSON.value and not pathlib.Path(_JSON.value).absolute().parent.is_dir():
        raise InputError(f"--json={_JSON.value} is in no folder that exists")
    console = Console(file=sys.stdout, width=150 if not sys.stdout.isatty() else None)
    size = _SIZE.value or ("small" if jax.default_backend() == "cpu" else "full")
    device = f"{jax.devices()[0].device_kind} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"
    console.print(f"{_SUITE.value}, size {size}, {_ROUNDS.value} rounds; {device}, jax {jax.__version__}", markup=False)
    with script.ending("The measurement"):
        tables = SUITES[_SUITE.value](
            size=size, rounds=_ROUNDS.value, say=lambda text: console.print(text, markup=False)
        )
    for title, rows in tables.items():
        table = Table(title=title, title_justify="left")
        for column in rows[0]:
            table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
        for row in rows:
            table.add_row(*(_shown(value) for value in row.values()))
        console.print(table)
    if _JSON.value:
        about = {"suite": _SUITE.value, "size": size, "device": device, "jax": jax.__version__}
        pathlib.Path(_JSON.value).write_text(json.dumps(about | {"tables": tables}, indent=1))


def _shown(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    script.run(main)
