"""The training step in its variants: many devices, parts of a batch, bfloat16, an average, given weights."""

import ast
import dataclasses
import functools
import json
import pathlib
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro import library_losses
from scripts import run_on_devices

from benchmarks.smallest import faster_rcnn_smallest, fcos_smallest
from cse_jax.errors import InputError
from detectors import compiling, parallel
from detectors.models import build_detector
from detectors.models.fcos import fcos_tiny
from detectors.models.fpn import FPNConfig
from detectors.models.norms import FrozenBatchNorm
from detectors.models.resnet import ResNetConfig
from detectors.ops.padding import Extent
from detectors.parallel import mesh_for
from detectors.structures import Batch
from detectors.training.batched import jit_many
from detectors.training.initial_weights import WeightsConfig, starting_from
from detectors.training.step import JittedDetector, TrainConfig, jit_detector, learning_rate
from detectors.weights import RESNET, WeightsError

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZE = 64
TINY = {"fcos": fcos_smallest(3), "faster_rcnn": faster_rcnn_smallest(3)}
SGD = dict(warmup_steps=0, rate_batch=0, decay_at=())


def batch_of(images: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0.0, 30.0, (images, 5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10.0, 30.0, (images, 5, 2))], -1).astype(np.float32)
    return Batch(
        rng.normal(size=(images, SIZE, SIZE, 3)).astype(np.float32),
        np.full((images, 2), SIZE, np.float32),
        boxes,
        rng.integers(0, 3, (images, 5)).astype(np.int32),
        np.arange(5)[None] < rng.integers(1, 5, (images, 1)),
        np.arange(images, dtype=np.int32),
        np.ones(images, bool),
    )


@functools.cache
def compiled(name: str, devices=None, **options) -> JittedDetector:
    return jit_detector(build_detector(TINY[name])[1], TrainConfig(**(SGD | options)), devices=devices)


def train(name: str, batches, **options):
    """Losses of the steps, the last state, and the compiled functions."""
    functions = compiled(name, **options)
    state, losses, history = functions.init(0), library_losses(build_detector(TINY[name])[0]), []
    for batch in batches:
        state, metrics = functions.step(state, batch, losses, jnp.int32(100), jnp.int32(0))
        history.append(float(metrics["loss"]))
    return history, state, functions


# Devices


def on_devices(name: str) -> None:
    """Run in a process with eight simulated devices: one device and all of them see the same losses."""
    batches = [batch_of(8, seed) for seed in range(3)]
    one, _, functions = train(name, batches, batch_size=8, devices=tuple(jax.devices()[:1]))
    assert functions.devices == 1
    all_, state, functions = train(name, batches, batch_size=8)
    assert functions.devices == 8 == len(state.step.sharding.device_set)
    # Sums over images are taken in another order: 1e-7 a step, which three steps amplify.
    np.testing.assert_allclose(one, all_, rtol=2e-5)
    boxes = functions.predict(state, batches[0].image, batches[0].image_size).boxes
    assert len(boxes.sharding.device_set) == 8, "images must stay on their devices"
    assert jit_detector(build_detector(TINY[name])[1], TrainConfig(batch_size=6)).devices == 6, (
        "six images are shared by six of eight devices"
    )


@pytest.mark.parametrize(("images", "devices", "sharing"), [(6, 4, 3), (8, 6, 4), (2, 8, 2), (7, 4, 1), (16, 8, 8)])
def test_as_many_devices_share_a_batch_as_can_have_equal_shares(monkeypatch, images, devices, sharing):
    assert mesh_for(images, jax.devices() * devices).size == sharing
    two = [unittest.mock.Mock(process_index=process) for process in (0, 1) for _ in range(devices)]
    monkeypatch.setattr(parallel, "share", lambda: (0, 2))
    monkeypatch.setattr(jax, "devices", lambda: two)
    assert mesh_for(2 * images).size == 2 * sharing


def test_processes_must_have_equal_shares(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(InputError, match="3 processes can't share a batch, or a part of it, of 8 images equally"):
        mesh_for(8)


@pytest.mark.slow
def test_eight_devices_train_as_one_does():
    run_on_devices(8, "import test_training; test_training.on_devices('faster_rcnn')")


# Variants


@pytest.mark.slow
def test_a_batch_in_parts_is_averaged():
    """Two equal parts: every image twice, side by side, as parts take every second image."""
    half = batch_of(2)
    double = jax.tree.map(lambda a: np.repeat(a, 2, axis=0), half)
    whole, expected, _ = train("fcos", [half, half], batch_size=2)
    parts, state, _ = train("fcos", [double, double], batch_size=4, accumulate=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, expected.params)


@pytest.mark.slow
def test_the_average_follows_the_parameters():
    """Frozen weights, whose average is themselves, are kept and evaluated as they were loaded."""
    batches = [batch_of(2, seed) for seed in range(3)]
    config = dataclasses.replace(TINY["fcos"], backbone=dataclasses.replace(TINY["fcos"].backbone, frozen_stages=0))
    detector, build = build_detector(config)
    functions = jit_detector(build, TrainConfig(batch_size=2, ema=0.9, **SGD))
    state = functions.init(0)
    frozen = jax.device_get(state.params["backbone"]["stem"]["kernel"][...])
    expected = jax.device_get(state.params["cls"]["kernel"][...])
    for batch in batches:
        state, _ = functions.step(state, batch, library_losses(detector), jnp.int32(9), jnp.int32(0))
        expected = 0.9 * expected + 0.1 * jax.device_get(state.params["cls"]["kernel"][...])
    np.testing.assert_allclose(state.ema["cls"]["kernel"][...], expected, atol=1e-7)
    np.testing.assert_array_equal(state.model[0]["backbone"]["stem"]["kernel"][...], frozen)
    assert state.model[0] is state.ema
    shown = functions.predict(state, batches[0].image, batches[0].image_size)
    swapped = functions.predict(state._replace(params=state.ema, ema=None), batches[0].image, batches[0].image_size)
    jax.tree.map(np.testing.assert_array_equal, shown, swapped)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_bfloat16_computes_the_same_loss_roughly(name):
    """Eight bits of mantissa: a few parts in a thousand, more in sums over few boxes."""
    batch = batch_of(2)
    full, _, _ = train(name, [batch], batch_size=2)
    half, state, functions = train(name, [batch], batch_size=2, compute="bfloat16")
    assert full != half
    np.testing.assert_allclose(half, full, rtol=0.03)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    found = jax.eval_shape(functions.predict, state, batch.image, batch.image_size)
    assert found.boxes.dtype == found.scores.dtype == jnp.float32
    losses = library_losses(build_detector(TINY[name])[0])
    text = functions.step.lower(state, batch, losses, jnp.int32(9), jnp.int32(0)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert products and all("bf16" in line for line in products), "convolutions must not fall back to float32"


def test_a_frozen_batch_norm_rounds_to_bfloat16_once():
    """Means of several deviations would cancel digits that bfloat16 does not have."""
    rng = np.random.default_rng(0)
    norm = FrozenBatchNorm(16)
    norm.mean[...], norm.var[...] = jnp.asarray(rng.normal(0.0, 5.0, 16)), jnp.asarray(rng.uniform(0.5, 1.5, 16))
    x = jnp.asarray(rng.normal(norm.mean[...], 1.0, (1, 32, 32, 16)), jnp.bfloat16)
    ours, exact = (norm(each, Extent.of(np.float32([[32, 32]]))) for each in (x, x.astype(jnp.float32)))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))


def test_a_gpu_compiles_without_the_fusion_that_aborts(monkeypatch):
    asked, jit = [], jax.jit

    def recorded(function, *, compiler_options=None, **rest):
        asked.append((function.__name__, compiler_options))
        return jit(function, **rest)

    monkeypatch.setattr(jax, "jit", recorded)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    build = build_detector(fcos_smallest())[1]
    jit_detector(build, TrainConfig())
    jit_many(build, TrainConfig())
    found = {name for name, options in asked if options == {"xla_gpu_enable_triton_gemm": False}}
    assert found == {name for name, _ in asked} - {"init", "repeated"}, "those have no convolution"


def test_what_applies_a_detector_is_compiled_in_one_place():
    """A script that calls ``jax.jit`` would end on a GPU, whose compiler aborts there."""
    calls = {}
    for path in (*(ROOT / "detectors").rglob("*.py"), *(ROOT / "launch").glob("*.py")):
        found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        if names := sum(ast.unparse(node) == "jax.jit" for node in found):
            calls[path.relative_to(ROOT).as_posix()] = names
    without_convolutions = {"detectors/training/step.py": 1, "detectors/training/batched.py": 1}
    assert calls == without_convolutions | {"detectors/compiling.py": 3}


def test_on_a_gpu_the_outermost_function_says_how_all_is_compiled(monkeypatch):
    """JAX refuses options of a function within another."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    double = compiling.jit(lambda x: 2.0 * x)
    assert jax.jit(lambda x: double(x) + 1.0)(jnp.float32(3.0)) == 7.0


def test_the_learning_rate_grows_with_the_batch():
    def rate(**changes):
        config = TrainConfig(learning_rate=0.02, warmup_steps=0, **changes)
        return float(learning_rate(config, jnp.int32(0), jnp.int32(9)))

    assert rate(batch_size=16) == pytest.approx(0.02)
    assert rate(batch_size=4) == pytest.approx(0.005)
    assert rate(batch_size=4, rate_batch=0) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compute": "float16"}, "train.compute is 'float16'; it must be 'float32' or 'bfloat16'"),
        ({"accumulate": 3}, "train: accumulate=3 must divide batch_size=16"),
        ({"ema": 1.0}, "train.ema is 1.0; it must be a number of at least 0 and below 1"),
    ],
)
def test_bad_settings_are_named(changes, said):
    config = TrainConfig()
    for name, value in changes.items():  # the class itself would refuse them where types are checked
        setattr(config, name, value)
    with pytest.raises(ValueError, match=said):
        jit_detector(build_detector(TINY["fcos"])[1], config)


# Weights to start from

FROZEN = ResNetConfig(depths=(1, 1), widths=(8, 16), bottleneck=True, stem_width=8, norm="frozen_bn", outputs=(1, 2))
PRETRAINED = dataclasses.replace(fcos_tiny(3), backbone=FROZEN, fpn=FPNConfig(channels=16, extra="none"), norm_groups=4)


def write_resnet(path: pathlib.Path, **changes) -> dict[str, np.ndarray]:
    """A backbone's file of random weights, under torchvision's names."""
    rng = np.random.default_rng(0)
    shapes = {"conv1.weight": (8, 3, 7, 7)} | norms("bn1", 8)
    for stage, (inputs, width) in enumerate([(8, 8), (32, 16)], start=1):
        block = f"layer{stage}.0."
        plan = [(inputs, width, 1), (width, width, 3), (width, 4 * width, 1)]
        for k, (before, after, kernel) in enumerate(plan, start=1):
            shapes |= {f"{block}conv{k}.weight": (after, before, kernel, kernel)} | norms(f"{block}bn{k}", after)
        shapes |= {f"{block}downsample.0.weight": (4 * width, inputs, 1, 1)}
        shapes |= norms(f"{block}downsample.1", 4 * width)
    tensors = {name: rng.uniform(0.1, 1.0, shape).astype(np.float32) for name, shape in (shapes | changes).items()}
    header, body = {}, b""
    for name, array in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return tensors


def norms(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.slow
@pytest.mark.parametrize("bgr", [False, True])
def test_a_training_starts_from_a_file(tmp_path, bgr):
    assert RESNET
    file = tmp_path / "resnet.safetensors"
    tensors = write_resnet(file)
    _, build = build_detector(PRETRAINED)
    random = jit_detector(build, TrainConfig(batch_size=2, ema=0.9, **SGD))
    functions = starting_from(random, build, WeightsConfig(file=str(file), bgr=bgr))
    state, other = functions.init(0), random.init(0)
    stem = tensors["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(state.params["backbone"]["stem"]["kernel"][...], stem[:, :, ::-1] if bgr else stem)
    np.testing.assert_array_equal(state.rest["backbone"]["stem_norm"]["mean"][...], tensors["bn1.running_mean"])
    np.testing.assert_array_equal(state.params["cls"]["kernel"][...], other.params["cls"]["kernel"][...])
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)
    if not bgr:
        losses = library_losses(build_detector(PRETRAINED)[0])
        assert functions.step(state, batch_of(2), losses, jnp.int32(9), jnp.int32(0))[1]["finite"]


def test_weights_that_are_missing_or_do_not_fit_are_told(tmp_path):
    _, build = build_detector(PRETRAINED)
    functions = jit_detector(build, TrainConfig(batch_size=2))
    with pytest.raises(ValueError, match=r"--config\.weights\.file=resnet50-.*backbone\.norm=gn .*\.frozen_stages=-1"):
        starting_from(functions, build, WeightsConfig())
    with pytest.raises(FileNotFoundError, match="get them from"):
        starting_from(functions, build, WeightsConfig(file=str(tmp_path / "absent.pth")))
    write_resnet(tmp_path / "bad.safetensors", **{"conv1.weight": (4, 3, 7, 7), "extra": (1,)})
    with pytest.raises(WeightsError, match=r"(?s)2 weights do not fit.*wrong shape: conv1\.weight.*unexpected: extra"):
        starting_from(functions, build, WeightsConfig(file=str(tmp_path / "bad.safetensors")))
    with pytest.raises(FileNotFoundError, match="fcos_resnet50_fpn_coco"):
        starting_from(functions, build, WeightsConfig(file=str(tmp_path / "absent.pth"), whole=True))
