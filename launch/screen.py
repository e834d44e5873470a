"""Screens random formulas by the million and keeps those that converge.

    python launch/screen.py --space=box --count=10000000
    python launch/screen.py --space=docs/examples/centreness.py --count=1000000 --out=runs/centreness

Each behaviour is kept once, with its shortest formula, in Parquet files under --out.  After an interruption the same
command resumes where it stopped.  With --enumerate, all formulas up to --max_nodes are
screened instead, in order of size:

    python launch/screen.py --space=box --enumerate --max_nodes=7

Several processes share the work of random screening:

    python launch/screen.py --space=box --coordinator=host:1234 --processes=2 --process=0
    python launch/screen.py --space=box --coordinator=host:1234 --processes=2 --process=1
"""

import script

import os
import pathlib
import sys
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")  # batches run side by side instead

import jax
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import compilation
import processes
from cse_jax.atlas.enumeration import enumerate_losses
from cse_jax.atlas.stream import screen_batches
from cse_jax.atlas.survivors import Survivors, read_survivors, write_size
from cse_jax.errors import InputError
from cse_jax.language import spaces
from cse_jax.screening.sizes import sizes

_SPACE = flags.DEFINE_string("space", "box", f"{', '.join(spaces.SPACES)}, or a Python file that defines SPACE.")
_COUNT = flags.DEFINE_integer(
    "count", 10_000_000, "Formulas to screen, all processes together.", lower_bound=1, upper_bound=10**15
)
_OUT = flags.DEFINE_string("out", None, "Folder of the survivors; runs/screen_<space> by default.")
_UNITS = flags.DEFINE_string(
    "units", None, "Unit of length that the detector feeds its losses; the first of the space, pixels, by default."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of all formulas.", lower_bound=0, upper_bound=10**9)
_MAX_NODES = flags.DEFINE_integer(
    "max_nodes",
    None,
    "Nodes that no formula may exceed; 40 by default, 6 with --enumerate.",
    lower_bound=1,
    upper_bound=64,
)
_PER_OPERATOR = flags.DEFINE_integer(
    "per_operator",
    None,
    "Size of a batch, in tiles of each operator; 16 by default, 1 on GPUs, whose tiles are larger.",
    lower_bound=1,
    upper_bound=65_536,
)
_ENUMERATE = flags.DEFINE_bool("enumerate", False, "Screen all formulas up to --max_nodes, not random ones.")
_BATCHES = flags.DEFINE_integer(
    "batches", None, "Screen this many batches, instead of --count formulas.", lower_bound=1, upper_bound=10**9
)
_FLUSH_SECONDS = flags.DEFINE_float(
    "flush_seconds", 20.0, "How often survivors are written.", lower_bound=0.0, upper_bound=1e6
)


def main(argv: list[str]) -> None:
    script.start(argv)
    processes.check()
    console = Console(file=sys.stdout)

    def say(message: str) -> None:
        console.print(message, style="red", markup=False, soft_wrap=True)

    interrupted = "What is on disk is kept: the same command resumes the screening."
    if _ENUMERATE.value:
        interrupted = "Files of finished sizes are kept; the same command enumerates all sizes again."
    with script.ending("The screening", interrupted=interrupted, say=say), compilation.kept():
        space = spaces.find(_SPACE.value)
        processes.join()
        what = "atlas" if _ENUMERATE.value else "screen"
        folder = pathlib.Path(_OUT.value or f"runs/{what}_{space.name}")
        (_enumerate if _ENUMERATE.value else _screen)(space, folder, console)


def _units(space: spaces.Space) -> str:
    units = _UNITS.value or space.units[0]
    if units not in space.units:
        raise InputError(f"--units is {units!r}; space {space.name} has {', '.join(space.units)}")
    return units


def _enumerate(space: spaces.Space, folder: pathlib.Path, console: Console) -> None:
    """All formulas, size by size; a file for each size."""
    if jax.process_count() > 1:
        raise InputError("--enumerate runs in one process")
    largest = _MAX_NODES.value or 6
    units = _units(space)
    settings = {"space": space.name, "units": units, "enumerated": True}
    titles = ("nodes", "formulas", "behaviours", "dependent", "convergent", "seconds")
    console.print("".join(f"{title:>13}" for title in titles))
    started, total = time.monotonic(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("compiling")

        def show(nodes: int, done: int, everyone: int) -> None:
            progress.update(task, description=f"{nodes} nodes", completed=done, total=everyone)

        for report in enumerate_losses(space, largest, units=units, progress=show):
            write_size(folder, space, report, settings)
            total += len(report.losses)
            figures = (report.nodes, report.formulas, report.behaviours, report.dependent, len(report.losses))
            console.print("".join(f"{n:>13,}" for n in figures) + f"{time.monotonic() - started:>13.1f}")
    console.print(f"{total:,} convergent behaviours in {folder}; the shortest:", markup=False, soft_wrap=True)
    for row in read_survivors(folder, space, most=5):
        console.print(f"  {row['formula']}", markup=False, soft_wrap=True)


def _screen(space: spaces.Space, folder: pathlib.Path, console: Console) -> None:
    size, units = sizes(), _units(space)
    per_operator = _PER_OPERATOR.value or size.per_operator
    settings = {
        "space": space.name,
        "units": units,
        "seed": _SEED.value,
        "max_nodes": _MAX_NODES.value or 40,
        "per_operator": per_operator,
        "width": size.width,
        "processes": jax.process_count(),
    }
    survivors = Survivors(folder, space, settings, process=jax.process_index())
    share = -(-_COUNT.value // jax.process_count())
    started, before, flushed = time.monotonic(), survivors.candidates, time.monotonic()

    def done(number: int) -> bool:
        return number >= _BATCHES.value if _BATCHES.value else survivors.candidates >= share

    def numbers():
        for number in survivors.left():
            if done(number):
                return
            yield number

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    batches = screen_batches(
        space,
        numbers(),
        seen=survivors.seen,
        seed=_SEED.value,
        units=units,
        per_operator=per_operator,
        width=size.width,
        max_nodes=_MAX_NODES.value or 40,
    )
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(f"{space.name}: compiling", total=share, completed=survivors.candidates)
            for batch in batches:
                if done(batch.number):
                    break
                survivors.add(batch)
                if survivors.full or time.monotonic() - flushed > _FLUSH_SECONDS.value:
                    survivors.flush()
                    flushed = time.monotonic()
                rate = (survivors.candidates - before) / (time.monotonic() - started)
                what = f"{space.name}: {rate / 1e6:.2f} M/s, {survivors.behaviours:,} convergent behaviours"
                progress.update(task, completed=min(survivors.candidates, share), description=what)
    finally:
        survivors.flush()  # before what may take longer than an interruption waits
        batches.close()
    console.print(
        f"{survivors.candidates:,} formulas of {space.name}: {len(survivors.seen):,} distinct ones converge, with "
        f"{survivors.behaviours:,} behaviours, in {folder}",
        markup=False,
        soft_wrap=True,
    )
    if jax.process_index() == 0:
        for row in read_survivors(folder, space, most=5):
            console.print(f"  {row['formula']}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    script.run(main)
