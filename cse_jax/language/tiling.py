"""Arrays cut into tiles of elements, and put together again."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cse_jax.language.spaces import Space

BUDGET = 1 << 30  # bytes of all rows of a tile, and of their cotangents, on an accelerator


def fitting(rows: int, dtype: np.dtype) -> int:
    """Elements whose rows and cotangents fit the budget."""
    return BUDGET // (2 * rows * np.dtype(dtype).itemsize)


def tail_of(space: Space, array: jax.Array) -> tuple[int, ...]:
    """The axes that no tile cuts: the class axis, where there is one."""
    return array.shape[-1:] if space.class_axis else ()


def split(space: Space, arrays: tuple[jax.Array, ...], most: int, *, lead: int = 0) -> tuple[jax.Array, ...]:
    """Arrays ``[*lead, ..., c]`` (or ``[*lead, ...]``) as ``[tiles, *lead, n, c]``, padded with ones at the end.

    Args:
      space: says whether the last axis is the class axis.
      arrays: of one shape but for the leading axes.
      most: elements of a tile, the classes among them.
      lead: how many leading axes are left as they are.
    """
    tail = tail_of(space, arrays[0])
    total = math.prod(arrays[0].shape[lead:]) // math.prod(tail)
    tiles = max(1, -(-total // max(1, most // math.prod(tail))))
    each = -(-total // tiles)

    def cut(array: jax.Array) -> jax.Array:
        front = array.shape[:lead]
        widths = [(0, 0)] * lead + [(0, tiles * each - total)] + [(0, 0)] * len(tail)
        padded = jnp.pad(array.reshape(*front, total, *tail), widths, constant_values=1.0)
        return jnp.moveaxis(padded.reshape(*front, tiles, each, *tail), lead, 0)

    return tuple(map(cut, arrays))


def join(tiles: jax.Array, shape: tuple[int, ...], *, lead: int = 0) -> jax.Array:
    """What ``split`` has cut, in its shape, without the padding."""
    flat = jnp.moveaxis(tiles, 0, lead).reshape(*shape[:lead], -1)
    return flat[..., : math.prod(shape[lead:])].reshape(shape)
