"""How many detectors to train side by side on a device: by the memory and the time of their compiled step."""

import functools
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib.version

from cse_jax import workdir
from cse_jax.errors import InputError
from detectors.losses import DetectionLosses
from detectors.structures import Batch
from detectors.training.batched import JittedMany, stack_losses
from detectors.training.remembered import remembered
from detectors.training.step import Model

_MEASURING = (
    "Measuring, once for this detector and device, how many detectors to train at once: three programs are compiled, "
    "which takes minutes; --config.schedule.at_once=8 would train 8 without that."
)
_print = functools.partial(print, flush=True)


def bytes_needed(compiled: jax.stages.Compiled) -> int:
    """Memory of a compiled function: arguments, temporaries, and outputs that are not written over arguments.

    Raises:
      InputError: the device does not say.
    """
    sizes = compiled.memory_analysis()
    if sizes is None:
        raise InputError("this device does not say how much memory a step takes; set --config.schedule.at_once=1")
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + outputs


class _Step(NamedTuple):
    """The compiled step of some candidates, and the bytes it takes: infinite, without a function, if it did not fit."""

    count: int
    run: Any
    memory: float


def remembered_count(many: JittedMany, model: Model, batch: Batch, losses: DetectionLosses) -> int:
    """``fitting_count``, measured once on a machine for a program, which holds detector, shapes and optimisation.

    Args:
      many, model, batch, losses: as of ``fitting_count``.
    """
    program = hashlib.blake2b(many.lower(model, 2, batch, losses).as_text().encode(), digest_size=16).hexdigest()
    key = f"{workdir.device()}, {device_memory()} bytes, jaxlib {jaxlib.version.__version__}, program {program}"

    def measure() -> int:
        _print(_MEASURING)
        return fitting_count(many, model, batch, losses)

    return remembered(workdir.default_data_dir() / "at_once.json", key, measure)


def fitting_count(
    many: JittedMany,
    model: Model,
    batch: Batch,
    losses: DetectionLosses,
    *,
    limit: int | None = None,
    most: int = 64,
    say: Callable[[str], None] = _print,
) -> int:
    """How many candidates to train side by side on this device: 1 on a CPU, else measured.

    On CPUs a vmapped convolution with weights of each candidate is slower than training one candidate after the other
    (``launch/benchmark.py --suite=simulation`` measures it).  Elsewhere the step is compiled for 2, for 4, and for the
    power of two that would then fill four fifths of the memory.  Of these the answer is the smallest whose double would
    shorten a candidate's share of the time by less than a tenth, if the time grows in a straight line.

    Args:
      many: the detector's functions.
      model: parameters and the rest.
      batch, losses: of a step.
      limit: bytes of the device's memory; by default what the device says.
      most: the largest answer, a power of two.
      say: prints a line of progress.

    Raises:
      InputError: the device does not say how much memory it has, or how much a step takes.
    """
    if limit is None and jax.default_backend() == "cpu":
        return 1
    available = 0.8 * (device_memory() if limit is None else limit)
    compiled = functools.partial(_compiled_step, many, model, batch, losses, say)
    # A single candidate is compiled differently, so its memory says nothing about that of several.
    low, high = compiled(2), compiled(4)
    if high.memory > available:
        return 1
    each = max(1.0, (high.memory - low.memory) / 2)
    largest = 2 ** int(math.log2(min(most, 4 + (available - high.memory) / each)))
    while largest > high.count:
        if (step := compiled(largest)).memory <= available:
            low, high = high, step
        largest //= 2
    times = [_seconds(step, many, model, batch, losses) for step in (low, high)]
    slope = (times[1] - times[0]) / (high.count - low.count)

    def share(count: int) -> float:
        return (times[0] + slope * (count - low.count)) / count

    count = 1
    while count < high.count and share(2 * count) <= 0.9 * share(count):
        count *= 2
    return count


def device_memory() -> int:
    """Bytes of this process's first device."""
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        raise InputError("this device does not say how much memory it has; set --config.schedule.at_once=1")
    return stats["bytes_limit"]


def _compiled_step(
    many: JittedMany,
    model: Model,
    batch: Batch,
    losses: DetectionLosses,
    say: Callable[[str], None],
    count: int,
) -> _Step:
    started = time.monotonic()
    try:
        compiled = many.lower(model, count, batch, losses).compile()
    except jax.errors.JaxRuntimeError as error:  # a TPU's compiler refuses what does not fit
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(f"{count} at once: more than the device has")
        return _Step(count, None, math.inf)
    memory = bytes_needed(compiled)
    say(f"{count} at once: {memory / 2**30:.2f} GiB, compiled in {time.monotonic() - started:.0f} s")
    return _Step(count, compiled, memory)


def _seconds(step: _Step, many: JittedMany, model: Model, batch: Batch, losses: DetectionLosses) -> float:
    """Duration of a step, the best of three."""
    (mine, opt_state, *common), several = many.init(model, step.count), stack_losses([losses] * step.count)
    batch, times = jax.device_put(batch), []
    for _ in range(4):
        started = time.perf_counter()
        mine, opt_state, metrics = step.run(mine, opt_state, *common, batch, several, jnp.int32(100), jnp.int32(0))
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - started)
    return min(times[1:])
