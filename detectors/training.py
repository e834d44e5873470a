"""Training steps as pure functions: one compilation serves every loss, because a loss is an input."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from cse_jax.spaces import Space
from detectors.losses import DetectionLosses
from detectors.models.backbone import ResNetConfig, is_frozen, is_norm
from detectors.structures import Batch, Detections


@dataclasses.dataclass
class TrainConfig:
    """Optimisation.

    Attributes:
      optimiser: ``"sgd"`` with momentum, weight decay added to the gradient before momentum (as PyTorch does); or
        ``"adamw"``, which learns more in a short training from scratch.
      batch_size: images per step.
      learning_rate: after warm-up.
      momentum, weight_decay: of SGD.
      warmup_steps: steps of linear warm-up, from ``warmup_ratio`` of the learning rate.
      decay_at: shares of the training at which the learning rate falls to a tenth.
      gradient_clip: largest norm of the gradient; 0 for no limit.
      bias_rate, bias_decay: factors on learning rate and weight decay of biases, those of normalisation layers excepted
        (FCOS: 2 and 0).
    """

    optimiser: str = "sgd"
    batch_size: int = 16
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 500
    warmup_ratio: float = 0.001
    decay_at: tuple[float, ...] = (8 / 12, 11 / 12)
    gradient_clip: float = 0.0
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


class Compiled(NamedTuple):
    """The functions that train and apply one detector; each compiles once per batch shape.

    Attributes:
      init: ``init(seed) -> TrainState``.
      step: ``step(state, batch, losses, steps, seed) -> (state, metrics)``; donates the state.  ``steps`` is the
        length of the training, for the schedule.  ``metrics["finite"]`` says whether loss and gradient were finite.
      predict: ``predict(state, image, image_size) -> Detections``.
    """

    init: Callable[[int], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    predict: Callable[..., Detections]


def compile_detector(build: Callable[[nnx.Rngs], nnx.Module], backbone: ResNetConfig, config: TrainConfig) -> Compiled:
    """Makes the functions for one detector.

    Args:
      build: makes the detector from random numbers.
      backbone: its backbone's config, which says what is frozen.
      config: the optimisation.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, abstract_params, _ = nnx.split(abstract, nnx.Param, ...)
    frozen = _mask(abstract_params, lambda path: path[0] == "backbone" and is_frozen(backbone, path[1:]))
    optimiser = _optimiser(config, abstract_params, frozen)

    # It runs once per training and costs little next to being compiled, on CPU above all.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    @functools.partial(jax.jit, compiler_options=quick)
    def init(seed: jax.Array) -> TrainState:
        _, params, rest = nnx.split(build(nnx.Rngs(jax.random.key(seed))), nnx.Param, ...)
        return TrainState(params, rest, optimiser.init(params), jnp.zeros((), jnp.int32))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch, losses: DetectionLosses, steps: jax.Array, seed: jax.Array):
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def total(params):
            params = jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, params, frozen)
            return nnx.merge(graph, params, state.rest).loss(batch, losses, key=key)

        gradients, metrics = jax.grad(total, has_aux=True)(state.params)
        norm = optax.tree.norm(gradients)
        updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
        rate = learning_rate(config, state.step, steps)
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: -rate * u, updates))
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        metrics = metrics | {"gradient_norm": norm, "learning_rate": rate, "finite": finite}
        return TrainState(params, state.rest, opt_state, state.step + 1), metrics

    @jax.jit
    def predict(state: TrainState, image: jax.Array, image_size: jax.Array) -> Detections:
        return nnx.merge(graph, state.params, state.rest).predict(image, image_size)

    return Compiled(init, step, predict)


def learning_rate(config: TrainConfig, step: Int[Array, ""], steps: Int[Array, ""]) -> Float[Array, ""]:
    """Learning rate at a step of a training of ``steps`` steps."""
    progress = step / steps
    decays = sum((progress >= share).astype(jnp.float32) for share in config.decay_at)
    ramp = jnp.minimum(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    warmup = config.warmup_ratio + (1.0 - config.warmup_ratio) * ramp
    return config.learning_rate * warmup * 0.1**decays


def _optimiser(config: TrainConfig, params: nnx.State, frozen: nnx.State) -> optax.GradientTransformation:
    """The optimiser without its learning rate; frozen parameters, whose gradient is 0, get no update."""
    if config.optimiser not in ("sgd", "adamw"):
        raise ValueError(f"train.optimiser is {config.optimiser!r}; use 'sgd' or 'adamw'")
    bias = _mask(params, lambda path: "bias" in path[-2:] and not is_norm(path))
    decayed = jax.tree.map(lambda b: config.weight_decay * (config.bias_decay if b else 1.0), bias)
    parts = []
    if config.gradient_clip > 0.0:
        parts.append(optax.clip_by_global_norm(config.gradient_clip))
    if config.optimiser == "sgd":
        parts += [_add_decay(decayed), optax.trace(decay=config.momentum)]
    else:
        parts += [optax.scale_by_adam(), _add_decay(decayed)]
    parts += [
        optax.masked(optax.scale(config.bias_rate), bias),
        optax.masked(optax.set_to_zero(), frozen),
    ]
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
