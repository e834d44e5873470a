"""FCOS's masks and its published optimisation: what is frozen, which biases differ, what padding may not change."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from micro import library_losses

import cse_jax
from benchmarks.smallest import fcos_smallest
from cse_jax.language import spaces
from detectors.losses import term
from detectors.models.fcos import FCOS, FCOSConfig, fcos_tiny
from detectors.models.norms import is_norm
from detectors.models.resnet import ResNet, ResNetConfig, resnet50, tiny
from detectors.ops.padding import Extent
from detectors.ops.points import pyramid_points
from detectors.structures import Batch
from detectors.training.step import TrainConfig, jit_detector, optimiser_for

LOSSES = library_losses(FCOS)
SIZE = 64


def batch_of(boxes, *, size: tuple[float, float] = (SIZE, SIZE)) -> Batch:
    """One image with noise, and up to 3 boxes of category 0."""
    count = len(boxes)
    boxes = np.concatenate([np.float32(boxes).reshape(-1, 4), np.zeros((3 - count, 4), np.float32)])
    return Batch(
        image=np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32),
        image_size=np.float32([size]),
        boxes=boxes[None],
        labels=np.zeros((1, 3), np.int32),
        valid=(np.arange(3) < count)[None],
        image_id=np.zeros(1, np.int32),
        real=np.ones(1, bool),
    )


def paths(config: FCOSConfig) -> list[tuple]:
    """Paths of all parameters, without the name of their array."""
    model = nnx.eval_shape(lambda: FCOS(config, rngs=nnx.Rngs(0)))
    return [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]


@functools.cache
def head_outputs():
    batch = batch_of([])
    return FCOS(fcos_tiny(3), rngs=nnx.Rngs(0))._heads(batch.image, batch.image_size)


def loss_of_heads(batch, heads, losses=LOSSES):
    """The loss as a function of the head's outputs."""
    given = types.SimpleNamespace(config=fcos_tiny(3), strides=(8, 16), _heads=lambda *_: heads)
    return FCOS.loss(given, batch, losses, key=jax.random.key(0))[0]


def heads_and_padding(size):
    """Plausible head outputs, and which points lie beyond ``size`` rounded up to 32."""
    heads = list(head_outputs())
    points = pyramid_points((SIZE, SIZE), (8, 16), fcos_tiny(3).range_limits)
    beyond = (points.xy >= -(-np.array(size[::-1]) // 32) * 32).any(1)
    return heads, beyond


# Masks


@pytest.mark.slow
def test_outputs_in_the_padding_have_no_influence():
    size = (SIZE, 20.0)
    heads, beyond = heads_and_padding(size)
    assert 0 < beyond.sum() < beyond.size
    batch = batch_of([[2.0, 4.0, 19.0, 30.0]], size=size)
    changed = [jnp.where(beyond.reshape(1, -1, *(1,) * (h.ndim - 2)), h + 3.0, h) for h in heads]
    assert loss_of_heads(batch, heads) == loss_of_heads(batch, changed)
    gradients = jax.grad(lambda heads: loss_of_heads(batch, heads))(heads)
    for gradient in gradients:
        assert not gradient[:, beyond].any()
    assert gradients[0][:, ~beyond].any()


def test_a_loss_that_fails_only_in_the_padding_does_no_harm():
    """A masked NaN still has NaN gradients, unless its inputs were masked as well."""
    size = (SIZE, 20.0)
    heads, beyond = heads_and_padding(size)
    root = term(cse_jax.parse("sqrt(x + 3 + 3 + 3)", spaces.BINARY_CLASS))
    heads[0] = jnp.where(beyond[None, :, None], -20.0, heads[0])
    gradients = jax.grad(lambda heads: loss_of_heads(batch_of([], size=size), heads, LOSSES._replace(cls=root)))(heads)
    assert all(np.isfinite(g).all() for g in gradients)


def test_boxes_in_the_padding_are_nobodys_target():
    model = FCOS(fcos_tiny(3), rngs=nnx.Rngs(0))
    parts = model.loss(batch_of([[40.0, 8.0, 60.0, 30.0]], size=(SIZE, 20.0)), LOSSES, key=jax.random.key(0))[1]
    assert parts["positives"] == 0.0 and np.isfinite(parts["loss"])


# The stem


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (tiny(), (64, 96)),
        (tiny(), (61, 75)),
        (tiny(stem_stride=2, stem_pool=True), (45, 64)),
        (tiny(stem_kernel=3, stem_stride=2), (33, 40)),
    ],
)
def test_stem_as_product_is_the_same_convolution(config, shape):
    config.depths, config.widths, config.outputs = config.depths[:1], (8,), (1,)
    config.stem_width, config.norm_groups = 8, 2
    image = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    results = []
    for as_product in (False, True):
        config.stem_as_product = as_product
        graph, state = nnx.split(ResNet(config, rngs=nnx.Rngs(0)))

        def total(state, graph=graph):
            features = nnx.merge(graph, state)(image, Extent.of(np.float32([shape] * 2)))[0]
            return jnp.sin(features).sum(), features

        gradient, features = jax.grad(total, has_aux=True)(state)
        results.append((features, gradient["stem"]["kernel"][...]))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


# What trains, and how


def frozen_backbone(config: ResNetConfig) -> set[tuple]:
    detector = FCOSConfig(backbone=config)
    return {path[1:] for path in paths(detector) if path[0] == "backbone" and config.is_frozen(path[1:])}


def test_fcos_freezes_every_batch_norm_and_faster_rcnn_only_the_first_stages():
    stem_and_first = 1 + 3 * 3 + 1  # convolutions
    torchvision, caffe = frozen_backbone(resnet50()), frozen_backbone(FCOSConfig().backbone)
    assert (
        len([p for p in torchvision if not is_norm(p)]) == len([p for p in caffe if not is_norm(p)]) == stem_and_first
    )
    assert len([p for p in torchvision if is_norm(p)]) == 2 * stem_and_first
    assert len([p for p in caffe if is_norm(p)]) == 2 * 53


def test_a_group_norm_is_never_frozen_by_frozen_affine():
    config = tiny(frozen_affine=True)
    assert not any(config.is_frozen(path[1:]) for path in paths(fcos_tiny()) if path[0] == "backbone")


def test_bias_factors_spare_the_biases_of_norms():
    """As mmcv's optimiser constructor: bias_lr_mult and bias_decay_mult are not for normalisation layers."""
    config, decay = fcos_tiny(3), 0.01
    params = nnx.state(FCOS(config, rngs=nnx.Rngs(0)), nnx.Param)
    gradients = jax.tree.map(lambda p: jnp.cos(7.0 * p), params)
    none = jax.tree.map(lambda _: False, params)

    def update(**changes):
        optimiser = optimiser_for(TrainConfig(weight_decay=decay, **changes), params, none)
        return dict(nnx.to_flat_state(optimiser.update(gradients, optimiser.init(params), params)[0]))

    plain, fcos, values = update(), update(bias_rate=2.0, bias_decay=0.0), dict(nnx.to_flat_state(params))
    doubled = 0
    for path, update_of in plain.items():
        expected = update_of[...]
        if path[-1] == "bias" and not is_norm(path):
            expected = 2.0 * (expected - decay * values[path][...])
            doubled += 1
        np.testing.assert_allclose(fcos[path][...], expected, rtol=1e-5, atol=1e-6, err_msg=str(path))
    assert doubled == 2 + 2 + 2 * config.towers + 3  # lateral, output, towers, outputs


@pytest.mark.slow
def test_frozen_parameters_have_no_part_in_the_gradient_norm():
    config = fcos_smallest(3)
    config.backbone = dataclasses.replace(config.backbone, frozen_stages=1)
    batch = batch_of([[10.0, 10.0, 30.0, 34.0]])
    model = FCOS(config, rngs=nnx.Rngs(jax.random.key(0)))
    graph, params = nnx.split(model)

    @jax.jit
    @jax.grad
    def gradient(params):
        return nnx.merge(graph, params).loss(batch, LOSSES, key=jax.random.key(0))[0]

    trained = [
        np.square(g[...]).sum()
        for path, g in nnx.to_flat_state(gradient(params))
        if not (path[0] == "backbone" and config.backbone.is_frozen(path[1:]))
    ]
    functions = jit_detector(lambda rngs: FCOS(config, rngs=rngs), TrainConfig())
    metrics = functions.step(functions.init(0), batch, LOSSES, jnp.int32(9), jnp.int32(0))[1]
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(np.sum(trained)), rtol=1e-3)
