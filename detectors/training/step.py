"""Training steps as pure functions: one compilation serves every loss, because a loss is an input."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from cse_jax.language.spaces import Space
from detectors.losses import DetectionLosses
from detectors.models.norms import is_norm
from detectors.parallel import by_image, everywhere, mesh_for, using
from detectors.structures import Batch, Detections


@dataclasses.dataclass
class TrainConfig:
    """Optimisation.

    Attributes:
      optimiser: ``"sgd"`` with momentum, weight decay added to the gradient before momentum (as PyTorch does); or
        ``"adamw"``, which learns more in a short training from scratch.
      batch_size: images per step.
      accumulate: parts in which a batch is computed, one after the other, to save memory; their gradients are averaged,
        each part's loss being normalised by its own positives.
      compute: type in which networks run: ``"float32"`` or ``"bfloat16"``; parameters, boxes and losses are float32.
      learning_rate: after warm-up.
      rate_batch: batch size that the learning rate is meant for; it grows in proportion to ``batch_size``.  0 takes it
        as it is.
      momentum, weight_decay: of SGD.
      warmup_steps: steps of linear warm-up, from ``warmup_ratio`` of the learning rate.
      decay_at: shares of the training at which the learning rate falls to a tenth.
      gradient_clip: largest norm of the gradient; 0 for no limit.
      ema: share of the old in the moving average of the parameters, which then is evaluated and kept in their
        place; 0 for none.
      bias_rate, bias_decay: factors on learning rate and weight decay of biases, those of normalisation layers excepted
        (FCOS: 2 and 0).
    """

    optimiser: str = "sgd"
    batch_size: int = 16
    accumulate: int = 1
    compute: str = "float32"
    learning_rate: float = 0.02
    rate_batch: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 500
    warmup_ratio: float = 0.001
    decay_at: tuple[float, ...] = (8 / 12, 11 / 12)
    gradient_clip: float = 0.0
    ema: float = 0.0
    bias_rate: float = 1.0
    bias_decay: float = 1.0


class Detector(Protocol):
    """What training and evaluation need of a detector."""

    cls_space: Space
    box_units: str
    box_weight: float

    def loss(self, batch: Batch, losses: DetectionLosses, *, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Total loss and its parts."""

    def predict(self, image: Float[Array, "b h w 3"], image_size: Float[Array, "b 2"]) -> Detections:
        """Detections."""


class TrainState(NamedTuple):
    """Everything that a training carries from step to step."""

    params: nnx.State
    rest: nnx.State
    opt_state: optax.OptState
    step: Int[Array, ""]
    ema: nnx.State | None = None  # of the parameters, if the config asks for it

    @property
    def model(self) -> tuple[nnx.State, nnx.State]:
        """What is evaluated and kept: parameters (their average if there is one) and the rest."""
        return self.params if self.ema is None else self.ema, self.rest


class JittedDetector(NamedTuple):
    """The functions that train and apply one detector; each compiles once per batch shape.

    Attributes:
      devices: how many share a batch.
      init: ``init(seed) -> TrainState``.
      step: ``step(state, batch, losses, steps, seed) -> (state, metrics)``; donates the state.  ``steps`` is the
        length of the training, for the schedule.  ``metrics["finite"]`` says whether loss and gradient were finite.
      predict: ``predict(state, image, image_size) -> Detections``.
    """

    devices: int
    init: Callable[[int], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    predict: Callable[..., Detections]


def jit_detector(
    build: Callable[[nnx.Rngs], nnx.Module],
    config: TrainConfig,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> JittedDetector:
    """Makes the functions for one detector.

    Args:
      build: makes the detector from random numbers.
      config: the optimisation.
      devices: those that share each batch, as far as it can be shared equally; all of this process by default.

    Raises:
      ValueError: settings of the config that don't go together.
    """
    _check(config)
    part = config.batch_size // config.accumulate
    mesh = mesh_for(part, devices)
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, abstract_params, _ = nnx.split(abstract, nnx.Param, ...)
    still = abstract.backbone.config.is_frozen
    frozen = _mask(abstract_params, lambda path: path[0] == "backbone" and still(path[1:]))
    optimiser = optimiser_for(config, abstract_params, frozen)
    compute = jnp.dtype(config.compute)

    # It runs once per training and costs little next to being compiled, on CPU above all.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    @functools.partial(jax.jit, compiler_options=quick, out_shardings=everywhere(mesh))
    def init(seed: jax.Array) -> TrainState:
        _, params, rest = nnx.split(build(nnx.Rngs(jax.random.key(seed))), nnx.Param, ...)
        ema = jax.tree.map(jnp.copy, params) if config.ema else None
        return TrainState(params, rest, optimiser.init(params), jnp.zeros((), jnp.int32), ema)

    def network(params: nnx.State, rest: nnx.State) -> nnx.Module:
        return nnx.merge(graph, _cast(params, compute), rest)

    def gradients(params: nnx.State, rest: nnx.State, batch: Batch, losses: DetectionLosses, key: jax.Array):
        def total(params):
            params = jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, params, frozen)
            return network(params, rest).loss(batch._replace(image=batch.image.astype(compute)), losses, key=key)

        return jax.grad(total, has_aux=True)(params)

    shared, whole = by_image(mesh), everywhere(mesh)

    @functools.partial(
        jax.jit, donate_argnums=0, in_shardings=(whole, shared, whole, whole, whole), out_shardings=whole
    )
    def step(state: TrainState, batch: Batch, losses: DetectionLosses, steps: jax.Array, seed: jax.Array):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        with using(mesh):
            if config.accumulate == 1:
                slope, metrics = gradients(state.params, state.rest, batch, losses, key)
            else:
                slope, metrics = _mean_over_parts(
                    lambda batch, key: gradients(state.params, state.rest, batch, losses, key),
                    batch,
                    key,
                    config.accumulate,
                )
        norm = optax.tree.norm(slope)
        updates, opt_state = optimiser.update(slope, state.opt_state, state.params)
        rate = learning_rate(config, state.step, steps)
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: -rate * u, updates))
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1.0 - config.ema)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        metrics = metrics | {"gradient_norm": norm, "learning_rate": rate, "finite": finite}
        return TrainState(params, state.rest, opt_state, state.step + 1, ema), metrics

    @functools.partial(jax.jit, in_shardings=((whole, whole), shared, shared), out_shardings=shared)
    def found(model: tuple[nnx.State, nnx.State], image: jax.Array, image_size: jax.Array) -> Detections:
        with using(mesh):
            return network(*model).predict(image.astype(compute), image_size)

    def predict(state: TrainState, image: jax.Array, image_size: jax.Array) -> Detections:
        return found(state.model, image, image_size)

    return JittedDetector(mesh.size, init, step, predict)


def _check(config: TrainConfig) -> None:
    for name, allowed in (("optimiser", ("sgd", "adamw")), ("compute", ("float32", "bfloat16"))):
        if getattr(config, name) not in allowed:
            raise ValueError(f"train.{name} is {getattr(config, name)!r}; use {' or '.join(map(repr, allowed))}")
    if config.accumulate < 1 or config.batch_size % config.accumulate:
        raise ValueError(
            f"train.accumulate={config.accumulate} must divide train.batch_size={config.batch_size}: a batch is cut "
            "into so many parts"
        )
    if not 0.0 <= config.ema < 1.0:
        raise ValueError(f"train.ema={config.ema} must be at least 0 and below 1, 0.9998 for example")


def _cast(tree: nnx.State, dtype: jnp.dtype) -> nnx.State:
    """The floating-point arrays of a tree as another type."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _mean_over_parts(gradients: Callable, batch: Batch, key: jax.Array, parts: int):
    """Gradients and metrics of a batch computed in parts, averaged; counts are added up."""
    # Every parts-th image, so that each device has its share of every part.
    split = jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch)

    def add(total, numbered):
        index, part = numbered
        return jax.tree.map(jnp.add, total, gradients(part, jax.random.fold_in(key, index))), None

    first = jax.tree.map(lambda a: a[0], split)
    shapes = jax.eval_shape(gradients, first, key)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    (slope, metrics), _ = jax.lax.scan(add, zero, (jnp.arange(parts), split))
    positives = metrics.pop("positives")
    slope, metrics = jax.tree.map(lambda a: a / parts, (slope, metrics))
    return slope, metrics | {"positives": positives}


def learning_rate(config: TrainConfig, step: Int[Array, ""], steps: Int[Array, ""]) -> Float[Array, ""]:
    """Learning rate at a step of a training of ``steps`` steps."""
    progress = step / steps
    decays = sum((progress >= share).astype(jnp.float32) for share in config.decay_at)
    ramp = jnp.minimum(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    warmup = config.warmup_ratio + (1.0 - config.warmup_ratio) * ramp
    scale = config.batch_size / config.rate_batch if config.rate_batch else 1.0
    return config.learning_rate * scale * warmup * 0.1**decays


def optimiser_for(
    config: TrainConfig, params: nnx.State, frozen: nnx.State | None = None
) -> optax.GradientTransformation:
    """The optimiser without its learning rate; frozen parameters, whose gradient is 0, get no update."""
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


def _mask(params: nnx.State, chosen: Callable[[tuple], bool]) -> nnx.State:
    """A bool for every parameter, by its path."""
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
