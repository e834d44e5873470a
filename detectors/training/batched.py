"""One detector under many losses at once: the candidates' own parameters are vmapped, all else is computed once.

With the output layers as the candidates' own, backbone, proposals and towers run once for all candidates, whose share
of a step is a few batched matrix products.  With all parameters as their own, whole detectors train side by side: worth
it on accelerators; on a CPU convolutions with weights of their own are slow, and one after the other is faster.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from detectors.data.pipeline import Source, eval_batches
from detectors.evaluation.coco import Found, Metrics, collect, evaluate, ground_truth
from detectors.losses import DetectionLosses
from detectors.structures import Batch, Detections
from detectors.training.step import TrainConfig, learning_rate, optimiser_for


class ManyState(NamedTuple):
    """Many trainings of one detector; ``k`` candidates along the first axis of ``own`` and ``opt_state``."""

    own: nnx.State
    opt_state: optax.OptState
    common: tuple[nnx.State, nnx.State]  # parameters that all share and none changes, and the rest
    step: Int[Array, ""]


class JittedMany(NamedTuple):
    """The functions that train a detector under many losses; each compiles once per number of candidates.

    Attributes:
      init: ``init(model, count, common=model) -> ManyState``: ``count`` candidates whose own parameters begin as those
        of ``model`` (parameters and the rest); all else is taken from ``common``.
      step: ``step(state, batch, losses, steps, seed) -> (state, metrics)``; ``losses`` and ``metrics`` have the
        candidates along the first axis.  Donates the state's own part.
      predict: ``predict(state, image, image_size) -> Detections``, candidates first.
      memory: ``memory(model, count, batch, losses)``: bytes that a step with so many candidates takes, ``losses`` being
        those of one; compiles it.
      gradient: ``gradient(state, batch, losses, seed)``: norms of the gradients of the classification and the box loss
        in the candidates' own parameters, [k, 2].
    """

    init: Callable[..., ManyState]
    step: Callable[..., tuple[ManyState, dict[str, jax.Array]]]
    predict: Callable[..., Detections]
    memory: Callable[..., int]
    gradient: Callable[..., Float[Array, "k 2"]]


def stack_losses(losses: Sequence[DetectionLosses]) -> DetectionLosses:
    """The losses of several candidates along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *losses)


def jit_many(
    build: Callable[[nnx.Rngs], nnx.Module], config: TrainConfig, *, own: Callable[[tuple], bool] = lambda path: True
) -> JittedMany:
    """Makes the functions for one detector.

    Args:
      build: makes the detector from random numbers.
      config: the optimisation; parts of a batch, the moving average and the type of the networks are left out.
      own: from its path, whether each candidate has a parameter for itself; every one by default.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    frozen = abstract.backbone.config.is_frozen

    def is_own(path, value) -> bool:
        del value
        path = tuple(path)
        return own(path) and not (path[0] == "backbone" and frozen(path[1:]))

    graph, params, _ = nnx.split(abstract, nnx.Param, ...)
    abstract_own, _ = nnx.split_state(params, is_own, ...)
    optimiser = optimiser_for(config, abstract_own)

    def init(model: tuple[nnx.State, nnx.State], count: int, common: tuple[nnx.State, nnx.State] | None = None):
        mine, _ = nnx.split_state(model[0], is_own, ...)
        params, rest = common or model
        _, shared = nnx.split_state(params, is_own, ...)
        state = mine, optimiser.init(mine)
        mine, opt_state = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), state)
        return ManyState(mine, opt_state, (shared, rest), jnp.zeros((), jnp.int32))

    def network(mine, common) -> nnx.Module:
        return nnx.merge(graph, nnx.merge_state(mine, common[0]), common[1])

    def loss(mine, common, batch, losses, key):
        return network(mine, common).loss(batch, losses, key=key)

    @functools.partial(jax.jit, donate_argnames=("mine", "opt_state"))
    def advance(mine, opt_state, common, step, batch, losses, steps, seed):
        key = jax.random.fold_in(jax.random.key(seed), step)

        def one(mine, opt_state, losses):
            slope, metrics = jax.grad(loss, has_aux=True)(mine, common, batch, losses, key)
            norm = optax.tree.norm(slope)
            updates, opt_state = optimiser.update(slope, opt_state, mine)
            rate = learning_rate(config, step, steps)
            mine = optax.apply_updates(mine, jax.tree.map(lambda u: -rate * u, updates))
            finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
            return mine, opt_state, metrics | {"gradient_norm": norm, "finite": finite}

        return jax.vmap(one)(mine, opt_state, losses)

    def step(state: ManyState, batch: Batch, losses: DetectionLosses, steps, seed):
        mine, opt_state, metrics = advance(
            state.own, state.opt_state, state.common, state.step, batch, losses, jnp.int32(steps), jnp.int32(seed)
        )
        return ManyState(mine, opt_state, state.common, state.step + 1), metrics

    def memory(model, count: int, batch: Batch, losses: DetectionLosses) -> int:
        state = jax.eval_shape(lambda: init(model, count))
        many = jax.eval_shape(lambda: stack_losses([losses] * count))
        number = jnp.int32(1)
        used = advance.lower(*state[:2], state.common, state.step, batch, many, number, number).compile()
        sizes = used.memory_analysis()
        return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + sizes.output_size_in_bytes

    @jax.jit
    def found(mine, common, image, image_size):
        return jax.vmap(lambda mine: network(mine, common).predict(image, image_size))(mine)

    def predict(state: ManyState, image: jax.Array, image_size: jax.Array) -> Detections:
        return found(state.own, state.common, image, image_size)

    @jax.jit
    def gradient(state: ManyState, batch: Batch, losses: DetectionLosses, seed):
        key = jax.random.key(seed)

        def one(mine, losses):
            def part(mine, name):
                return loss(mine, state.common, batch, losses, key)[1][name]

            return jnp.stack([optax.tree.norm(jax.grad(part)(mine, name)) for name in ("cls", "box")])

        return jax.vmap(one)(state.own, losses)

    return JittedMany(init, step, predict, memory, gradient)


def fitting_count(
    many: JittedMany,
    model: tuple[nnx.State, nnx.State],
    batch: Batch,
    losses: DetectionLosses,
    *,
    limit: int | None = None,
    most: int = 64,
) -> int:
    """How many candidates to train side by side on this device: 1 on a CPU, else measured.

    On CPUs a vmapped convolution with weights of each candidate is slower than one candidate after the other
    (``launch/benchmark.py --suite=simulation`` measures it).  Elsewhere the number doubles as long as the step fits
    four fifths of the memory and a candidate's share of its time falls by a tenth.

    Args:
      many: the detector's functions.
      model: parameters and the rest.
      batch, losses: of a step.
      limit: bytes of the device's memory; asked of the device by default, which a CPU doesn't say.
      most: the largest answer.
    """
    if limit is None:
        if jax.default_backend() == "cpu":
            return 1
        limit = jax.local_devices()[0].memory_stats()["bytes_limit"]
    two, four = (
        many.memory(model, count, batch, losses) for count in (2, 4)
    )  # one is compiled like none of the others
    each = max(1, (four - two) // 2)
    fits = (0.8 * limit - (two - 2 * each)) // each
    count, share = 1, _seconds(many, model, 1, batch, losses)
    while 2 * count <= min(fits, most):
        doubled = _seconds(many, model, 2 * count, batch, losses) / (2 * count)
        if doubled > 0.9 * share:
            break
        count, share = 2 * count, doubled
    return count


def _seconds(many: JittedMany, model, count: int, batch: Batch, losses: DetectionLosses) -> float:
    """Of a step, the best of three."""
    state, several = many.init(model, count), stack_losses([losses] * count)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        state, metrics = many.step(state, batch, several, 100, 0)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - started)
    return min(times[1:])


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
        found = jax.device_get(predict(batch.image, batch.image_size))
        each = range(len(found.scores))
        parts.append([collect(jax.tree.map(lambda a, k=k: a[k], found), batch, sizes) for k in each])
    truth = ground_truth(source.annotations)
    scores = []
    for of_one in zip(*parts, strict=True):
        found = Found(*(np.concatenate(column) for column in zip(*(part[:4] for part in of_one), strict=True)))
        finite = np.isfinite(found.scores).all() and np.isfinite(found.boxes).all()
        scores.append(evaluate(found, truth, source.categories) if finite else None)
    return scores
