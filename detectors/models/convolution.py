"""Convolutions of NHWC images as products or sums where XLA's own are slow; results are the same up to rounding.

On CPUs XLA's depthwise convolution takes up to 50 times as long as nine shifted products, the gradient of a 1x1 kernel
three times as long as the matrix product it is, and that of a larger kernel on large maps up to six times as long as
one product for each of its entries (docs/benchmarks.md).
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]
_LARGE = 2**21  # numbers of a map


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k2 cg d"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    **options,
) -> Float[Array, "b h2 w2 d"]:
    """``jax.lax.conv_general_dilated`` without dilation, computed in the fastest way for the kernel's shape.

    A 1x1 kernel without padding becomes a matrix product, a depthwise kernel a sum of shifted products, and under
    ``jax.vmap`` over images and kernels any a matrix product over patches; the rest is left to XLA, but for the
    gradient in the kernel on large maps of CPUs.
    """
    strides, pads = tuple(strides), _pads(x, kernel, strides, padding)
    if kernel.shape[:2] == (1, 1) and feature_group_count == 1 and pads == ((0, 0), (0, 0)):
        return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]
    if feature_group_count == x.shape[-1] == kernel.shape[-1]:
        return _depthwise(x, kernel, strides, pads)
    xla = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=strides,
        padding=pads,
        feature_group_count=feature_group_count,
        **options,
    )
    if feature_group_count > 1:
        return xla(x, kernel)
    if x.size >= _LARGE and jax.default_backend() == "cpu":
        xla = _by_entries(xla, strides, pads)
    return _for_own_kernels(xla, lambda x, kernel: convolve_unfolded(x, kernel, strides, pads))(x, kernel)


def _by_entries(xla: Callable[..., Array], strides: Sequence[int], pads: Pads) -> Callable[..., Array]:
    """A convolution whose gradient in the kernel is a matrix product for each of the kernel's entries."""

    def backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
        x, kernel = saved
        (to_x,) = jax.vjp(lambda x: xla(x, kernel), x)[1](cotangent)

        def of_entry(tap: Array) -> Array:
            return jnp.einsum("bhwc,bhwd->cd", tap, cotangent, preferred_element_type=jnp.float32)

        return to_x, _of_entries(of_entry, x, kernel, strides, pads)

    convolution = jax.custom_vjp(xla)
    convolution.defvjp(lambda x, kernel: (xla(x, kernel), (x, kernel)), backward)
    return convolution


def _of_entries(
    gradient: Callable[[Array], Array], x: Array, kernel: Array, strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient in a kernel from that in each of its entries, which is given what the entry is multiplied with.

    One entry at a time: XLA computes nine sums side by side seven times slower on CPUs.
    """
    padded, columns = _padded(x, pads), kernel.shape[1]
    entries = jnp.arange(kernel.shape[0] * columns)
    rows = jax.lax.map(lambda k: gradient(_tap(padded, k // columns, k % columns, kernel, strides)), entries)
    return rows.reshape(kernel.shape).astype(kernel.dtype)


def _for_own_kernels(shared: Callable[..., Array], own: Callable[..., Array]) -> Callable[..., Array]:
    """A convolution that is computed in another way where ``jax.vmap`` gives images of their own a kernel of their own.

    XLA makes that a grouped convolution, which libraries compute slowly.

    Args:
      shared: from images and a kernel to the result.
      own: the same function, in the other way.
    """

    def gradients(function, x, kernel, cotangent):
        return jax.vjp(function, x, kernel)[1](cotangent)

    forward = _choosing(shared, own)
    backward = _choosing(functools.partial(gradients, shared), functools.partial(gradients, own))
    convolution = jax.custom_vjp(forward)
    convolution.defvjp(lambda x, kernel: (forward(x, kernel), (x, kernel)), lambda saved, g: backward(*saved, g))
    return convolution


def _choosing(shared: Callable, own: Callable) -> Callable:
    function = jax.custom_batching.custom_vmap(shared)

    @function.def_vmap
    def _(size: int, batched: Sequence[bool], x: Array, kernel: Array, *rest: Array):
        axes = [0 if each else None for each in batched]
        result = jax.vmap(own if all(batched[:2]) else shared, axes, axis_size=size)(x, kernel, *rest)
        return result, jax.tree.map(lambda _: True, result)

    return function


def convolve_unfolded(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k2 c d"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **_,
) -> Float[Array, "b h2 w2 d"]:
    """``jax.lax.conv_general_dilated`` as one matrix product over unfolded patches, all of which are in memory."""
    taps = _taps(x, kernel, strides, _pads(x, kernel, strides, padding))
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


Conv = functools.partial(nnx.Conv, conv_general_dilated=convolve)


def _shifted_products(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    taps, weights = _taps(x, kernel, strides, pads), kernel.reshape(-1, x.shape[-1]).astype(jnp.float32)
    products = (tap.astype(jnp.float32) * weight for tap, weight in zip(taps, weights, strict=True))
    return functools.reduce(jnp.add, products).astype(x.dtype)


_depthwise = jax.custom_vjp(_shifted_products, nondiff_argnums=(2, 3))


def _depthwise_forward(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> tuple[Array, tuple]:
    return _depthwise(x, kernel, strides, pads), (x, kernel)


def _depthwise_backward(strides: tuple[int, int], pads: Pads, saved: tuple, cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (to_x,) = jax.linear_transpose(lambda x: _shifted_products(x, kernel, strides, pads), x)(cotangent)

    def of_entry(tap: Array) -> Array:
        return jnp.sum(tap.astype(jnp.float32) * cotangent.astype(jnp.float32), (0, 1, 2))

    return to_x, _of_entries(of_entry, x, kernel, strides, pads)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _pads(x: Array, kernel: Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]]) -> Pads:
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _padded(x: Array, pads: Pads) -> Array:
    return jnp.pad(x, [(0, 0), *pads, (0, 0)])


def _tap(padded: Array, row: int | Array, column: int | Array, kernel: Array, strides: Sequence[int]) -> Array:
    """The inputs that one entry of the kernel is multiplied with."""
    spans = [s * ((side - k) // s) + 1 for side, k, s in zip(padded.shape[1:3], kernel.shape[:2], strides, strict=True)]
    sizes = (padded.shape[0], *spans, padded.shape[3])
    return jax.lax.dynamic_slice(padded, (0, row, column, 0), sizes)[:, :: strides[0], :: strides[1]]


def _taps(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> list[Array]:
    padded, (rows, columns) = _padded(x, pads), kernel.shape[:2]
    return [_tap(padded, row, column, kernel, strides) for row in range(rows) for column in range(columns)]
