"""MobileNetV1 against a functional one in PyTorch, and its genuine weights against photographs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extras import beside, need
from flax import nnx
from micro import library_losses
from PIL import Image

from detectors import weights
from detectors.models import build_detector
from detectors.models.fcos import FCOSConfig
from detectors.models.fpn import FPNConfig
from detectors.models.mobilenet import MobileNetConfig, MobileNetV1
from detectors.models.norms import FrozenBatchNorm
from detectors.ops.padding import Extent
from detectors.structures import Batch
from detectors.training.initial_weights import WeightsConfig, load
from detectors.training.step import TrainConfig, jit_detector
from detectors.weights import WeightsError

BLOCKS = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
BLOCKS += [(512, 512, 1)] * 5 + [(512, 1024, 2), (1024, 1024, 1)]


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    """A file's worth of random weights that keep activations at a moderate size."""
    rng = np.random.default_rng(0)

    def norm(name, channels):
        ranges = {"gamma": (0.5, 1.5), "beta": (0.0, 1.0), "moving_mean": (-0.2, 0.2), "moving_variance": (0.5, 1.5)}
        return {f"{name}_bn.{part}": rng.uniform(*limits, channels) for part, limits in ranges.items()}

    def kernel(*shape):
        return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)

    found = {"conv1.kernel": kernel(3, 3, 3, 32)} | norm("conv1", 32)
    for number, (inputs, outputs, _) in enumerate(BLOCKS, start=1):
        found |= {f"conv_dw_{number}.depthwise_kernel": rng.normal(0, 0.4, (3, 3, inputs, 1))}
        found |= norm(f"conv_dw_{number}", inputs)
        if number < 13:
            found |= {f"conv_pw_{number}.kernel": kernel(1, 1, inputs, outputs)} | norm(f"conv_pw_{number}", outputs)
    return {name: array.astype(np.float32) for name, array in found.items()}


def write(path, **changes):
    np.savez(path, **(arrays() | changes))
    return str(path)


def made(path, **options) -> MobileNetV1:
    network = MobileNetV1(MobileNetConfig(**options), rngs=nnx.Rngs(0))
    weights.load_mobilenet(network, path)
    return network


def reference(tensors, image):
    """Features of strides 4, 8 and 16 by PyTorch's functions, padded as TensorFlow pads."""
    torch = need("torch")
    functional = torch.nn.functional
    tensors = {name: torch.from_numpy(array) for name, array in tensors.items()}

    def conv(x, kernel, stride, groups=1):
        size = kernel.shape[-1]
        pads = []
        for side in reversed(x.shape[2:]):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), kernel, stride=stride, groups=groups)

    def norm(x, name):
        parts = (tensors[f"{name}_bn.{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta"))
        return functional.relu6(functional.batch_norm(x, *parts, eps=1e-3))

    x = torch.from_numpy(image).permute(0, 3, 1, 2)
    x = norm(conv(x, tensors["conv1.kernel"].permute(3, 2, 0, 1), 2), "conv1")
    features = []
    for number, (inputs, _, stride) in enumerate(BLOCKS[:11], start=1):
        x = norm(
            conv(x, tensors[f"conv_dw_{number}.depthwise_kernel"].permute(2, 3, 0, 1), stride, inputs),
            f"conv_dw_{number}",
        )
        x = norm(conv(x, tensors[f"conv_pw_{number}.kernel"].permute(3, 2, 0, 1), 1), f"conv_pw_{number}")
        if number in (3, 5, 11):
            features.append(x.permute(0, 2, 3, 1).numpy())
    return features


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 96), (45, 67)])
def test_features_equal_pytorchs(tmp_path, size):
    network = made(write(tmp_path / "weights.npz"), outputs=(4, 8, 16))
    image = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    found, expected = network(image, Extent.of(np.float32([size] * 2))), reference(arrays(), image)
    assert [f.shape[-1] for f in found] == list(network.config.channels) == [128, 256, 512]
    for ours, theirs, stride in zip(found, expected, network.config.strides, strict=True):
        assert ours.shape[1:3] == tuple(-(-side // stride) for side in size)
        # Eleven blocks of sums of up to 512 products in float32.
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.slow
def test_the_last_pointwise_convolution_stays_random(tmp_path):
    network = made(write(tmp_path / "weights.npz"), outputs=(32,))
    before = MobileNetV1(MobileNetConfig(outputs=(32,)), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(network.blocks[12].pointwise.kernel[...], before.blocks[12].pointwise.kernel[...])
    assert isinstance(network.blocks[12].pointwise_norm, nnx.GroupNorm)
    assert isinstance(network.blocks[12].depthwise_norm, FrozenBatchNorm)
    np.testing.assert_array_equal(
        network.blocks[12].depthwise.kernel[..., 0, :], arrays()["conv_dw_13.depthwise_kernel"][..., 0]
    )
    features = network(np.zeros((1, 64, 64, 3), np.float32), Extent.of(np.float32([[64, 64]])))
    assert features[0].shape == (1, 2, 2, 1024) and np.isfinite(features[0]).all()


def test_weights_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="keras|Keras"):
        made(str(tmp_path / "absent.npz"))
    path = write(tmp_path / "bad.npz", **{"conv1.kernel": np.zeros((3, 3, 1, 32), np.float32), "other": np.zeros(1)})
    with pytest.raises(WeightsError, match=r"(?s)2 weights do not fit.*wrong shape: conv1\.kernel.*unexpected: other"):
        made(path)
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"torn\.npz"):
        made(str(tmp_path / "torn.npz"))


@pytest.mark.slow
def test_frozen_blocks_do_not_move(tmp_path):
    config = FCOSConfig(
        classes=3,
        backbone=MobileNetConfig(outputs=(8, 16), frozen_blocks=3),
        fpn=FPNConfig(channels=16, extra="none"),
        towers=1,
        norm_groups=4,
        range_limits=(32.0,),
    )
    detector, build = build_detector(config)
    functions = jit_detector(build, TrainConfig(batch_size=1, warmup_steps=0))
    state = functions.init(0)
    before = jax.device_get(state.params["backbone"])
    batch = Batch(
        np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32),
        np.float32([[64, 64]]),
        np.float32([[[4, 4, 50, 40]]]),
        np.int32([[1]]),
        np.ones((1, 1), bool),
        np.int32([0]),
        np.ones(1, bool),
    )
    state, metrics = functions.step(state, batch, library_losses(detector), jnp.int32(9), jnp.int32(0))
    assert metrics["finite"]
    for path, moved in nnx.to_flat_state(state.params["backbone"]):
        still = np.array_equal(moved[...], dict(nnx.to_flat_state(before))[path][...])
        assert still == (path[0] in ("stem", "stem_norm") or (path[0] == "blocks" and path[1] < 3)), path


def test_frozen_statistics_need_weights():
    abstract = nnx.eval_shape(lambda: build_detector(FCOSConfig(backbone=MobileNetConfig()))[1](nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match=r"frozen statistics.*\.npz .*norm=gn --config\.detector\.backbone\.frozen_blocks=-1"
    ):
        load(abstract, WeightsConfig())


# Genuine weights


@pytest.fixture(scope="module")
def genuine():
    return str(beside("weights") / "mobilenet_v1_1.0_imagenet_f32.npz")


@pytest.mark.slow
def test_statistics_agree_with_photographs(genuine, test_data):
    """What enters each batch norm has roughly its mean and variance: names, order and the scale of images are right."""
    network = made(genuine, outputs=(16,))
    listed = json.loads((test_data / "coco_boxes" / "annotations" / "instances_val.json").read_text())["images"][:16]
    photographs = []
    for row in listed:
        with Image.open(test_data / "coco_boxes" / "images" / row["file_name"]) as image:
            photographs.append(np.asarray(image.convert("RGB").resize((224, 224)), np.float32))

    def distances(images):
        """Of the normalised activations' mean from 0 and deviation from 1, by layer."""
        seen = []

        def look(norm, x):
            normal = (x - norm.mean[...]) * jax.lax.rsqrt(norm.var[...] + norm.eps)
            seen.append((float(jnp.abs(normal.mean((0, 1, 2))).mean()), float(normal.std((0, 1, 2)).mean())))
            return norm(x, Extent.of(np.float32([[224, 224]] * len(x))))

        x = images
        layers = [(network.stem, network.stem_norm)]
        for block in network.blocks:
            layers += [(block.depthwise, block.depthwise_norm), (block.pointwise, block.pointwise_norm)]
        for conv, norm in layers:
            x = jax.nn.relu6(look(norm, conv(x)))
        return np.array(seen)

    images = np.stack(photographs)
    right = distances(images / 127.5 - 1)
    # Sixteen photographs, shrunk and so smoother than ImageNet's crops, which the first two layers see.
    assert right[:, 0].max() < 0.2 and (np.abs(right[2:, 1] - 1) < 0.15).all(), right
    assert distances(images / 255.0)[:, 0].max() > 2 * right[:, 0].max(), "another scale must show"
