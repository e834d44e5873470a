"""Training steps as pure functions: one compilation serves every loss, because a loss is an input."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from cse_jax.errors import InputError
from cse_jax.ranges import Amount, Count, Positive, PositiveAmount, Range, Share, validate
from detectors import compiling
from detectors.losses import DetectionLosses
from detectors.models.detector import Detector, abstract_detector
from detectors.models.norms import is_norm
from detectors.parallel import Devices, by_image, everywhere, gathered, mesh_for, own_rows, shared, using
from detectors.structures import AnyArray, Batch, Detections, Images

Variables = nnx.State[str, Any]  # a tree of a network's arrays
Model = tuple[Variables, Variables]  # parameters, and the rest


@dataclasses.dataclass
class TrainConfig:
    """Optimisation.

    Attributes:
      optimiser: ``"sgd"`` with momentum, where weight decay is added to the gradient before momentum as in PyTorch; or
        ``"adamw"``, which learns more in a short training from scratch.
      batch_size: images per step.
      accumulate: parts in which a batch is computed, one after the other, to save memory.  Their gradients are
        averaged; each part's loss is normalised by its own positives.
      compute: type in which networks run: ``"float32"`` or ``"bfloat16"``; parameters, boxes and losses are float32.
      learning_rate: after warm-up.
      rate_batch: batch size that the learning rate is meant for; the rate grows in proportion to ``batch_size``.  0 for
        the same rate with every batch size.
      momentum: of SGD.
      weight_decay: of both optimisers.
      warmup_steps: steps of linear warm-up, from ``warmup_ratio`` of the learning rate.
      decay_at: shares of the training at which the learning rate falls to a tenth.
      gradient_clip: largest norm of the gradient; 0 for no limit.
      ema: decay of the exponential moving average of the parameters, which is evaluated and kept in their place; 0 for
        none.
      stable_logs: compute log(sigmoid(x)), log(1 - sigmoid(x)) and log(softmax(x)) of a formula without rounding; False
        is the authors' code, where they stop at -46 and their gradient at 0, which a logit of 17 may do.
      bias_rate, bias_decay: factors on learning rate and weight decay of biases, those of normalisation layers excepted
        (FCOS: 2 and 0).
    """

    optimiser: Literal["sgd", "adamw"] = "sgd"
    batch_size: Positive = 16
    accumulate: Positive = 1
    compute: Literal["float32", "bfloat16"] = "float32"
    learning_rate: PositiveAmount = 0.02
    rate_batch: Count = 16
    momentum: Annotated[float, Range(least=0, below=1)] = 0.9
    weight_decay: Amount = 1e-4
    warmup_steps: Count = 500
    warmup_ratio: Share = 0.001
    decay_at: tuple[Share, ...] = (8 / 12, 11 / 12)
    gradient_clip: Amount = 0.0
    ema: Annotated[float, Range(least=0, below=1)] = 0.0
    stable_logs: bool = True
    bias_rate: Amount = 1.0
    bias_decay: Amount = 1.0

    def check(self) -> None:
        """Raises InputError unless a batch can be cut into its parts."""
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate={self.accumulate} must divide batch_size={self.batch_size}: a batch is cut into so many "
                "parts"
            )


class TrainState(NamedTuple):
    """Everything that a training carries from step to step."""

    params: Variables
    rest: Variables
    opt_state: optax.OptState
    step: Int[Array, ""]
    ema: Variables | None = None  # of the parameters, if the config asks for it

    @property
    def model(self) -> Model:
        """What is evaluated and kept: parameters (their moving average if there is one) and the rest."""
        return self.params if self.ema is None else self.ema, self.rest


class JittedDetector(NamedTuple):
    """The functions that train and apply one detector; each compiles once per batch shape.

    Attributes:
      devices: number of devices that share a batch.
      place: ``place(batch) -> batch``: begins to copy a batch to where ``step`` wants it, and does not wait.  Each
        process gives its own images.
      init: ``init(seed) -> TrainState``.
      step: ``step(state, batch, losses, steps, seed) -> (state, metrics)``; donates the state.  ``steps`` is the
        length of the training, for the schedule.
        ``metrics["finite"]`` says whether loss and gradient were finite.
      predict: ``predict(state, image, image_size) -> Detections``.
    """

    devices: int
    place: Callable[[Batch], Batch]
    init: Callable[[int], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    predict: Callable[..., Detections]


def jit_detector(
    build: Callable[[nnx.Rngs], Detector],
    config: TrainConfig,
    *,
    devices: Devices | None = None,
) -> JittedDetector:
    """Makes the functions for one detector.

    Args:
      build: makes the detector from random numbers.
      config: the optimisation.
      devices: those that share each batch, as far as it can be shared equally; all of all processes by default.

    Raises:
      InputError: settings of the config do not go together.
    """
    validate(config, "train")
    part = config.batch_size // config.accumulate
    mesh = mesh_for(part, devices)
    detector = abstract_detector(build)
    graph, abstract_params, _ = nnx.split(detector, nnx.Param, ...)
    is_frozen = detector.backbone.config.is_frozen
    frozen = _mask(abstract_params, lambda path: path[0] == "backbone" and is_frozen(path[1:]))
    optimiser = optimiser_for(config, abstract_params, frozen)
    compute = jnp.dtype(config.compute)

    # ``init`` runs once per training; on a CPU compiling it well would take longer than running it.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    @functools.partial(jax.jit, compiler_options=quick, out_shardings=everywhere(mesh))
    def init(seed: jax.Array) -> TrainState:
        _, params, rest = nnx.split(build(nnx.Rngs(jax.random.key(seed))), nnx.Param, ...)
        ema = jax.tree.map(jnp.copy, params) if config.ema else None
        return TrainState(params, rest, optimiser.init(params), jnp.zeros((), jnp.int32), ema)

    def network(params: Variables, rest: Variables) -> Detector:
        return nnx.merge(graph, cast(params, compute), rest)

    def gradients(params: Variables, rest: Variables, batch: Batch, losses: DetectionLosses, key: jax.Array):
        def total(params):
            params = jax.tree.map(lambda p, fixed: jax.lax.stop_gradient(p) if fixed else p, params, frozen)
            return network(params, rest).loss(batch, losses, key=key)

        return jax.grad(total, has_aux=True)(params)

    by_row, whole = by_image(mesh), everywhere(mesh)

    @functools.partial(
        compiling.jit, donate_argnums=0, in_shardings=(whole, by_row, whole, whole, whole), out_shardings=whole
    )
    def step(state: TrainState, batch: Batch, losses: DetectionLosses, steps: jax.Array, seed: jax.Array):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        with using(mesh):
            if config.accumulate == 1:
                gradient, metrics = gradients(state.params, state.rest, batch, losses, key)
            else:
                gradient, metrics = _mean_over_parts(
                    lambda batch, key: gradients(state.params, state.rest, batch, losses, key),
                    batch,
                    key,
                    config.accumulate,
                )
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        rate = learning_rate(config, state.step, steps)
        params = descend(state.params, updates, rate)
        ema = state.ema
        if ema is not None:
            # As a difference, of which 0 stays 0: the two shares as float32 do not add up to 1.
            ema = jax.tree.map(lambda old, new: old + (1.0 - config.ema) * (new - old), ema, params)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        metrics = metrics | {"gradient_norm": norm, "learning_rate": rate, "finite": finite}
        return TrainState(params, state.rest, opt_state, state.step + 1, ema), metrics

    @functools.partial(compiling.jit, in_shardings=((whole, whole), by_row, by_row), out_shardings=by_row)
    def found(model: Model, image: jax.Array, image_size: jax.Array) -> Detections:
        with using(mesh):
            return network(*model).predict(image, image_size)

    def predict(state: TrainState, image: Images, image_size: Float[AnyArray, "b 2"]) -> Detections:
        return gathered(found(state.model, *(shared(mesh, own_rows(array)) for array in (image, image_size))))

    return JittedDetector(mesh.size, functools.partial(shared, mesh), init, step, predict)


def cast(tree: Variables, dtype: jnp.dtype) -> Variables:
    """The tree with its floating-point arrays as another type."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _mean_over_parts(gradients: Callable, batch: Batch, key: jax.Array, parts: int) -> tuple[Variables, dict]:
    """The gradients and metrics of a batch's parts, averaged; positives are added up."""
    # Every parts-th image, so that each device has its share of every part.
    split = jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch)

    def add(total, numbered):
        index, part = numbered
        return jax.tree.map(jnp.add, total, gradients(part, jax.random.fold_in(key, index))), None

    first = jax.tree.map(lambda a: a[0], split)
    shapes = jax.eval_shape(gradients, first, key)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    (gradient, metrics), _ = jax.lax.scan(add, zero, (jnp.arange(parts), split))
    positives = metrics.pop("positives")
    gradient, metrics = jax.tree.map(lambda a: a / parts, (gradient, metrics))
    return gradient, metrics | {"positives": positives}


def learning_rate(config: TrainConfig, step: Int[Array, ""], steps: Int[Array, ""]) -> Float[Array, ""]:
    """Learning rate at a step of a training of ``steps`` steps."""
    progress = step / steps
    decays = jnp.sum(progress >= jnp.array(config.decay_at, jnp.float32), dtype=jnp.float32)
    ramp = jnp.minimum(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    warmup = config.warmup_ratio + (1.0 - config.warmup_ratio) * ramp
    scale = config.batch_size / config.rate_batch if config.rate_batch else 1.0
    return config.learning_rate * scale * warmup * 0.1**decays


def descend(params: Variables, updates: PyTree, rate: Float[Array, ""]) -> Variables:
    """The parameters after a step against the updates, which are the gradient as the optimiser scales it."""
    return jax.tree.map(lambda p, update: p - rate * update, params, updates)


def optimiser_for(
    config: TrainConfig, params: Variables, frozen: Variables | None = None
) -> optax.GradientTransformation:
    """The optimiser without its learning rate; frozen parameters, whose gradient is 0, get no update.

    Args:
      config: the optimisation.
      params: the parameters, or their shapes.
      frozen: a bool for each parameter, true for those that are frozen; none are by default.
    """
    bias = _mask(params, lambda path: "bias" in path[-2:] and not is_norm(path))
    decayed = jax.tree.map(lambda b: config.weight_decay * (config.bias_decay if b else 1.0), bias)
    parts = []
    if config.gradient_clip > 0.0:
        parts.append(optax.clip_by_global_norm(config.gradient_clip))
    if config.optimiser == "sgd":
        parts += [_add_decay(decayed), optax.trace(decay=config.momentum)]
    else:
        parts += [optax.scale_by_adam(), _add_decay(decayed)]
    parts.append(optax.masked(optax.scale(config.bias_rate), bias))
    if frozen is not None:
        parts.append(optax.masked(optax.set_to_zero(), frozen))
    return optax.chain(*parts)


def _mask(params: Variables, chosen: Callable[[tuple], bool]) -> Variables:
    """A bool for each parameter, decided by its path."""
    return jax.tree.map_with_path(lambda path, _: chosen(tuple(_key(k) for k in path)), params)


def _add_decay(factors) -> optax.GradientTransformation:
    """Adds each parameter, times its own factor, to its gradient."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda g, p, f: g + f * p, updates, params, factors))


def _key(entry) -> str | int:
    """A path entry of a pytree as plain name or index."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)
