"""What XLA gets for accelerators: programs from abstract shapes, lowered here without a device."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import export
from micro import library_losses

from benchmarks.analysis import batch_of
from benchmarks.smallest import FEATURES, faster_rcnn_smallest, fcos_smallest
from cse_jax.language import graph, interpreter, population, program, selecting, spaces, zoo
from cse_jax.sampling import random_graphs, random_trees, variation
from cse_jax.screening import simulation, verification
from detectors.losses import resolve_pair
from detectors.models import build_detector, torchvision_settings
from detectors.models.atss import atss_tiny
from detectors.models.cascade_rcnn import cascade_rcnn_tiny
from detectors.models.fcos import FCOS
from detectors.models.mask_rcnn import mask_rcnn_tiny
from detectors.structures import Batch
from detectors.training.batched import jit_many, stack_losses
from detectors.training.step import TrainConfig, jit_detector


def training_step(config, batch: Batch, platform: str, **options) -> str:
    """The program of a training step for a platform."""
    detector, build = build_detector(config)
    functions = jit_detector(build, TrainConfig(batch_size=len(batch.image_id), **options), devices=jax.devices()[:1])
    state, number = jax.eval_shape(functions.init, 0), jax.ShapeDtypeStruct((), jnp.int32)
    losses = library_losses(detector)
    return export.export(functions.step, platforms=[platform])(state, batch, losses, number, number).mlir_module()


FEWEST = {
    "fcos": fcos_smallest(3),
    "faster_rcnn": faster_rcnn_smallest(3),
    "atss": dataclasses.replace(atss_tiny(3), **FEATURES, towers=1, norm_groups=4),
    "cascade_rcnn": dataclasses.replace(cascade_rcnn_tiny(3), **FEATURES),
    "mask_rcnn": dataclasses.replace(mask_rcnn_tiny(3), **FEATURES),
}
SPACES = [spaces.BOX, spaces.MULTI_CLASS, spaces.BINARY_CLASS]
NUMBER = jax.ShapeDtypeStruct((), jnp.int32)


@pytest.fixture
def accelerated(monkeypatch):
    """Programs that are data run as they do on accelerators."""
    monkeypatch.setattr(interpreter, "_way", lambda: selecting)


def lowers(function, *arguments) -> None:
    """Lowers a function for both kinds of accelerators."""
    exported = export.export(function, platforms=["cuda", "tpu"])(*arguments)
    assert exported.platforms == ("cuda", "tpu") and exported.mlir_module_serialized


@pytest.mark.slow
@pytest.mark.parametrize("name", FEWEST)
def test_training_and_inference(name, accelerated):
    detector, build = build_detector(FEWEST[name])
    masks = jax.ShapeDtypeStruct((2, 8, 16, 24), bool) if name == "mask_rcnn" else None
    batch = batch_of(2, 64, 96)._replace(masks=masks)
    functions = jit_detector(build, TrainConfig(batch_size=2, ema=0.9), devices=jax.devices()[:1])
    state = jax.eval_shape(functions.init, 0)
    lowers(functions.step, state, batch, resolve_pair(detector.cls_space), NUMBER, NUMBER)
    lowers(jax.jit(functions.predict), state, batch.image, batch.image_size)


@pytest.mark.slow
@pytest.mark.parametrize("own", [lambda path: True, FCOS.is_output], ids=["whole detectors", "heads"])
def test_trainings_side_by_side(own, accelerated):
    _, build = build_detector(FEWEST["fcos"])
    many, batch = jit_many(build, TrainConfig(batch_size=2, compute="bfloat16"), own=own), batch_of(2, 64, 96)
    model = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param, ...)[1:]
    losses = stack_losses([resolve_pair(FCOS.cls_space)] * 3)
    state = jax.eval_shape(lambda model: many.init(model, 3), tuple(model))
    lowers(jax.jit(many.step), state, batch, losses, NUMBER, NUMBER)
    lowers(jax.jit(many.predict), state, batch.image, batch.image_size)
    assert "bf16" in jax.jit(many.step).lower(state, batch, losses, NUMBER, NUMBER).as_text()
    assert "bf16" in jax.jit(many.predict).lower(state, batch.image, batch.image_size).as_text()
    lowers(many.gradient, state, batch, losses, NUMBER)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_simulation(space, accelerated):
    default = program.compile_expression(zoo.default(space))
    lowers(simulation._simulate_batch, space, "pixels", 0, program.stack([default] * 2))


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_sampling(space):
    key, tokens = jax.random.key(0), population.encode([zoo.default(space)], space, width=24).repeat(8, 0)
    shape = random_trees.Shape()
    lowers(random_trees.random_block, key, space, shape, 8)
    lowers(variation._mutate, key, tokens, jnp.arange(2), space, shape)
    lowers(variation.crossover, key, tokens, tokens, space, shape)
    lowers(jax.jit(lambda key: random_graphs.grow(key, space, width=32, per_operator=1)), key)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_verification(space):
    tokens = population.encode([zoo.default(space)], space)
    given = graph.from_tokens(tokens, space, width=64)
    with jax.enable_x64(True):
        for function in ("_judge_values", "_judge_with_gradients", "_behaviours", "_locate"):
            lowers(getattr(verification, function), space, space.units[0], *given)


def test_maps_of_features_get_their_gradient_by_one_scatter():
    """RoIAlign's, in float32; in bfloat16 sums would be inexact, and sixteen would fill sixteen pyramids."""
    config = faster_rcnn_smallest(3)
    config = dataclasses.replace(config, roi=dataclasses.replace(config.roi, pool_as_product=False))
    program = training_step(config, batch_of(2, 64, 96), "cuda", compute="bfloat16")
    scattered = re.findall(r'"stablehlo\.scatter"\(.*?\}\) : \(tensor<([^>]*)>', program, re.DOTALL)
    assert [shape for shape in scattered if f"x{config.fpn.channels}x" in shape] == ["2x480x16xf32"]
    assert len(scattered) <= 6, "the others are of the sampled anchors and RoIs"


def test_anchors_are_no_constants_of_the_program():
    """As such the 268,000 of Faster R-CNN with R50-FPN were 17 of 19 MB of text."""
    config = torchvision_settings.fasterrcnn_resnet50_fpn()
    program = training_step(config, batch_of(16, 800, 1344), "cuda", compute="bfloat16")
    assert len(program) < 3e6, f"{len(program) / 1e6:.1f} MB"
    assert max(len(line) for line in program.splitlines() if "stablehlo.constant" in line) < 10_000
