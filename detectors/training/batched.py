"""One detector under many losses at once: each candidate's own parameters are vmapped, all else is computed once.

If only the output layers are the candidates' own, backbone, proposals and towers run once for all candidates, and a
candidate adds a few batched matrix products to a step.  If all parameters are their own, whole detectors train side by
side.  That pays on accelerators; on a CPU, convolutions with weights of each candidate are slower than training one
candidate after the other.

The candidates are spread over the devices of the process: each trains its share and waits for no other.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from detectors import compiling
from detectors.data.pipeline import Source, eval_batches
from detectors.evaluation.coco import Metrics, collect, evaluate, ground_truth, joined
from detectors.losses import DetectionLosses
from detectors.models.detector import Detector, abstract_detector
from detectors.parallel import Devices, everywhere, map_rows
from detectors.structures import AnyArray, Batch, Detections, Images
from detectors.training.step import Model, TrainConfig, Variables, cast, descend, learning_rate, optimiser_for

_AXIS = "candidates"


class ManyState(NamedTuple):
    """Many trainings of one detector; ``k`` candidates along the first axis of ``own`` and ``opt_state``."""

    own: Variables
    opt_state: optax.OptState
    common: Model  # the parameters that all share and none changes, and the rest
    step: Int[Array, ""]


class JittedMany(NamedTuple):
    """The functions that train a detector under many losses; each compiles once per number of candidates.

    Attributes:
      devices: their number; it must divide that of the candidates.
      place: ``place(batch) -> batch``: begins to copy a batch to where ``step`` wants it, and does not wait.
      init: ``init(model, count, common=model) -> ManyState``: ``count`` candidates whose own parameters start as those
        of ``model`` (parameters and the rest); all else is taken from ``common``.
      step: ``step(state, batch, losses, steps, seed) -> (state, metrics)``; ``losses`` and ``metrics`` have the
        candidates along the first axis.  Donates the state's own part.
      predict: ``predict(state, image, image_size) -> Detections``, with the candidates along the first axis.
      lower: ``lower(model, count, batch, losses) -> jax.stages.Lowered``: the step of ``count`` candidates, to be
        compiled but not run; model and batch may be shapes, and ``losses`` are those of one candidate.
      gradient: ``gradient(state, batch, losses, seed)``: norms of the gradients of the classification and the box loss
        in the candidates' own parameters, [k, 2].
    """

    devices: int
    place: Callable[[Batch], Batch]
    init: Callable[..., ManyState]
    step: Callable[..., tuple[ManyState, dict[str, jax.Array]]]
    predict: Callable[..., Detections]
    lower: Callable[..., jax.stages.Lowered]
    gradient: Callable[..., Float[Array, "k 2"]]


def stack_losses(losses: Sequence[DetectionLosses]) -> DetectionLosses:
    """The losses of several candidates along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *losses)


def jit_many(
    build: Callable[[nnx.Rngs], Detector],
    config: TrainConfig,
    *,
    own: Callable[[tuple], bool] = lambda path: True,
    devices: Devices | None = None,
) -> JittedMany:
    """Makes the functions for one detector.

    Args:
      build: makes the detector from random numbers.
      config: the optimisation; ``accumulate`` and ``ema`` are ignored.
      own: whether each candidate has its own copy of a parameter, given the parameter's path; by default of every one.
      devices: those over which the candidates are spread; all of this process by default.
    """
    mesh = Mesh(np.array(jax.local_devices() if devices is None else devices), (_AXIS,))
    whole, spread = everywhere(mesh), NamedSharding(mesh, PartitionSpec(_AXIS))
    detector = abstract_detector(build)
    frozen = detector.backbone.config.is_frozen

    def is_own(path, value) -> bool:
        del value
        path = tuple(path)
        return own(path) and not (path[0] == "backbone" and frozen(path[1:]))

    graph, params, _ = nnx.split(detector, nnx.Param, ...)
    abstract_own, _ = nnx.split_state(params, is_own, ...)
    optimiser = optimiser_for(config, abstract_own)
    compute = jnp.dtype(config.compute)

    @functools.partial(jax.jit, static_argnums=1, in_shardings=(whole,), out_shardings=spread)
    def repeated(mine: Variables, count: int) -> tuple[Variables, optax.OptState]:
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), (mine, optimiser.init(mine)))

    def init(model: Model, count: int, common: Model | None = None) -> ManyState:
        mine, _ = nnx.split_state(model[0], is_own, ...)
        params, rest = common or model
        _, shared = nnx.split_state(params, is_own, ...)
        mine, opt_state = repeated(place(mine), count)
        return ManyState(mine, opt_state, place((shared, rest)), place(jnp.zeros((), jnp.int32)))

    def place(tree):
        return jax.device_put(tree, whole)

    def network(mine: Variables, common: Model) -> Detector:
        return nnx.merge(graph, cast(nnx.merge_state(mine, common[0]), compute), common[1])

    def loss(mine, common, batch, losses, key):
        return network(mine, common).loss(batch, losses, key=key)

    @functools.partial(
        compiling.jit,
        donate_argnames=("mine", "opt_state"),
        in_shardings=(spread, spread, whole, whole, whole, spread, whole, whole),
        out_shardings=spread,
    )
    def advance(mine, opt_state, common, step, batch, losses, steps, seed):
        def one(given, mine, opt_state, losses):
            common, batch, key, rate = given
            gradient, metrics = jax.grad(loss, has_aux=True)(mine, common, batch, losses, key)
            norm = optax.tree.norm(gradient)
            updates, opt_state = optimiser.update(gradient, opt_state, mine)
            mine = descend(mine, updates, rate)
            finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
            return mine, opt_state, metrics | {"gradient_norm": norm, "finite": finite}

        key = jax.random.fold_in(jax.random.key(seed), step)
        given = common, batch, key, learning_rate(config, step, steps)
        return map_rows(mesh, one, given, mine, opt_state, losses)

    def step(state: ManyState, batch: Batch, losses: DetectionLosses, steps, seed):
        mine, opt_state, metrics = advance(
            state.own, state.opt_state, state.common, state.step, batch, losses, jnp.int32(steps), jnp.int32(seed)
        )
        return ManyState(mine, opt_state, state.common, state.step + 1), metrics

    def lower(model: Model, count: int, batch: Batch, losses: DetectionLosses) -> jax.stages.Lowered:
        state = jax.eval_shape(lambda model: init(model, count), model)
        many = jax.eval_shape(lambda: stack_losses([losses] * count))
        number = jax.ShapeDtypeStruct((), jnp.int32)
        return advance.lower(*state[:2], state.common, state.step, batch, many, number, number)

    @functools.partial(compiling.jit, in_shardings=(spread, whole, whole, whole), out_shardings=spread)
    def found(mine, common, image, image_size):
        def one(given, mine):
            common, *images = given
            return network(mine, common).predict(*images)

        return map_rows(mesh, one, (common, image, image_size), mine)

    def predict(state: ManyState, image: Images, image_size: Float[AnyArray, "b 2"]) -> Detections:
        return found(state.own, state.common, image, image_size)

    of_state = ManyState(spread, spread, whole, whole)  # pyright: ignore[reportArgumentType]

    @functools.partial(compiling.jit, in_shardings=(of_state, whole, spread, whole), out_shardings=spread)
    def gradient(state: ManyState, batch: Batch, losses: DetectionLosses, seed):
        def one(given, mine, losses):
            common, batch, key = given

            def part(mine, name):
                return loss(mine, common, batch, losses, key)[1][name]

            return jnp.stack([optax.tree.norm(jax.grad(part)(mine, name)) for name in ("cls", "box")])

        return map_rows(mesh, one, (state.common, batch, jax.random.key(seed)), state.own, losses)

    return JittedMany(mesh.size, place, init, step, predict, lower, gradient)


def evaluate_many(predict: Callable[..., Detections], source: Source, batch_size: int) -> list[Metrics | None]:
    """Scores every candidate's detections on a source; None where they are not finite.

    Args:
      predict: from images and image sizes to detections, candidates first.
      source: the images and their ground truth.
      batch_size: images per call.
    """
    sizes = {annotation.image_id: annotation.size for annotation in source.annotations}
    parts = []
    for batch in eval_batches(source, batch_size):
        found = jax.device_get(predict(batch.image, batch.image_size)._replace(masks=None))
        each = range(len(found.scores))
        parts.append([collect(jax.tree.map(lambda a, k=k: a[k], found), batch, sizes) for k in each])
    truth = ground_truth(source.annotations)
    scores = []
    for of_one in zip(*parts, strict=True):
        found = joined(of_one)
        finite = np.isfinite(found.scores).all() and np.isfinite(found.boxes).all()
        scores.append(evaluate(found, truth, source.categories) if finite else None)
    return scores
