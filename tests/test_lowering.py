"""What XLA gets for accelerators: programs from abstract shapes, lowered here without a device."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax import export
from micro import library_losses

from benchmarks.smallest import faster_rcnn_smallest
from detectors.models import build_detector, torchvision_settings
from detectors.structures import Batch
from detectors.training.step import TrainConfig, jit_detector


def batch_of(images: int, height: int, width: int, boxes: int = 8) -> Batch:
    """The shapes of a batch."""

    def array(shape, dtype):
        return jax.ShapeDtypeStruct((images, *shape), dtype)

    return Batch(
        image=array((height, width, 3), jnp.uint8),
        image_size=array((2,), jnp.float32),
        boxes=array((boxes, 4), jnp.float32),
        labels=array((boxes,), jnp.int32),
        valid=array((boxes,), bool),
        image_id=array((), jnp.int32),
        real=array((), bool),
    )


def training_step(config, batch: Batch, platform: str, **options) -> str:
    """The program of a training step for a platform."""
    detector, build = build_detector(config)
    functions = jit_detector(build, TrainConfig(batch_size=len(batch.image_id), **options), devices=jax.devices()[:1])
    state, number = jax.eval_shape(functions.init, 0), jax.ShapeDtypeStruct((), jnp.int32)
    losses = library_losses(detector)
    return export.export(functions.step, platforms=[platform])(state, batch, losses, number, number).mlir_module()


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
