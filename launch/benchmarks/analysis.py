"""What XLA says of compiled functions that nothing runs: their memory beside a budget, and their least time.

They are the programs that accelerators get, compiled for the device of this machine, or with ``--topology=v5e:2x2`` and
libtpu for a TPU that is not there.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.report import Report
from benchmarks.smallest import fcos_smallest
from cse_jax.atlas import stream
from cse_jax.errors import InputError
from cse_jax.language import interpreter, program, selecting, spaces, tiling, zoo
from cse_jax.language.float64 import float64
from cse_jax.language.spaces import Space
from cse_jax.screening import simulation
from cse_jax.screening.sizes import sizes
from detectors.losses import resolve_pair
from detectors.models import DetectorConfig, build_detector
from detectors.models.detector import abstract_detector
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.models.fcos import FCOSConfig, fcos_tiny
from detectors.structures import Batch
from detectors.training.batched import jit_many
from detectors.training.fitting import bytes_needed
from detectors.training.step import TrainConfig, jit_detector

NUMBER = jax.ShapeDtypeStruct((), jnp.int32)
_GB = 1e9
_SPEEDS = {"H100": (495e12, 3.35e12), "TPU v5e": (197e12, 0.82e12)}  # TF32 or bfloat16 FLOP/s, and bytes/s, as sold
_MEMORY = {"gpu": 80.0, "tpu": 16.0}  # GB


class Case(NamedTuple):
    """A function that is compiled.

    Attributes:
      name: what it does.
      budget: GB that it may take.
      lower: its program for a device.
    """

    name: str
    budget: float
    lower: Callable[[jax.Device], jax.stages.Lowered]  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stub


def measure(report: Report, *, size: str, rounds: int, topology: str | None) -> None:
    """All tables of the suite; nothing is run, so there are no rounds."""
    del rounds
    device, platform = target(topology)
    report.note(f"As for a {platform.upper()}, compiled for {device.device_kind}; nothing was run.")
    report.note(
        "A loop counts once in the estimates, however often it runs: formulas, simulations and NMS take longer."
    )
    for case in cases(size, platform):
        report.say(case.name)
        started = time.perf_counter()
        try:
            compiled = compile_for(device, platform, case)
        except jax.errors.JaxRuntimeError as error:
            report.note(f"{case.name}: refused by the compiler: {str(error).splitlines()[0]}")
            continue
        seconds = time.perf_counter() - started
        memory: Any = compiled.memory_analysis()
        total = bytes_needed(compiled) / _GB
        report.row(
            "Memory by XLA's analysis, GB",
            {
                "function": case.name,
                "arguments": memory.argument_size_in_bytes / _GB,
                "outputs": memory.output_size_in_bytes / _GB,
                "temporaries": memory.temp_size_in_bytes / _GB,
                "total": total,
                "budget": case.budget,
                "fits": "yes" if total <= case.budget else "NO",
                "compile, s": seconds,
            },
        )
        report.row("Estimates by XLA's analysis", {"function": case.name} | _least_times(compiled))
    if topology is None:  # whose compiler counts no transcendentals
        for space in [spaces.BOX] if size == "smallest" else spaces.SPACES.values():
            for row in _work_of_an_instruction(space):
                report.row("Work of an instruction, for each element", row)


def compile_for(device, platform: str, case: Case) -> jax.stages.Compiled:
    """The program that a platform gets, compiled for a device of it that need not be there."""
    with mock.patch.object(jax, "default_backend", lambda: platform):
        return case.lower(device).compile()


def cases(size: str, platform: str) -> list[Case]:
    """The compiled functions that take the most."""
    if size == "smallest":
        step = functools.partial(training_step, fcos_smallest(), batch_of(2, 64, 96))
        return [Case("training step, the smallest", 0.1, step)]
    images, budget = {"gpu": 16, "tpu": 2}[platform], _MEMORY[platform]
    large, middle, small = batch_of(images, 800, 1344), batch_of(16, 400, 672), batch_of(16, 96, 96)
    found = [
        Case(f"simulation of a batch, {space.name}", 8.0, functools.partial(simulation_batch, space))
        for space in spaces.SPACES.values()
    ]
    if platform != "tpu":  # which leaves float64 to its host
        found += [
            Case(f"screening pass, {space.name}", 8.0, functools.partial(screening_pass, space))
            for space in spaces.SPACES.values()
        ]
    elements = (16, 5_600, 80)
    array = 4 * math.prod(elements) * {"gpu": 1.0, "tpu": 128 / 80}[platform]  # whose rows are 128 long
    for count in (1, 32):  # beside the budget of formulas: four inputs, value and gradient, and the value once more
        limit = (1.05 * tiling.BUDGET + (4 + 3 * count) * array) / _GB
        name = f"{count} formula(s) with gradient, {' x '.join(map(str, elements))}"
        found.append(Case(name, limit, functools.partial(formulas, spaces.BINARY_CLASS, count, elements)))
    tiny = fcos_tiny()
    found += [
        Case("training step, default search", 1.0, functools.partial(training_step, tiny, small)),
        Case("probe of 32, default search", 8.0, functools.partial(side_by_side, tiny, small, 32, heads=True)),
        Case("64 detectors side by side, default search", budget, functools.partial(side_by_side, tiny, small, 64)),
        Case(
            "probe of 32, FCOS R50, 16 x 400 x 672",
            8.0,
            functools.partial(side_by_side, FCOSConfig(), middle, 32, heads=True),
        ),
    ]
    for name, config in (("FCOS R50", FCOSConfig()), ("Faster R-CNN R50", FasterRCNNConfig())):
        for compute in ("float32", "bfloat16"):
            step = functools.partial(training_step, config, large, compute=compute)
            found.append(Case(f"training step, {name}, {images} x 800 x 1344, {compute}", budget, step))
    return found


def batch_of(images: int, height: int, width: int, boxes: int = 8) -> Batch:
    """The shapes of a batch."""

    def array(shape, dtype) -> Any:
        return jax.ShapeDtypeStruct((images, *shape), dtype)

    return Batch(
        image=array((height, width, 3), jnp.uint8),
        image_size=array((2,), jnp.float32),
        boxes=array((boxes, 4), jnp.float32),
        labels=array((boxes,), jnp.int32),
        valid=array((boxes,), bool),
        image_id=array((), jnp.int32),
        real=array((), bool),
    )


def training_step(config: DetectorConfig, batch: Batch, device, **options) -> jax.stages.Lowered:
    """The step of one detector, its losses being data."""
    detector, build = build_detector(config)
    functions = jit_detector(build, TrainConfig(batch_size=len(batch.image_id), **options), devices=[device])
    state, losses = jax.eval_shape(functions.init, 0), _shapes(resolve_pair(detector.cls_space))
    return functions.step.lower(state, batch, losses, NUMBER, NUMBER)


def side_by_side(
    config: DetectorConfig, batch: Batch, count: int, device, *, heads: bool = False
) -> jax.stages.Lowered:
    """The step of many detectors, or of their output layers on fixed features."""
    detector, build = build_detector(config)
    own = {"own": detector.is_output} if heads else {}
    many = jit_many(build, TrainConfig(batch_size=len(batch.image_id)), **own)
    _, *model = nnx.split(abstract_detector(build), nnx.Param, ...)
    losses = resolve_pair(detector.cls_space)
    with jax.default_device(device):
        return many.lower(tuple(model), count, batch, losses)


def formulas(space: Space, count: int, elements: tuple[int, ...], device) -> jax.stages.Lowered:
    """Values and gradients of formulas for the same elements."""
    batch = program.stack([program.compile_expression(zoo.default(space))] * count)
    inputs = {variable.name: jax.ShapeDtypeStruct(elements, jnp.float32) for variable in space.variables}
    run = jax.vmap(functools.partial(interpreter.value_and_gradients, space), (0, None))
    with jax.default_device(device):
        return jax.jit(run).lower(_shapes(batch), inputs)


def simulation_batch(space: Space, device) -> jax.stages.Lowered:
    """Descents on bare predictions."""
    batch = program.stack([program.compile_expression(zoo.default(space))] * sizes().simulated)
    with jax.default_device(device):
        return simulation._simulate_batch.lower(space, space.units[0], 0, _shapes(batch))


def screening_pass(space: Space, device) -> jax.stages.Lowered:
    """A batch of random formulas, grown and judged on the coarse grid."""
    del device  # those that compute in float64
    cut = sizes()
    with float64():
        run = stream._on_all_devices(space, space.units[0], cut.per_operator, cut.width, 40)
        return run.lower(NUMBER, jax.ShapeDtypeStruct((jax.local_device_count(),), jnp.int32))


def _work_of_an_instruction(space: Space) -> Iterator[dict[str, Any]]:
    """What an accelerator computes, every operator of which each program takes one, beside the operators' mean.

    First of an instruction, and then of its derivative.
    """
    operators, shape = program.instruction_set(space), (32, 64, 80) if space.class_axis else (32, 64)
    opcode, row = jax.ShapeDtypeStruct(shape[:1], jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)

    def work(function: Callable[..., Any], *arguments: jax.ShapeDtypeStruct) -> np.ndarray:
        cost: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
        return np.array([cost.get("flops", 0.0), cost.get("transcendentals", 0.0)]) / math.prod(shape)

    def forward(code, *operands):
        return selecting.select(code, [row.apply(*operands) for row in operators])

    def backward(code, *arguments):
        changes = zip(*(row.transpose(*arguments) for row in operators), strict=True)
        return [selecting.select(code, each) for each in changes]

    for name, every, arguments, own in (
        ("forward", forward, [row] * 2, [operator.apply for operator in operators]),
        ("backward", backward, [row] * 3, [operator.transpose for operator in operators]),
    ):
        of_all = work(every, opcode, *arguments)
        of_one = np.mean([work(function, *arguments) for function in own], axis=0)
        found: dict[str, Any] = {"space": space.name, "pass": name, "operators": len(operators)}
        for kind, value, least in zip(("FLOP", "transcendentals"), of_all, of_one, strict=True):
            found |= {kind: float(value), f"{kind} of one": float(least)}
        yield found


def _shapes(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), tree)


def target(topology: str | None):
    """The device to compile for, and the platform whose programs these are."""
    if topology is None:
        return jax.devices()[0], "tpu" if jax.default_backend() == "tpu" else "gpu"
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices[0], "tpu"
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--topology={topology}: {error}; it is that of a TPU, as v5e:2x2, and needs libtpu: pip install libtpu"
        ) from error


def _least_times(compiled: jax.stages.Compiled) -> dict:
    """Work, traffic, and what a device can't be faster than."""
    cost = compiled.cost_analysis() or {}
    work, traffic = cost.get("flops", 0.0), cost.get("bytes accessed", 0.0)
    least = {
        f"{name}, at least, ms": 1e3 * max(work / flops, traffic / bandwidth)
        for name, (flops, bandwidth) in _SPEEDS.items()
    }
    return {"GFLOP": work / 1e9, "GB moved": traffic / _GB, "FLOP per byte": work / max(traffic, 1.0)} | least
