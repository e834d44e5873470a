"""A loss as data beside the same loss traced as code: time and memory of a training step, and what a new loss costs."""

import contextlib
import time
import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import detectors.losses
from benchmarks.report import Report
from benchmarks.smallest import faster_rcnn_smallest, fcos_smallest
from benchmarks.timing import alternate, milliseconds, ratio
from cse_jax.language import program, spaces, zoo
from cse_jax.language.expression import Expression
from cse_jax.language.population import decode
from cse_jax.language.spaces import Space
from cse_jax.sampling.random_trees import Shape, random_population
from detectors.losses import DetectionLosses, binary_class_loss, box_loss, multi_class_loss, term
from detectors.models import build_detector
from detectors.models.faster_rcnn import FasterRCNNConfig, faster_rcnn_tiny
from detectors.models.fcos import FCOSConfig, fcos_tiny
from detectors.structures import Batch
from detectors.training.step import TrainConfig, jit_detector

_LONG = Shape(min_height=6, max_height=9, max_nodes=40)
_HEADS = {  # rows, classes
    "smallest": {"binary_class": (256, 8), "multi_class": (64, 9)},
    "small": {"binary_class": (2 * 22_400, 80), "multi_class": (1024, 81)},
    "full": {"binary_class": (2 * 22_400, 80), "multi_class": (1024, 81)},
}
_DETECTORS = {
    "smallest": {"binary_class": fcos_smallest, "multi_class": faster_rcnn_smallest},
    "small": {"binary_class": fcos_tiny, "multi_class": faster_rcnn_tiny},
    "full": {"binary_class": FCOSConfig, "multi_class": FasterRCNNConfig},
}


_COUNTS = {"smallest": (1, 1), "small": (6, 6), "full": (6, 2)}  # pairs of losses timed alone, and in a training step
_ALONE, _STEP, _SWITCH = "Loss and gradient alone, at the head's size", "Training step", "Going over to another loss"


def measure(report: Report, *, size: str, rounds: int) -> None:
    """All tables of the suite; the default losses of both spaces come first, and a training step before other pairs."""
    alone, in_steps = _COUNTS[size]
    of_spaces = (spaces.BINARY_CLASS, spaces.MULTI_CLASS)[: 1 if alone == 1 else None]
    both = zip(*([(space, *pair) for pair in _pairs(space)] for space in of_spaces), strict=True)
    cases = [case for pairs in both for case in pairs][:alone]
    names = [f"{space.name}: {name}" for space, name, *_ in cases]
    report.plan(_ALONE, names)
    report.plan(_STEP, names[:in_steps])
    report.plan(_SWITCH, names[:in_steps])
    order = [(_ALONE, 0), (_STEP, 0)]
    order += [(_ALONE, k) for k in range(1, alone)] + [(_STEP, k) for k in range(1, in_steps)]
    heads = {}
    for title, k in order:
        report.say(f"{title}: {names[k]}")
        if title == _ALONE:
            heads[k] = _head(*cases[k], size, rounds)
            report.row(title, heads[k])
            continue
        row, switch = _step(*cases[k], size, rounds)
        if size == "full":  # else the heads have another size than the detector's
            row |= {"loss, share of the step": heads[k]["as data, ms"] / row["as data, ms"]}
        report.row(title, row)
        report.row(_SWITCH, switch)


def _pairs(space: Space) -> list[tuple[str, Expression, Expression]]:
    box = spaces.BOX
    default = f"{zoo.default_name(space)} + {zoo.default_name(box)}"
    cls_name, box_name = ("B_cls", "B_reg") if space == spaces.BINARY_CLASS else ("A_cls", "A_reg")
    long = max(decode(random_population(jax.random.key(0), space, _LONG, 200), space), key=len)
    return [
        (default, zoo.default(space), zoo.default(box)),
        (f"{cls_name} + {box_name}", zoo.find(cls_name, space), zoo.find(box_name, box)),
        (f"random, {len(long)} nodes + GIoU", long, zoo.default(box)),
    ]


@contextlib.contextmanager
def traced(*expressions: Expression) -> Iterator[None]:
    """While a step is traced inside, its losses become the code of these formulas."""
    by_space = {e.space.name: e for e in expressions}

    def evaluate(space: Space, program_: program.Program, inputs: spaces.Inputs) -> jax.Array:
        del program_
        value, shape = by_space[space.name].evaluate(inputs), inputs[space.variables[0].name].shape
        narrow = space.class_axis and value.shape[-1] == 1
        return jnp.broadcast_to(value / shape[-1] if narrow else value, shape)

    before = detectors.losses.interpreter
    detectors.losses.interpreter = types.SimpleNamespace(evaluate=evaluate)
    try:
        yield
    finally:
        detectors.losses.interpreter = before


def _bytes(compiled) -> float:
    memory = compiled.memory_analysis()
    return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20


def _head(space: Space, name: str, cls: Expression, box: Expression, size: str, rounds: int) -> dict:
    rows, classes = _HEADS[size][space.name]
    rng = np.random.default_rng(0)
    positive = rng.random(rows) < (0.01 if space == spaces.BINARY_CLASS else 0.25)
    labels = np.where(positive, rng.integers(0, classes - 1, rows), classes - 1)
    one_hot = np.eye(classes, dtype=np.float32)[labels]
    if space == spaces.BINARY_CLASS:
        one_hot[~positive] = 0.0
    iou = np.where(positive, rng.uniform(0.2, 1.0, rows), 1.0).astype(np.float32)
    boxes = np.sort(rng.uniform(0.0, 20.0, (rows, 2, 2)), 1).reshape(rows, 4).astype(np.float32)
    logits = rng.normal(-4.0, 1.0, (rows, classes)).astype(np.float32)
    given = tuple(map(jnp.asarray, (one_hot, iou, boxes, positive)))

    def total(moving, losses, one_hot, iou, target, positive):
        logits, predicted = moving
        if space == spaces.BINARY_CLASS:
            quality = iou[:, None] * one_hot
            per_row = binary_class_loss(losses.cls, logits=logits, quality=quality, labels=one_hot)
        else:
            per_row = multi_class_loss(losses.cls, logits=logits, labels=one_hot, iou=iou)
        per_box = box_loss(
            losses.box,
            predicted=predicted,
            target=target,
            predicted_offsets=predicted,
            target_offsets=target,
            mask=positive,
        )
        return per_row.sum() + per_box.sum()

    moving = jnp.asarray(logits), jnp.asarray(boxes + 1.0)
    losses = DetectionLosses(term(cls), term(box))
    as_data = jax.jit(jax.value_and_grad(total)).lower(moving, losses, *given).compile()
    with traced(cls, box):
        as_code = jax.jit(jax.value_and_grad(lambda *args: total(*args))).lower(moving, losses, *given).compile()
    seconds = alternate(
        {"data": lambda: as_data(moving, losses, *given), "code": lambda: as_code(moving, losses, *given)}, rounds
    )
    return {
        "loss": name,
        "size": f"{rows:,} x {classes}",
        "as data, ms": milliseconds(seconds["data"]),
        "as code, ms": milliseconds(seconds["code"]),
        "as data, MiB": _bytes(as_data),
        "as code, MiB": _bytes(as_code),
    }


def _detector(space: Space, size: str):
    """A detector's functions and a batch for it."""
    config = _DETECTORS[size][space.name]()
    images, height, width = {"full": (2, 800, 1344), "small": (8, 96, 96), "smallest": (1, 64, 64)}[size]
    rng = np.random.default_rng(0)
    low = rng.uniform(0.0, 0.6, (images, 8, 2))
    high = low + rng.uniform(0.1, 0.4, (images, 8, 2))
    scale = np.array([width, height, width, height])
    batch = Batch(
        image=rng.normal(size=(images, height, width, 3)).astype(np.float32),
        image_size=np.tile(np.float32([height, width]), (images, 1)),
        boxes=(np.concatenate([low, high], -1) * scale).astype(np.float32),
        labels=rng.integers(0, config.classes, (images, 8)).astype(np.int32),
        valid=np.ones((images, 8), bool),
        image_id=np.arange(images, dtype=np.int32),
        real=np.ones(images, bool),
    )
    _, build = build_detector(config)
    return lambda: jit_detector(build, TrainConfig(learning_rate=1e-5)), batch


def _step(space: Space, name: str, cls: Expression, box: Expression, size: str, rounds: int) -> tuple[dict, dict]:
    make, batch = _detector(space, size)
    as_data, as_code = make(), make()
    losses = DetectionLosses(term(cls), term(box))
    states = {"data": as_data.init(0), "code": as_data.init(0)}
    rest = batch, losses, jnp.int32(1000), jnp.int32(0)

    def advance(which: str, step, losses=losses):
        states[which], metrics = step(states[which], batch, losses, *rest[2:])
        return metrics["loss"]

    memory = _bytes(as_data.step.lower(states["data"], *rest).compile())
    with traced(cls, box):
        started = time.perf_counter()
        step_as_code = as_code.step.lower(states["code"], *rest).compile()
        compiling = time.perf_counter() - started
    seconds = alternate(
        {"data": lambda: advance("data", as_data.step), "code": lambda: advance("code", step_as_code)}, rounds
    )
    median, spread = ratio(seconds, "data", "code")
    before = as_data.step._cache_size()
    others = decode(random_population(jax.random.key(1), space, Shape(), max(3, rounds)), space)
    switching = {
        "switch": lambda: advance("data", as_data.step, DetectionLosses(term(others[0]), term(box))),
        "stay": lambda: advance("data", as_data.step),
    }
    extra = []
    for other in others:
        others[0] = other
        timed = alternate(switching, 1)
        extra.append(timed["switch"][0] - timed["stay"][0])
    compilations = as_data.step._cache_size() - before
    if compilations:
        raise SystemExit(f"{compilations} compilations on going over to another loss as data; there must be none")
    row = {
        "loss": name,
        "images": len(batch.image),
        "as data, ms": milliseconds(seconds["data"]),
        "as code, ms": milliseconds(seconds["code"]),
        "ratio": median,
        "ratio, each round": spread,
        "as data, MiB": memory,
        "as code, MiB": _bytes(step_as_code),
    }
    return row, {
        "loss": name,
        "as data, ms": float(np.median(extra) * 1e3),
        "compilations": compilations,
        "as code: compile, s": compiling,
    }
