"""The parts of a detector timed apart from the rest, on the arguments that they have in a training step or inference.

A part is a function where a detector finds it.  A run of the detector in which all of them are replaced leaves the
arguments of each call behind; the calls are then compiled by themselves.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from detectors.losses import DetectionLosses
from detectors.models import faster_rcnn, fcos, roi_head, rpn
from detectors.models.detector import abstract_detector
from detectors.ops import nms
from detectors.structures import Batch
from detectors.training.step import TrainState


class _Part(NamedTuple):
    """A function whose calls are timed apart from the rest.

    Attributes:
      label: parts of the same label are timed together.
      module, name: where detectors find it.
      moving: the arguments that training differentiates in; empty for parts without gradient.
    """

    label: str
    module: object
    name: str
    moving: tuple[str, ...] = ()


_SELECTION = "selection, its NMS included"
_PARTS = (
    _Part("NMS", rpn, "nms"),
    _Part("NMS", nms, "nms"),
    _Part(_SELECTION, faster_rcnn, "select_detections"),
    _Part(_SELECTION, fcos, "select_by_level"),
    _Part("RoIAlign", roi_head, "roi_align", ("features",)),
    _Part("assignment", rpn, "match"),
    _Part("assignment", rpn, "sample"),
    _Part("assignment", roi_head, "match"),
    _Part("assignment", roi_head, "sample"),
    _Part("assignment", fcos, "assign_points"),
    _Part("loss", faster_rcnn, "roi_loss", ("logits", "deltas")),
    _Part("loss", fcos, "binary_class_loss", ("logits",)),
    _Part("loss", fcos, "box_loss", ("predicted", "predicted_offsets")),
)


@dataclasses.dataclass
class Call:
    """A call of a part: arguments by name, and the arrays among them, once per image where it is called per image."""

    part: _Part
    function: Callable
    structure: jax.tree_util.PyTreeDef
    leaves: list  # None where an array belongs
    arrays: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)

    def run(self, arrays: tuple[jax.Array, ...], *, gradient: bool):
        """The result; with ``gradient`` also what goes back to the moving arguments, the result being its cotangent."""
        left = iter(arrays)
        arguments = self.structure.unflatten([next(left) if leaf is None else leaf for leaf in self.leaves])
        if not gradient or not self.part.moving:
            return self.function(**arguments)
        moving = {name: arguments.pop(name) for name in self.part.moving}
        value, back = jax.vjp(lambda moving: self.function(**arguments, **moving), moving)
        return value, back(value)


def recorded_calls(
    build: Callable[[nnx.Rngs], nnx.Module], state: TrainState, batch: Batch, losses: DetectionLosses
) -> dict[tuple[str, str], list[Call]]:
    """The calls of all parts in inference and in the loss of a training step, by work and label of the part."""
    graph, *_ = nnx.split(abstract_detector(build), nnx.Param, ...)
    key = jax.random.PRNGKey(0)  # an array of numbers: keys proper can't be recorded
    works = {
        "inference": lambda model, batch, _: model.predict(batch.image, batch.image_size),
        "training step": lambda model, batch, losses: model.loss(batch, losses, key=key),
    }
    # They run once, and compiling them costs more on a CPU.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    found = {}
    for work, run in works.items():
        with _recording() as calls:
            whole = jax.jit(lambda model, *args: run(nnx.merge(graph, *model), *args), compiler_options=quick)
            whole(state.model, batch, losses)
            jax.effects_barrier()
        for call in calls:
            found.setdefault((work, call.part.label), []).append(call)
    return found


@contextlib.contextmanager
def _recording() -> Iterator[list[Call]]:
    """Functions traced inside leave the calls of parts here, and their arrays when they run."""
    calls = []

    def recorder(part: _Part, function: Callable) -> Callable:
        def recorded(*args, **kwargs):
            leaves, structure = jax.tree.flatten(inspect.signature(function).bind(*args, **kwargs).arguments)
            traced = [isinstance(leaf, jax.core.Tracer) for leaf in leaves]
            still = [None if is_traced else leaf for leaf, is_traced in zip(leaves, traced, strict=True)]
            call = Call(part, function, structure, still)
            calls.append(call)
            moving = [leaf for leaf, is_traced in zip(leaves, traced, strict=True) if is_traced]
            jax.debug.callback(lambda *arrays: call.arrays.append(tuple(map(np.array, arrays))), *moving)
            return function(*args, **kwargs)

        return recorded

    before = [getattr(part.module, part.name) for part in _PARTS]
    for part, function in zip(_PARTS, before, strict=True):
        setattr(part.module, part.name, recorder(part, function))
    try:
        yield calls
    finally:
        for part, function in zip(_PARTS, before, strict=True):
            setattr(part.module, part.name, function)


def together(calls: list[Call], *, gradient: bool) -> Callable[[], object]:
    """Runs calls, all images of each at once, as one compiled function; with ``gradient`` also backwards."""

    def one(call: Call, arrays: tuple[jax.Array, ...]):
        run = functools.partial(call.run, gradient=gradient)
        return jax.vmap(run)(arrays) if len(call.arrays) > 1 else run(arrays)

    stacked = [
        tuple(np.stack(images) if len(images) > 1 else images[0] for images in zip(*call.arrays, strict=True))
        for call in calls
    ]
    given = jax.device_put(stacked)
    run = jax.jit(lambda given: [one(call, arrays) for call, arrays in zip(calls, given, strict=True)])
    return lambda: run(given)
