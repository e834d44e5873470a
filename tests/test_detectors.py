"""FCOS and Faster R-CNN: finite losses, masks, published sizes, and one compilation for all losses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from micro import library_losses

import cse_jax
from benchmarks.smallest import faster_rcnn_smallest, fcos_smallest
from cse_jax.language import spaces, zoo
from detectors import checkpoint
from detectors.losses import DetectionLosses, default_losses, term
from detectors.models import build_detector
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.models.fcos import FCOSConfig, fcos_tiny
from detectors.models.resnet import ResNet, resnet18, resnet50, resnet101, tiny
from detectors.ops.padding import Extent
from detectors.structures import Batch
from detectors.training.step import JittedDetector, TrainConfig, jit_detector, learning_rate

SIZE = 64
TINY = {"fcos": fcos_smallest(3), "faster_rcnn": faster_rcnn_smallest(3)}
BOTH = pytest.mark.parametrize("name", TINY)


TRAIN = TrainConfig(learning_rate=0.01, warmup_steps=0, decay_at=(), weight_decay=0.1, bias_decay=0.0)


@functools.cache
def compiled(name: str) -> JittedDetector:
    return jit_detector(build_detector(TINY[name])[1], TRAIN)


@functools.cache
def loss_function(name: str):
    detector, build = build_detector(TINY[name])
    graph, params, rest = nnx.split(build(nnx.Rngs(jax.random.key(0))), nnx.Param, ...)

    @jax.jit
    def run(batch, losses, key):
        def total(params):
            return nnx.merge(graph, params, rest).loss(batch, losses, key=key)

        return jax.value_and_grad(total, has_aux=True)(params)

    return run


def losses_for(name: str) -> DetectionLosses:
    detector, _ = build_detector(TINY[name])
    return default_losses(detector.cls_space, box_weight=detector.box_weight)


def batch_of(seed: int = 0, *, boxes: int = 3, size: tuple[float, float] = (SIZE, SIZE)) -> Batch:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0.0, 30.0, (2, 5, 2))
    truth = np.concatenate([corner, corner + rng.uniform(10.0, 30.0, (2, 5, 2))], -1).astype(np.float32)
    return Batch(
        image=rng.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32),
        image_size=np.tile(np.float32(size), (2, 1)),
        boxes=truth,
        labels=rng.integers(0, 3, (2, 5)).astype(np.int32),
        valid=np.tile(np.arange(5) < boxes, (2, 1)),
        image_id=np.arange(2, dtype=np.int32),
        real=np.ones(2, bool),
    )


def finite(tree) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("boxes", [3, 0])
def test_loss_and_gradient_are_finite(name, boxes):
    (total, parts), gradients = loss_function(name)(batch_of(boxes=boxes), losses_for(name), jax.random.key(0))
    assert finite(total) and finite(gradients)
    assert (parts["positives"] > 0) == (boxes > 0)
    if not boxes:
        assert parts["box"] == 0.0


@BOTH
def test_degenerate_boxes_are_harmless(name):
    batch = batch_of()
    boxes = batch.boxes.copy()
    boxes[:, 0, 2:] = boxes[:, 0, :2]
    boxes[:, 1] = [200.0, 200.0, 220.0, 230.0]
    (total, _), gradients = loss_function(name)(batch._replace(boxes=boxes), losses_for(name), jax.random.key(0))
    assert finite(total) and finite(gradients)


@BOTH
def test_padded_boxes_have_no_influence(name):
    batch = batch_of()
    other = batch._replace(
        boxes=np.where(batch.valid[..., None], batch.boxes, 7.0), labels=np.where(batch.valid, batch.labels, 0)
    )
    run, losses = loss_function(name), losses_for(name)
    first, second = (run(b, losses, jax.random.key(0))[0][0] for b in (batch, other))
    assert first == second


@BOTH
def test_the_loss_weight_scales_its_part_only(name):
    run, losses = loss_function(name), losses_for(name)
    double = losses._replace(box=losses.box._replace(weight=losses.box.weight * 2.0))
    (_, once), _ = run(batch_of(), losses, jax.random.key(0))
    (_, twice), _ = run(batch_of(), double, jax.random.key(0))
    np.testing.assert_allclose(twice["box"], 2.0 * once["box"], rtol=1e-6)
    assert once["cls"] == twice["cls"]


@BOTH
def test_a_formula_equals_the_loss_written_in_jax(name):
    """Training with GIoU as data gives the same gradient as with GIoU in code; float32 rounding apart."""
    run, losses = loss_function(name), losses_for(name)
    expected, _ = run(batch_of(), losses, jax.random.key(0))
    box = "1 - i / u + (e - u) / e"
    same = "2 - (i / u + u / e)"
    for text in (box, same):
        formula = term(cse_jax.parse(text, spaces.BOX), float(losses.box.weight))
        ours, _ = run(batch_of(), losses._replace(box=formula), jax.random.key(0))
        np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5)


@BOTH
def test_every_known_loss_trains(name):
    detector, _ = build_detector(TINY[name])
    run, losses = loss_function(name), losses_for(name)
    for space, which in ((detector.cls_space, "cls"), (spaces.BOX, "box")):
        for formula in zoo.known(space).values():
            changed = losses._replace(**{which: term(formula)})
            (total, _), gradients = run(batch_of(), changed, jax.random.key(0))
            assert finite(total) and finite(gradients), str(formula)


@pytest.mark.slow
@BOTH
def test_a_new_loss_compiles_nothing(name):
    """Counts compilations by JAX's own log of them."""
    functions, losses = compiled(name), losses_for(name)
    detector, _ = build_detector(TINY[name])
    length, seed = jnp.int32(10), jnp.int32(0)
    state, _ = functions.step(functions.init(0), batch_of(), losses, length, seed)
    count = 0

    def compiling(event: str, *_: object, **__: object) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(compiling)
    try:
        jax.jit(lambda x: x * 1.7)(jnp.float32(1.0))
        assert count == 1, "the counter must see a compilation"
        for space, which in ((detector.cls_space, "cls"), (spaces.BOX, "box")):
            for formula in zoo.known(space).values():
                changed = losses._replace(**{which: term(formula, 0.7)})
                state, metrics = functions.step(state, batch_of(), changed, length, seed)
        jax.block_until_ready(metrics)
        assert count == 1
    finally:
        jax.monitoring.clear_event_listeners()


@BOTH
def test_training_is_deterministic_in_the_seed(name):
    functions, losses = compiled(name), losses_for(name)

    def train(seed):
        state = functions.init(seed)
        for step in range(3):
            state, metrics = functions.step(state, batch_of(step), losses, jnp.int32(3), jnp.int32(seed))
        return jax.device_get((state.params, metrics["loss"]))

    first, again, other = train(1), train(1), train(2)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first[1] != other[1]


@BOTH
def test_training_lowers_the_loss(name):
    functions, losses, batch = compiled(name), losses_for(name), batch_of()
    state, history = functions.init(0), []
    for _ in range(60):
        state, metrics = functions.step(state, batch, losses, jnp.int32(1000), jnp.int32(0))
        history.append(float(metrics["loss"]))
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])


@BOTH
def test_a_diverging_loss_is_reported(name):
    functions = compiled(name)
    bad = losses_for(name)._replace(box=term(cse_jax.parse("log(1 - 2) + i", spaces.BOX)))
    _, metrics = functions.step(functions.init(0), batch_of(), bad, jnp.int32(10), jnp.int32(0))
    assert not metrics["finite"]


@BOTH
def test_predictions_are_sorted_and_inside_the_image(name):
    functions, batch = compiled(name), batch_of(size=(40.0, 50.0))
    detections = jax.device_get(functions.predict(functions.init(0), batch.image, batch.image_size))
    assert detections.boxes.shape == (2, TINY[name].max_detections, 4)
    assert detections.masks is None
    for boxes, scores, labels, valid in zip(*detections[:4], strict=True):
        assert (np.diff(scores[valid]) <= 0.0).all() and valid[: valid.sum()].all()
        assert (boxes[valid] >= 0.0).all() and (boxes[valid, 2] <= 50.0).all() and (boxes[valid, 3] <= 40.0).all()
        assert ((labels >= 0) & (labels < 3)).all()


def test_fcos_quality_weight_is_an_option():
    detector, build = build_detector(TINY["fcos"])
    model, results = build(nnx.Rngs(0)), []
    for weighted in (True, False):
        model.config = dataclasses.replace(TINY["fcos"], weight_by_quality=weighted)
        run = jax.jit(lambda model, batch: model.loss(batch, library_losses(detector), key=jax.random.key(0))[1])
        results.append(run(model, batch_of())["box"])
    assert finite(results) and results[0] != results[1]


# Backbones


@pytest.mark.parametrize(
    ("config", "millions"), [(resnet50(), 23.508), (resnet101(), 42.500), (resnet18(), 11.177)], ids=["50", "101", "18"]
)
def test_backbones_have_the_published_sizes(config, millions):
    """Parameters of torchvision's networks without their classifier."""
    model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    count = sum(np.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count / 1e6 == pytest.approx(millions, abs=0.001)


@pytest.mark.parametrize("config", [resnet50(outputs=(1, 2, 3, 4)), resnet18(), tiny()], ids=["50", "18", "tiny"])
def test_backbone_outputs_have_the_declared_shapes(config):
    model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    extent = Extent.of(np.float32([[96, 128]]))
    image = jax.ShapeDtypeStruct((1, 96, 128, 3), jnp.float32)
    features = nnx.eval_shape(lambda model, image: model(image, extent), model, image)
    shapes = [f.shape for f in features]
    assert shapes == [(1, 96 // s, 128 // s, c) for s, c in zip(config.strides, config.channels, strict=True)]


def test_full_size_detectors_are_expressible():
    for config in (FCOSConfig(), FasterRCNNConfig()):
        model = nnx.eval_shape(lambda config=config: build_detector(config)[1](nnx.Rngs(0)))
        count = sum(np.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param))) / 1e6
        # Published sizes: FCOS R50 32 million, Faster R-CNN R50 41.5 million.
        assert count == pytest.approx(32.0 if isinstance(config, FCOSConfig) else 41.5, abs=0.5)
        assert model.strides == ((8, 16, 32, 64, 128) if isinstance(config, FCOSConfig) else (4, 8, 16, 32, 64))


def test_unknown_settings_are_refused():
    config = fcos_tiny(3)
    config.backbone.norm = "bn"
    with pytest.raises(ValueError, match="detector.backbone.norm is 'bn'; it must be 'gn' or 'frozen_bn'"):
        build_detector(config)


def test_frozen_stages_do_not_move():
    config = dataclasses.replace(TINY["fcos"], backbone=dataclasses.replace(TINY["fcos"].backbone, frozen_stages=1))
    detector, build = build_detector(config)
    functions = jit_detector(build, TrainConfig(warmup_steps=0))
    state = functions.init(0)
    before = jax.device_get(state.params)
    after = jax.device_get(functions.step(state, batch_of(), library_losses(detector), jnp.int32(9), jnp.int32(0))[0])
    moved = jax.tree_util.tree_map_with_path(lambda p, a, b: (p, (a != b).any()), before, after.params)
    for path, changed in jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple)):
        names = tuple(getattr(k, "key", None) for k in path if hasattr(k, "key"))
        if names[0] == "backbone" and config.backbone.is_frozen(names[1:]):
            assert not changed, names
    flat = [changed for _, changed in jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple))]
    assert 0 < sum(flat) < len(flat)


# Optimisation


def test_learning_rate_schedule():
    config = TrainConfig(learning_rate=1.0, warmup_steps=10, warmup_ratio=0.1, decay_at=(0.5, 0.9))
    rates = [float(learning_rate(config, jnp.int32(step), jnp.int32(100))) for step in (0, 5, 10, 49, 50, 89, 90)]
    np.testing.assert_allclose(rates, [0.1, 0.55, 1.0, 1.0, 0.1, 0.1, 0.01], rtol=1e-5)


def test_sgd_equals_pytorchs_rule():
    """Momentum over gradient plus decayed weight, as torch.optim.SGD computes it, in NumPy."""
    functions = compiled("fcos")
    run, losses, batch = loss_function("fcos"), losses_for("fcos"), batch_of()
    state = functions.init(0)
    params = jax.device_get(state.params)
    gradient = jax.device_get(run(batch, losses, jax.random.key(0))[1])
    state, _ = functions.step(state, batch, losses, jnp.int32(9), jnp.int32(0))
    kernel, bias = params["cls"]["kernel"][...], params["cls"]["bias"][...]
    decayed = kernel - 0.01 * (gradient["cls"]["kernel"][...] + 0.1 * kernel)
    np.testing.assert_allclose(state.params["cls"]["kernel"][...], decayed, atol=1e-7)
    np.testing.assert_allclose(state.params["cls"]["bias"][...], bias - 0.01 * gradient["cls"]["bias"][...], atol=1e-6)


# Checkpoints


def test_checkpoints_are_exact_and_checked(tmp_path):
    functions = compiled("fcos")
    state = functions.step(functions.init(3), batch_of(), losses_for("fcos"), jnp.int32(9), jnp.int32(0))[0]
    path = tmp_path / "deep" / "state"
    assert not checkpoint.exists(path)
    checkpoint.save(path, state)
    checkpoint.save(path, state)
    restored = checkpoint.restore(path, functions.init(0))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), restored)
    with pytest.raises(checkpoint.CheckpointError, match="there is no checkpoint at"):
        checkpoint.restore(tmp_path / "absent", state)
    other = jit_detector(build_detector(fcos_smallest(4))[1], TrainConfig()).init(0)
    with pytest.raises(checkpoint.CheckpointError, match=r"cls\.bias\S* is float32\[3\], not float32\[4\]"):
        checkpoint.restore(path, other)
