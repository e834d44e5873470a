"""Convolutions as products and sums equal XLA's, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from detectors.models import convolution
from detectors.models.convolution import convolve, convolve_unfolded

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = [  # height, width, kernel, inputs, outputs, stride, padding, groups
    (8, 9, 1, 3, 5, 1, "SAME", 1),
    (8, 9, 1, 3, 5, 2, [(0, 0), (0, 0)], 1),
    (8, 9, 1, 3, 5, 1, [(1, 0), (0, 2)], 1),
    (8, 9, 3, 4, 4, 1, "SAME", 4),
    (8, 9, 3, 4, 4, 2, "SAME", 4),
    (9, 8, 3, 4, 4, 2, [(1, 1), (1, 1)], 4),
    (9, 8, 5, 4, 4, 3, "VALID", 4),
    (9, 8, 3, 4, 8, 1, "SAME", 4),
    (9, 8, 3, 4, 6, 2, "SAME", 2),
    (9, 8, 1, 1, 1, 1, "SAME", 1),
    (8, 9, 3, 4, 6, 1, "SAME", 1),
    (8, 9, 3, 4, 6, 2, [(1, 1), (1, 1)], 1),
    (9, 8, 5, 4, 6, 3, "VALID", 1),
    (9, 8, 7, 1, 2, 2, [(3, 3), (3, 3)], 1),
]


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("height, width, size, inputs, outputs, stride, padding, groups", CASES)
def test_convolve_is_xlas_convolution(
    height, width, size, inputs, outputs, stride, padding, groups, large, monkeypatch
):
    if large:
        monkeypatch.setattr(convolution, "_LARGE", 1)
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, height, width, inputs))
    kernel = jax.random.normal(keys[1], (size, size, inputs // groups, outputs))

    def loss(function):
        def of(x, kernel):
            y = function(x, kernel, (stride, stride), padding, feature_group_count=groups, dimension_numbers=NHWC)
            return jnp.sum(jnp.sin(y)), y

        (_, y), gradients = jax.value_and_grad(of, (0, 1), has_aux=True)(x, kernel)
        return y, *gradients

    functions = [convolve, convolve_unfolded] if groups == 1 else [convolve]
    for function in functions:
        for ours, theirs in zip(loss(function), loss(lax.conv_general_dilated), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)  # sums of at most 144 products of about 1


@pytest.mark.parametrize("backend, side, loops", [("cpu", 256, True), ("cpu", 128, False), ("gpu", 256, False)])
def test_the_gradient_in_a_kernel_is_by_entries_on_large_maps_of_cpus(backend, side, loops, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = jax.ShapeDtypeStruct((2, side, side, 32), jnp.float32), jax.ShapeDtypeStruct((3, 3, 32, 8), jnp.float32)
    gradient = jax.grad(lambda x, kernel: convolve(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC).sum(), 1)
    assert ("scan" in str(jax.make_jaxpr(gradient)(x, kernel))) == loops


@pytest.mark.parametrize("stride, size", [(1, 3), (2, 3), (2, 5)])
def test_each_of_many_has_its_own_kernel(stride, size):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (3, 2, 8, 9, 4))
    kernel = jax.random.normal(keys[1], (3, size, size, 4, 5))

    def loss(function, x, kernel):
        return jnp.sum(jnp.sin(function(x, kernel, (stride, stride), "SAME", dimension_numbers=NHWC)))

    for axes in ((0, 0), (None, 0), (0, None)):
        given = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)]

        def gradients(function, axes=axes):
            return jax.vmap(jax.value_and_grad(functools.partial(loss, function), (0, 1)), axes)

        ours, theirs = (jax.tree.leaves(gradients(f)(*given)) for f in (convolve, lax.conv_general_dilated))
        for mine, their in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, their, rtol=1e-5, atol=1e-4)  # rounding of outputs near 10, through sums
    grouped = jax.make_jaxpr(gradients(convolve, (0, 0)))(x, kernel)
    assert "conv_general_dilated" not in str(grouped)


def test_depthwise_sums_of_bfloat16_are_rounded_once():
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 4)).astype(jnp.bfloat16)
    ours = convolve(x, kernel, (1, 1), "SAME", feature_group_count=4)
    exact = lax.conv_general_dilated(
        x.astype(jnp.float32),
        kernel.astype(jnp.float32),
        (1, 1),
        "SAME",
        dimension_numbers=NHWC,
        feature_group_count=4,
    )
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))
