"""Detectors beside torchvision's, and where the time of ours goes.

Both sides have the same architecture, weights, settings, frozen layers, images and boxes; weights hardly move, so that
every round does the same work.
"""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import detector_peers
from benchmarks.detector_parts import recorded_calls, together
from benchmarks.report import Report
from benchmarks.timing import alternate, milliseconds, ratio
from detectors.models import build_detector, torchvision_settings
from detectors.structures import Batch
from detectors.training.fitting import bytes_needed
from detectors.training.initial_weights import WeightsConfig, starting_from
from detectors.training.step import TrainConfig, jit_detector

_SIZES = {  # images, height, width, blocks per stage of the ResNet, proposals in training and at test, RoIs in the loss
    "smallest": (1, 64, 96, (1, 1, 1, 1), (60, 60), 32),
    "small": (2, 256, 320, (3, 4, 6, 3), (2000, 1000), 512),
    "full": (2, 800, 1344, (3, 4, 6, 3), (2000, 1000), 512),
}
_DETECTORS = {
    "fasterrcnn_resnet50_fpn": torchvision_settings.rcnn_losses,
    "fcos_resnet50_fpn": torchvision_settings.fcos_losses,
}
_CLASSES = 90
_RATE = 1e-9

_SPEED = "Images per second"
_MEMORY = "Memory, MiB (as compiled; most on the device since the start; most allocated by torch)"
_SHARES = "Share of the step"
_WORKS = ("inference", "training step")
Precision = Literal["float32", "bfloat16"]
_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def measure(report: Report, *, size: str, rounds: int) -> None:
    """All tables of the suite: in bfloat16, too, on accelerators, and of the parts on CPUs, which compile quickly."""
    images, height, width = _SIZES[size][:3]
    report.note(f"{images} images of {height} x {width}; products of float32 in JAX's default precision.")
    on_cpu = jax.default_backend() == "cpu"
    names = list(_DETECTORS)[: 1 if size == "smallest" else None]
    cases = [(name, precision) for name in names for precision in _PRECISIONS[: 1 if on_cpu else None]]
    for title in (_SPEED, _MEMORY):
        report.plan(title, [f"{name}, {precision}, {work}" for name, precision in cases for work in _WORKS])
    for name, precision in cases:
        _detector(report, name, size, rounds, precision, parts=on_cpu)


def _batch(images: int, height: int, width: int) -> Batch:
    rng = np.random.default_rng(0)
    low = rng.uniform(0.0, 0.6, (images, 8, 2))
    high = low + rng.uniform(0.1, 0.4, (images, 8, 2))
    batch = Batch(
        image=rng.normal(size=(images, height, width, 3)).astype(np.float32),
        image_size=np.tile(np.float32([height, width]), (images, 1)),
        boxes=(np.concatenate([low, high], -1) * [width, height, width, height]).astype(np.float32),
        labels=rng.integers(0, _CLASSES, (images, 8)).astype(np.int32),
        valid=np.ones((images, 8), bool),
        image_id=np.arange(images, dtype=np.int32),
        real=np.ones(images, bool),
    )
    return jax.device_put(batch, jax.devices()[0])


def _detector(report: Report, name: str, size: str, rounds: int, precision: Precision, *, parts: bool) -> None:
    """Rows of all tables for one detector, those of its parts only if wanted."""
    images, height, width, depths, proposals, samples = _SIZES[size]
    batch, losses = _batch(images, height, width), _DETECTORS[name]()
    build = _build(name, depths, proposals, samples)
    config = TrainConfig(batch_size=images, learning_rate=_RATE, rate_batch=0, compute=precision)
    detector = jit_detector(build, config, devices=jax.devices()[:1])
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "weights.pth"
        options = dict(depths=depths, classes=_CLASSES, proposals=proposals, samples=samples, learning_rate=_RATE)
        options |= dict(precision=precision)
        peer = detector_peers.build(name, batch, **options, file=file)
        if peer.works:
            detector = starting_from(detector, build, WeightsConfig(str(file), whole=True))
        state = detector.init(0)
    report.note(f"{name}: {peer.conditions}")
    calls = recorded_calls(build, state, batch, losses) if parts else {}

    functions = {"inference": jax.jit(detector.predict), "training step": detector.step}
    given = {"inference": batch[:2], "training step": (batch, losses, jnp.int32(1000), jnp.int32(0))}
    for work in _WORKS:
        compiled, cost = _compiled(functions[work], state, *given[work])

        def ours():
            nonlocal state
            result = compiled(state, *given[work])
            if work == "training step":
                state, result = result
            return result

        result = jax.block_until_ready(ours())
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if work == "inference":
            theirs = f", torchvision {peer.works[work]()}" if peer.works else ""
            report.note(f"{name}: detections in the batch: ours {result.valid.sum()}{theirs}")
        elif not result["finite"]:
            raise SystemExit(f"{name}: the loss or its gradient is not finite; the times would be of no use")
        in_parts = {label: own for (of, label), own in calls.items() if of == work}
        contestants = {"ours": ours} | ({"torchvision": peer.works[work]} if peer.works else {})
        contestants |= {label: together(own, gradient=work == "training step") for label, own in in_parts.items()}
        seconds = alternate(contestants, rounds)
        about = {"detector": name, "precision": precision, "work": work}
        compiling = {"ours: compile, s": cost.pop("compile"), "torchvision is": peer.version}
        report.row(_SPEED, about | _speeds(seconds, images) | compiling)
        cost |= {"ours, device": peak and peak / 2**20, "torchvision": peer.memory.get(work)}
        report.row(_MEMORY, about | cost)
        for label, own in in_parts.items():
            share, _ = ratio(seconds, label, "ours")
            backwards = ", with gradient" if work == "training step" and own[0].part.moving else ""
            report.row(
                _SHARES,
                {"detector": name, "work": work, "part": label, "calls": len(own)}
                | {"ms": milliseconds(seconds[label]), "share": share, "note": f"timed alone{backwards}"},
            )


def _compiled(function, *args) -> tuple[Callable, dict]:
    """A jitted function compiled for arguments, and what that took: seconds, and MiB that it needs."""
    started = time.perf_counter()
    compiled = function.lower(*args).compile()
    seconds = time.perf_counter() - started
    return compiled, {"compile": seconds, "ours, compiled": bytes_needed(compiled) / 2**20}


def _speeds(seconds: dict[str, list[float]], images: int) -> dict:
    """Images per second of both sides, and how they compare."""
    ours = images / statistics.median(seconds["ours"])
    theirs, faster, spread = None, None, ""
    if "torchvision" in seconds:
        theirs = images / statistics.median(seconds["torchvision"])
        faster, spread = ratio(seconds, "torchvision", "ours")
    return {"ours": ours, "torchvision": theirs, "ours / torchvision": faster, "each round": spread}


def _build(
    name: str, depths: tuple[int, ...], proposals: tuple[int, int], samples: int
) -> Callable[[nnx.Rngs], nnx.Module]:
    """Makes the detector from random numbers."""
    config = getattr(torchvision_settings, name)(_CLASSES)
    config.backbone = dataclasses.replace(config.backbone, depths=depths, norm_eps=1e-5)
    if name.startswith("faster"):
        in_training, at_test = proposals
        config.rpn = dataclasses.replace(config.rpn, train_proposals=in_training, test_proposals=at_test)
        config.roi = dataclasses.replace(config.roi, samples=samples)
    return build_detector(config)[1]
