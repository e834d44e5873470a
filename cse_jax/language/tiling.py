"""Arrays cut into tiles of elements, and put together again."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cse_jax.language.spaces import Space

BUDGET = 1 << 30  # bytes of all that is computed for a tile, on an accelerator


def fitting(values: int, dtype: np.dtype) -> int:
    """Elements for each of which so many values fit the budget."""
    return BUDGET // (values * np.dtype(dtype).itemsize)


def tail_of(space: Space, array: jax.Array) -> tuple[int, ...]:
    """The axes that no tile cuts: the class axis, where there is one."""
    return array.shape[-1:] if space.class_axis else ()


def split(space: Space, arrays: tuple[jax.Array, ...], most: int) -> tuple[jax.Array, ...]:
    """Arrays ``[..., c]`` (or ``[...]``) of one shape as ``[tiles, n, c]``, padded with ones at the end.

    Args:
      space: says whether the last axis is the class axis.
      arrays: of one shape.
      most: elements of a tile, the classes among them.
    """
    tail = tail_of(space, arrays[0])
    total = arrays[0].size // math.prod(tail)
    tiles = max(1, -(-total // max(1, most // math.prod(tail))))
    each = -(-total // tiles)

    def cut(array: jax.Array) -> jax.Array:
        widths = [(0, tiles * each - total)] + [(0, 0)] * len(tail)
        padded = jnp.pad(array.reshape(total, *tail), widths, constant_values=1.0)
        return padded.reshape(tiles, each, *tail)

    return tuple(map(cut, arrays))


def join(tiles: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What ``split`` has cut, in its shape, without the padding."""
    return tiles.reshape(-1)[: math.prod(shape)].reshape(shape)
