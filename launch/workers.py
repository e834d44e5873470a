"""Where trainings run: in threads of this process, in processes that Ray starts, or in those of ``--coordinator``."""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
from absl import flags

import processes
from cse_jax import workdir
from cse_jax.errors import InputError
from cse_jax.search import process_trainer
from cse_jax.search.process_trainer import Link, ProcessTrainer
from cse_jax.search.ray_trainer import RayTrainer
from cse_jax.search.trainer import Trainer
from detectors import parallel
from detectors.training.search_trainer import DetectorTrainer
from search_run import SearchRun, trainer_of

_FORMS = re.compile(r"(?P<where>inline|ray):(?P<count>[1-9][0-9]{0,2}|10[01][0-9]|102[0-4])|(?P<address>ray://\S+)")
_WORKERS = flags.DEFINE_string(
    "workers",
    None,
    "Trainings that run at once: inline:N in threads of this process (N is config.search.workers by default), ray:N in "
    "N processes of this machine, each with an accelerator if there are any, or ray://host:10001 on a Ray cluster. "
    "inline:N is for each process of --coordinator.",
)
flags.register_validator(
    "workers",
    lambda value: value is None or _FORMS.fullmatch(value),
    message="it must be inline:N or ray:N, with N from 1 to 1,024, or ray://host:port",
)


_links: list[Link] = []  # to the other processes of --coordinator


class Opened(NamedTuple):
    """Who trains.

    Attributes:
      trainer: has the trainings run where they are to run.
      local: the trainer of this process; the same one if they run here.
      device: on which they run, in words.
    """

    trainer: Trainer
    local: DetectorTrainer
    device: str


def check() -> None:
    """Raises InputError for flags that do not go together."""
    processes.check()
    if processes.several() and (_WORKERS.value or "").startswith("ray"):
        raise InputError(f"--workers={_WORKERS.value} and --coordinator are two ways to the same; give one of them")


@contextlib.contextmanager
def joined(config: SearchRun) -> Iterator[bool]:
    """Joins the processes of ``--coordinator``, if there are any; before JAX is used.

    Yields:
      Whether this is the process that searches.  The others have trained for it by then, and are done.

    Raises:
      ProcessLost: another process has ended before that.
    """
    if not processes.several():
        yield True
        return
    processes.join()
    parallel.work_alone()
    with process_trainer.connected(processes.host(), _threads(config)) as links:
        if number := jax.process_index():
            print(f"Process {number} of {jax.process_count()} trains for process 0.", flush=True)
            process_trainer.serve(links)
            yield False
            return
        _links[:] = links
        yield True


def _threads(config: SearchRun) -> int:
    """Trainings that run at once in a process."""
    form = _FORMS.fullmatch(_WORKERS.value or "")
    return int(form["count"]) if form and form["where"] == "inline" else config.search.workers


@contextlib.contextmanager
def opened(
    config: SearchRun, folder: pathlib.Path, *, selects: bool = True, own_starts: bool = False
) -> Iterator[Opened]:
    """The trainer of a run, by the flag; ``config.search.workers`` becomes the number of its workers.

    Args:
      config, folder, selects, own_starts: as of ``trainer_of``.

    Raises:
      InputError: as of ``trainer_of``.
      WorkersError: there is no such cluster, or the devices of the processes differ.
    """
    make = functools.partial(trainer_of, config, folder, selects=selects, own_starts=own_starts)
    form = _FORMS.fullmatch(_WORKERS.value or "")
    if _links:
        together = ProcessTrainer(make, _links)
        config.search.workers = together.workers
        yield Opened(together, together.local, together.device)
        return
    if not form or form["where"] == "inline":
        config.search.workers = _threads(config)
        local = make()
        yield Opened(local, local, workdir.device())
        return
    # This process computes beside the workers, which may use the same devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with RayTrainer(make, address=form["address"], workers=int(form["count"] or 0)) as trainer:
        config.search.workers = trainer.workers
        yield Opened(trainer, trainer.local, trainer.device)
