"""The flags of a script that several processes run together, on one machine or on many."""

import re

import jax
from absl import flags

from cse_jax.errors import InputError

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Address host:port of process 0 where several share the work; auto on SLURM and Cloud TPU, which tell all three.",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "How many processes share the work.", lower_bound=1, upper_bound=65_536
)
_PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is, from 0.", lower_bound=0, upper_bound=65_535)
_ADDRESS = re.compile(r"[^:/\s]+:[1-9][0-9]{0,4}|\[[0-9a-fA-F:]+\]:[1-9][0-9]{0,4}")


def check() -> None:
    """Raises InputError for flags that do not go together."""
    coordinator, processes, process = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if coordinator == "auto" and (processes, process) == (1, 0):
        return
    if process >= processes or (processes > 1) != (coordinator is not None):
        raise InputError("several processes need --coordinator, --processes and a --process below it")
    if coordinator is not None and not _ADDRESS.fullmatch(coordinator):
        raise InputError(f"--coordinator={coordinator} is no address; write host:port, as in localhost:1234")


def join() -> None:
    """Makes this process one of those that share the work, if there are several; before JAX is used."""
    jax.config.update("jax_enable_preemption_service", False)  # which would take the place of who hears terminations
    if _COORDINATOR.value == "auto":
        jax.distributed.initialize()
    elif _COORDINATOR.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


def several() -> bool:
    """Whether several processes share the work, by the flags."""
    return _COORDINATOR.value is not None


def host() -> str | None:
    """Of the first process, as the others know it; None if JAX finds it."""
    return None if _COORDINATOR.value in (None, "auto") else _COORDINATOR.value.rpartition(":")[0]
