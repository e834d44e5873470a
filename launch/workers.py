"""The flag ``--workers``: where trainings run, in threads of this process or in processes that Ray starts."""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags

from cse_jax import workdir
from cse_jax.search.ray_trainer import RayTrainer
from cse_jax.search.trainer import Trainer
from detectors.training.search_trainer import DetectorTrainer
from search_run import SearchRun, trainer_of

_FORMS = re.compile(r"(?P<where>inline|ray):(?P<count>[1-9][0-9]{0,2}|10[01][0-9]|102[0-4])|(?P<address>ray://\S+)")
_WORKERS = flags.DEFINE_string(
    "workers",
    None,
    "Trainings that run at once: inline:N in threads of this process (N is config.search.workers by default), ray:N in "
    "N processes of this machine, each with an accelerator if there are any, or ray://host:10001 on a Ray cluster.",
)
flags.register_validator(
    "workers",
    lambda value: value is None or _FORMS.fullmatch(value),
    message="it must be inline:N or ray:N, with N from 1 to 1,024, or ray://host:port",
)


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


@contextlib.contextmanager
def opened(config: SearchRun, folder: pathlib.Path, *, selects: bool = True) -> Iterator[Opened]:
    """The trainer of a run, by the flag; ``config.search.workers`` becomes the number of its workers.

    Args:
      config, folder, selects: as of ``trainer_of``.

    Raises:
      InputError: as of ``trainer_of``.
      WorkersError: there is no such cluster.
    """
    make = functools.partial(trainer_of, config, folder, selects=selects)
    form = _FORMS.fullmatch(_WORKERS.value or "")
    count = int(form["count"] or 0) if form else config.search.workers
    if not form or form["where"] == "inline":
        config.search.workers = count
        local = make()
        yield Opened(local, local, workdir.device())
        return
    # This process computes beside the workers, which may use the same devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with RayTrainer(make, address=form["address"], workers=count) as trainer:
        config.search.workers = trainer.workers
        yield Opened(trainer, trainer.local, trainer.device)
